"""What one-stage heads have in common: maps of scores and boxes at every prior."""
from typing import Any, Callable, ClassVar, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor, nn

from ..losses.boxes import BoxLesson
from ..losses.soft_target import at_least_float32
from .adapter import HeadAdapter


class Priors(NamedTuple):
    """Where a flat prediction was made.

    Attributes:
        head (nn.Module): Whose priors.
        sizes (list[tuple]): Height and width of each level.
        images (int): In the batch.
    """
    head: nn.Module
    sizes: List[tuple]
    images: int

    def of(self, prediction: Tensor, **options) -> Tensor:
        """The prior of each row, in the order of the flat predictions."""
        levels = self.head.prior_generator.grid_priors(
            self.sizes, dtype=prediction.dtype, device=prediction.device, **options)
        return torch.cat(levels).repeat(self.images, 1)


class DenseAdapter(HeadAdapter):
    """A head whose outputs are, for each level, scores (N, A * C, H, W), boxes and maybe a quality.

    A family says what boxes it predicts (:meth:`corners`), and what else differs.
    """

    has_boxes = True

    quality: ClassVar[Optional[str]] = None
    """The loss of its third output, a number for each prior; None if it has no such output."""

    objectness: ClassVar[bool] = False
    """Whether that is the probability of an object, of which the class scores are conditional."""

    def corners(self, prediction: Tensor, priors: Priors) -> Tensor:
        """The boxes: left, top, right, bottom, in a unit and from an origin that a prior may have.

        Args:
            prediction (Tensor): What the head predicts in train mode, (N, K), flat (see
                :meth:`flatten`).
            priors (Priors): Where.

        Returns:
            Tensor: (N, 4).
        """
        raise NotImplementedError

    @property
    def compares_boxes(self) -> bool:
        """bool: Whether its box loss compares boxes, and not the numbers that it predicts."""
        return True

    def boxes(self, prediction: Tensor, priors: Priors) -> Tensor:
        """What its box loss compares, (N, 4)."""
        return self.corners(prediction, priors) if self.compares_boxes else prediction

    def box_weights(self, outputs: Sequence[Tensor]) -> Tensor:
        """How much the teacher's boxes count.

        ``c^2``, ``c`` being how sure it is of an object, (N,).

        Args:
            outputs (Sequence[Tensor]): The teacher's, flat.
        """
        scores = self.class_loss().probability(outputs[0])
        confidence = scores[:, :self.head.num_classes].amax(1)
        if self.objectness:
            confidence = confidence * outputs[2].sigmoid().squeeze(1)
        return confidence**2

    def box_lessons(self, output: Any, answer: Any) -> List[BoxLesson]:
        sizes = [level.shape[-2:] for level in output[0]]
        sides = self.flatten(output), self.flatten(answer)
        weight = self.box_weights(sides[1])
        lessons = []
        for key in self.box_losses():
            mine, theirs = (side[self.box_output(key)] for side in sides)
            priors = self.priors(mine, sizes)
            lessons.append(
                BoxLesson(self.corners(mine, priors), self.corners(theirs, priors), weight))
        return lessons

    def box_losses(self) -> Dict[str, Callable]:
        """Its box losses, by the names that it logs them under."""
        return {'loss_bbox': self.head.loss_bbox}

    def box_output(self, key: str) -> int:
        """Which of its outputs the box loss of this name compares."""
        return 1

    def class_weights(self, confidence: Tensor) -> Optional[Tensor]:
        """How much the teacher's scores at a prior count, (N,); None for 1.

        Args:
            confidence (Tensor): Of the teacher, squared, (N,).
        """
        return confidence if self.objectness else None

    def class_target(self, probability: Tensor) -> Optional[Tensor]:
        """What a class loss that looks at the hard target is shown.

        None for the teacher's best guess.

        Args:
            probability (Tensor): Of the teacher, (N, C).
        """
        return None

    def extra_terms(self, student: Sequence[Tensor], teacher: Sequence[Tensor], weight: Tensor,
                    total: Tensor) -> Dict[str, Tensor]:
        """What the teacher teaches beyond scores, boxes and quality, by the names of the losses.

        Args:
            student (Sequence[Tensor]): Its outputs, flat.
            teacher (Sequence[Tensor]): The teacher's.
            weight (Tensor): Of the priors, (N,).
            total (Tensor): Their sum over the batch.
        """
        return {}

    def flatten(self, outputs: Sequence[Sequence[Tensor]]) -> List[Tensor]:
        """Each output as (images * priors, K), the priors of an image level by level."""
        flat = []
        for levels in outputs:
            rows = [level.permute(0, 2, 3, 1).reshape(level.size(0), -1,
                                                      level.size(1) // self._num_priors(index))
                    for index, level in enumerate(levels)]
            flat.append(at_least_float32(torch.cat(rows, 1).flatten(0, 1)))
        return flat

    def priors(self, prediction: Tensor, sizes: List[tuple]) -> Priors:
        """Where a flat prediction was made."""
        places = sum(self._num_priors(level) * height * width
                     for level, (height, width) in enumerate(sizes))
        return Priors(self.head, sizes, len(prediction) // places)

    def _num_priors(self, level: int) -> int:
        """At a place of a level."""
        return self.head.prior_generator.num_base_priors[level]


def corners_from_anchors(prediction: Tensor, priors: Priors) -> Tensor:
    """Boxes from offsets to the anchors."""
    return priors.head.bbox_coder.decode(priors.of(prediction), prediction)


def corners_from_distances(prediction: Tensor) -> Tensor:
    """Distances to the left, top, right and bottom, as a box around 0.

    Overlaps of two boxes at the same place depend on neither the place nor the unit (the stride).
    """
    return torch.cat([-prediction[:, :2], prediction[:, 2:]], 1)
