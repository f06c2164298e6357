"""What a trained one-stage head teaches: scores and boxes at every prior.

The teacher's opinion on a prior counts by its confidence there, the highest probability ``c`` of a class
(times the objectness, where class scores are given an object): boxes and qualities weigh ``c^2``, and sums
are divided by ``sum c^2`` over the batch. So an object counts alike in small and large images, and the
thousands of priors in the background, whose boxes mean nothing, next to nothing.
"""
from typing import Callable, Dict, List, Sequence

from torch import Tensor

from ..heads import DenseAdapter
from ..losses import soft_form
from .soft_loss import box_term, over_ranks, soft_term


class DenseDistiller:
    """Compares the outputs of two one-stage heads for the same features.

    Args:
        adapter (DenseAdapter): What is known of the student's head.

    Raises:
        UsageError: If a loss of the head has no soft-target form.
    """

    def __init__(self, adapter: DenseAdapter):
        self._adapter, self._head = adapter, adapter.head
        self._class_loss = adapter.class_loss()
        self._quality_loss = adapter.quality and soft_form(
            getattr(adapter.head, adapter.quality), f'model.{adapter.name}.{adapter.quality}')

    def __call__(self, student: Sequence[Sequence[Tensor]],
                 teacher: Sequence[Sequence[Tensor]]) -> Dict[str, Tensor]:
        """The terms by the names of the head's own losses.

        Args:
            student (Sequence[Sequence[Tensor]]): What the head returned in train mode: maps
                (N, A * K, H, W) of each level with K scores, then those with the boxes, and so on.
            teacher (Sequence[Sequence[Tensor]]): The same of the teacher.
        """
        adapter = self._adapter
        sizes = [level.shape[-2:] for level in student[0]]
        mine, theirs = (adapter.flatten(outputs) for outputs in (student, teacher))
        probability = self._class_loss.probability(theirs[0])
        weight = self._confidence(probability, theirs)**2
        total = over_ranks(weight.sum())
        terms = {'loss_cls': soft_term(self._class_loss, mine[0], theirs[0], total,
                                       adapter.class_weights(weight),
                                       adapter.class_target(probability))}
        for key, loss in adapter.box_losses().items():
            boxes = [self._boxes(side[adapter.box_output(key)], sizes) for side in (mine, theirs)]
            terms[key] = self._box_term(loss, *boxes, weight, total)
        terms.update(adapter.extra_terms(mine, theirs, weight, total))
        if adapter.quality:  # objectness counts everywhere, centerness where there is an object
            terms[adapter.quality] = soft_term(self._quality_loss, mine[2], theirs[2], total,
                                               None if adapter.objectness else weight)
        return terms

    def _confidence(self, probability: Tensor, teacher: List[Tensor]) -> Tensor:
        """``c`` of each prior, (N,)."""
        confidence = probability[:, :self._head.num_classes].amax(1)
        return confidence * teacher[2].sigmoid().squeeze(1) if self._adapter.objectness else confidence

    def _boxes(self, prediction: Tensor, sizes: List[tuple]) -> Tensor:
        return self._adapter.boxes(prediction, self._adapter.priors(prediction, sizes))

    def _box_term(self, loss: Callable, student: Tensor, teacher: Tensor, weight: Tensor,
                  total: Tensor) -> Tensor:
        """The head's own box loss. Overlaps need boxes: heads such as RTMDet's may predict less than none.

        Where the teacher's sides are out of order, it teaches nothing. Where the student's are, an overlap would
        reward it for being more so, and the sides are drawn to the teacher's by their distance.
        """
        if not self._adapter.compares_boxes:
            return box_term(loss, student, teacher, weight, total)
        weight = weight * _in_order(teacher)
        in_order = _in_order(student)
        overlap = box_term(loss, student, teacher, weight * in_order, total)
        stray = (weight * ~in_order * _relative_distance(student, teacher)).sum() / total
        return overlap + loss.loss_weight * stray


def _in_order(boxes: Tensor) -> Tensor:
    """Whether a box has its left side on the left and its top on top, (N,)."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def _relative_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean distance of the four sides, in mean extents of the teacher's box, (N,)."""
    extent = (teacher[:, 2:] - teacher[:, :2]).abs().mean(1).clamp(min=1e-6)
    return (student - teacher).abs().mean(1) / extent
