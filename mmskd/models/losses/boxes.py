"""Boxes of a student beside those of a teacher, for both stages of distillation."""
from typing import Any, Callable, NamedTuple, Sequence

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmskd.options import Options
from mmskd.registry import MODELS

from .functional import bins_kl
from .soft_target import at_least_float32

TINY = 1e-9  # the least area that GIoULoss divides by; boxes of queries are fractions of an image
SAME = 1e-5  # of the extent of a box: sides that are closer than this are the same but for rounding


class BoxLesson(NamedTuple):
    """What a teacher says about boxes, row by row those of the student.

    Attributes:
        student (Tensor): Corners (N, 4), in any unit and from any origin; or logits over B bins for
            the distances to the four sides, (N, 4, B).
        teacher (Tensor): The same of the teacher.
        weight (Tensor): How much a row counts, by the teacher's scores, (N,).
    """
    student: Tensor
    teacher: Tensor
    weight: Tensor


@MODELS.register_module()
class BoxDistillLoss(nn.Module):
    """The teacher's boxes for a target, each as far as the teacher is sure of its class.

    ``weight * sum_i c_i d(s_i, t_i) / sum_i c_i``, where ``c`` has no gradient and its sum is the
    mean over the ranks, at least 1. ``d`` is ``1 - GIoU`` of the decoded boxes (Rezatofighi et al.,
    CVPR 2019; as CrossKD, Wang et al., CVPR 2024); for heads that predict B bins it is
    ``tau^2 KL(t || s) / B`` at temperature ``tau``, the mean over the four sides (LD, Zheng et al.,
    CVPR 2022; the division is that of the authors' code).

    ``c`` of a prior or a query is the square of the teacher's highest class score (times the
    objectness, where there is one): so the thousands of places in the background, whose boxes mean
    nothing, count next to nothing. A RoI has a box for each class, which counts by the probability
    of that class.

    Args:
        weight (float): Factor. Defaults to 1.0, CrossKD's for overlaps; for bins LD has 0.25, and
            CrossKD 4 with ``tau`` 1.
        tau (float): Temperature of bins. Defaults to 10.0, LD's.

    Raises:
        UsageError: If an option is of another type or out of range.
    """
    log_name = 'loss_box'

    def __init__(self, weight: float = 1.0, tau: float = 10.0):
        super().__init__()
        options = Options('BoxDistillLoss')
        self.weight = options.number('weight', weight, least=0)
        self.tau = options.number('tau', tau, above=0)

    def forward(self, lessons: Sequence[BoxLesson]) -> Tensor:
        """The sum over what a head says about its boxes, one after the other.

        Args:
            lessons (Sequence[BoxLesson]): As the adapter of the head reads them off its outputs.

        Returns:
            Tensor: The loss, a scalar; 0 where both agree.
        """
        return self.weight * torch.stack([self.compare(lesson) for lesson in lessons]).sum()

    def compare(self, lesson: BoxLesson) -> Tensor:
        """``sum_i c_i d(s_i, t_i) / sum_i c_i``."""
        student, teacher, weight = (at_least_float32(side) for side in lesson)
        teacher, weight = teacher.detach(), weight.detach()
        total = over_ranks(weight.sum())
        if student.dim() == 3:
            divergence = bins_kl(student, teacher, self.tau) / student.size(-1)
            return (weight * divergence).sum() / total
        from mmdet.models.losses import GIoULoss
        return overlap_term(GIoULoss(eps=TINY), student, teacher, weight, total)


def overlap_term(loss: Any, student: Tensor, teacher: Tensor, weight: Tensor,
                 total: Tensor) -> Tensor:
    """A loss of overlaps. These need boxes: heads such as RTMDet's may predict less than none.

    Where the teacher's sides are out of order, it teaches nothing. Where the student's are, an
    overlap would reward it for being more so, and the sides are drawn to the teacher's by their
    distance. Where both agree, an overlap has a kink, at which rounding would make a gradient.

    Args:
        loss (Callable): As mmdet's losses of overlaps.
        student (Tensor): Corners (N, 4).
        teacher (Tensor): The same of the teacher.
        weight (Tensor): Of the boxes, (N,).
        total (Tensor): What the sum is divided by.

    Returns:
        Tensor: Scalar; 0 where both agree.
    """
    distance, in_order = _relative_distance(student, teacher), _in_order(student)
    weight = weight * _in_order(teacher) * (distance > SAME)
    overlap = box_term(loss, student, teacher, weight * in_order, total)
    stray = (weight * ~in_order * distance).sum() / total
    return overlap + loss.loss_weight * stray


def box_term(loss: Callable, student: Tensor, teacher: Tensor, weight: Tensor,
             avg_factor: Tensor) -> Tensor:
    """A box loss to the teacher's boxes, less what the teacher itself has.

    Args:
        loss (Callable): As mmdet's box losses, of distances or of overlaps.
        student (Tensor): What the loss is given, (N, 4).
        teacher (Tensor): The same of the teacher.
        weight (Tensor): Of the boxes, (N,).
        avg_factor (Tensor): What the sum is divided by.

    Returns:
        Tensor: Scalar; 0 where both agree.
    """
    weight = weight.unsqueeze(-1).expand_as(teacher)
    return excess(lambda prediction: loss(prediction, teacher, weight, avg_factor=avg_factor,
                                          reduction_override='mean'), student, teacher)


def excess(loss: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    """How much more the student loses than the teacher would."""
    with torch.no_grad():
        least = loss(teacher)
    return loss(student) - least


def over_ranks(total: Tensor) -> Tensor:
    """A factor to average by: the mean over the processes, at least 1, as mmdet's heads have it."""
    total = at_least_float32(total.detach())
    all_reduce(total, 'mean')
    return total.clamp(min=1)


def _in_order(boxes: Tensor) -> Tensor:
    """Whether a box has its left side on the left and its top on top, (N,)."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def _relative_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean distance of the four sides, in mean extents of the teacher's box, (N,)."""
    extent = (teacher[:, 2:] - teacher[:, :2]).abs().mean(1).clamp(min=1e-6)
    return (student - teacher).abs().mean(1) / extent
