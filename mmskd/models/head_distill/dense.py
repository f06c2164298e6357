"""What a trained one-stage head teaches: scores and boxes at every prior.

The teacher's opinion on a prior counts by its confidence there, the highest probability ``c`` of a class
(times the objectness, where class scores are given an object): boxes and qualities weigh ``c^2``, and sums
are divided by ``sum c^2`` over the batch. So an object counts alike in small and large images, and the
thousands of priors in the background, whose boxes mean nothing, next to nothing.
"""
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import SoftTargetLoss
from ..losses.soft_target import at_least_float32
from ..soft_heads import SoftHead
from .soft_loss import box_term, over_ranks, soft_copy, soft_term


class DenseDistiller:
    """Compares the outputs of two one-stage heads for the same features.

    Args:
        name (str): Of the head in its model.
        head (nn.Module): The student's; one of :data:`BOXES`.

    Raises:
        ValueError: If a loss of the head has no soft-target form.
    """

    def __init__(self, name: str, head: nn.Module):
        self._head = head
        self._kind = type(head).__name__
        self._class_loss = _class_loss(name, head)
        self._quality = QUALITIES.get(self._kind)
        if self._quality:
            self._quality_loss = soft_copy(getattr(head, self._quality), f'model.{name}.{self._quality}')

    def __call__(self, student: Sequence[Sequence[Tensor]],
                 teacher: Sequence[Sequence[Tensor]]) -> Dict[str, Tensor]:
        """The terms by the names of the head's own losses.

        Args:
            student (Sequence[Sequence[Tensor]]): What the head returned in train mode: maps
                (N, A * K, H, W) of each level with K scores, then those with the boxes, and so on.
            teacher (Sequence[Sequence[Tensor]]): The same of the teacher.
        """
        sizes = [level.shape[-2:] for level in student[0]]
        mine, theirs = (_flatten(self._head, outputs) for outputs in (student, teacher))
        confidence = self._confidence(theirs)
        weight = confidence**2
        total = over_ranks(weight.sum())
        terms = {'loss_cls': self._class_term(mine[0], theirs[0], weight, total)}
        for key, output in _box_outputs(self._head).items():
            boxes = [_boxes(self._head, side[output], sizes) for side in (mine, theirs)]
            terms[key] = self._box_term(_box_loss(self._head, key), *boxes, weight, total)
        if self._kind == 'GFLHead':
            terms['loss_dfl'] = self._bins_term(mine[1], theirs[1], weight, total)
        if self._quality:  # objectness counts everywhere, centerness where there is an object
            terms[self._quality] = soft_term(self._quality_loss, mine[2], theirs[2], total,
                                             None if self._has_objectness else weight)
        return terms

    def _confidence(self, teacher: List[Tensor]) -> Tensor:
        """``c`` of each prior, (N,)."""
        probability = self._class_loss.probability(teacher[0])
        confidence = probability[:, :self._head.num_classes].amax(1)
        return confidence * teacher[2].sigmoid().squeeze(1) if self._has_objectness else confidence

    def _class_term(self, student: Tensor, teacher: Tensor, weight: Tensor, total: Tensor) -> Tensor:
        hard = each = None
        if self._has_objectness:  # the classes are those of an object
            each = weight
        elif self._kind == 'SSDHead':  # its mining keeps so many negatives for each positive: on average
            background = 1 - weight
            ratio = self._head.train_cfg['neg_pos_ratio'] * weight.sum() / background.sum()
            each = weight + ratio * background
        elif hasattr(self._class_loss, 'iou_weighted'):  # varifocal: positive is what would be reported
            probability = self._class_loss.probability(teacher)
            hard = probability * (probability > self._head.test_cfg['score_thr'])
        return soft_term(self._class_loss, student, teacher, total, each, hard)

    def _bins_term(self, student: Tensor, teacher: Tensor, weight: Tensor, total: Tensor) -> Tensor:
        """KL divergence of the distributions over the bins of a side, the mean over the four sides."""
        bins = (len(student), 4, -1)
        divergence = F.kl_div(student.view(bins).log_softmax(-1), teacher.view(bins).log_softmax(-1),
                              reduction='none', log_target=True).sum(-1).mean(-1)
        return self._head.loss_dfl.loss_weight * (weight * divergence).sum() / total

    def _box_term(self, loss: Callable, student: Tensor, teacher: Tensor, weight: Tensor,
                  total: Tensor) -> Tensor:
        """The head's own box loss. Overlaps need boxes: heads such as RTMDet's may predict less than none.

        Where the teacher's sides are out of order, it teaches nothing. Where the student's are, an overlap would
        reward it for being more so, and the sides are drawn to the teacher's by their distance.
        """
        if BOXES[self._kind] is _encoded and not self._head.reg_decoded_bbox:
            return box_term(loss, student, teacher, weight, total)
        weight = weight * _in_order(teacher)
        in_order = _in_order(student)
        overlap = box_term(loss, student, teacher, weight * in_order, total)
        stray = (weight * ~in_order * _relative_distance(student, teacher)).sum() / total
        return overlap + loss.loss_weight * stray

    @property
    def _has_objectness(self) -> bool:
        return self._quality == 'loss_obj'


def _in_order(boxes: Tensor) -> Tensor:
    """Whether a box has its left side on the left and its top on top, (N,)."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def _relative_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean distance of the four sides, in mean extents of the teacher's box, (N,)."""
    extent = (teacher[:, 2:] - teacher[:, :2]).abs().mean(1).clamp(min=1e-6)
    return (student - teacher).abs().mean(1) / extent


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


def _encoded(prediction: Tensor, priors: Priors) -> Tensor:
    """Offsets to the anchors, which the loss compares as they are unless it decodes them."""
    return _from_anchors(prediction, priors) if priors.head.reg_decoded_bbox else prediction


def _from_anchors(prediction: Tensor, priors: Priors) -> Tensor:
    return priors.head.bbox_coder.decode(priors.of(prediction), prediction)


def _from_distances(prediction: Tensor, priors: Priors) -> Tensor:
    """Distances to the left, top, right and bottom, as a box around 0.

    Overlaps of two boxes at the same place depend on neither the place nor the unit (the stride).
    """
    return torch.cat([-prediction[:, :2], prediction[:, 2:]], 1)


def _from_bins(prediction: Tensor, priors: Priors) -> Tensor:
    """The means of the distributions are distances."""
    return _from_distances(priors.head.integral(prediction), priors)


def _from_centres(prediction: Tensor, priors: Priors) -> Tensor:
    return priors.head._bbox_decode(priors.of(prediction, with_stride=True), prediction)


def _corners(prediction: Tensor, priors: Priors) -> Tensor:
    return prediction


BOXES: Dict[str, Callable[[Tensor, Priors], Tensor]] = {
    **dict.fromkeys(('RetinaHead', 'RetinaSepBNHead', 'SSDHead'), _encoded),
    'ATSSHead': _from_anchors,
    **dict.fromkeys(('FCOSHead', 'VFNetHead', 'RTMDetHead', 'RTMDetSepBNHead'), _from_distances),
    'GFLHead': _from_bins,
    'TOODHead': _corners,
    'YOLOXHead': _from_centres,
}
"""What a head's box loss compares, from what the head predicts in train mode; by its exact type, since
a subclass may predict anything."""


QUALITIES = {'FCOSHead': 'loss_centerness', 'ATSSHead': 'loss_centerness', 'YOLOXHead': 'loss_obj'}
"""The loss of the third output, a number for each prior, of the heads that have one."""


def _boxes(head: nn.Module, prediction: Tensor, sizes: List[tuple]) -> Tensor:
    places = sum(_num_priors(head, level) * height * width
                 for level, (height, width) in enumerate(sizes))
    priors = Priors(head, sizes, len(prediction) // places)
    return BOXES[type(head).__name__](prediction, priors)


def _num_priors(head: nn.Module, level: int) -> int:
    """At a place of a level."""
    return head.prior_generator.num_base_priors[level]


def _flatten(head: nn.Module, outputs: Sequence[Sequence[Tensor]]) -> List[Tensor]:
    """Each output as (images * priors, K), the priors of an image level by level."""
    flat = []
    for levels in outputs:
        rows = [level.permute(0, 2, 3, 1).reshape(level.size(0), -1,
                                                  level.size(1) // _num_priors(head, index))
                for index, level in enumerate(levels)]
        flat.append(at_least_float32(torch.cat(rows, 1).flatten(0, 1)))
    return flat


def _box_outputs(head: nn.Module) -> Dict[str, int]:
    """Which of its outputs are boxes, by the name under which the head logs their loss."""
    refined = {'loss_bbox_rf': 2} if type(head).__name__ == 'VFNetHead' else {}
    return {'loss_bbox': 1, **refined}


def _box_loss(head: nn.Module, key: str) -> Callable:
    if type(head).__name__ == 'SSDHead':  # has no module
        return _smooth_l1(head.train_cfg['smoothl1_beta'])
    return head.loss_bbox_refine if key == 'loss_bbox_rf' else head.loss_bbox


def _smooth_l1(beta: float) -> Callable:
    from mmdet.models.losses import SmoothL1Loss
    return SmoothL1Loss(beta=beta)


def _class_loss(name: str, head: nn.Module) -> SoftTargetLoss:
    softened = SoftHead(name, head)  # refuses what has no soft-target form
    own: Optional[nn.Module] = getattr(head, 'loss_cls', softened.losses[0])
    loss = soft_copy(own, f'model.{name}.loss_cls')
    softened.undo()
    return loss
