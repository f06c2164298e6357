"""The head's own losses, with the teacher's prediction for a target."""
from typing import Callable, Optional

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from ..losses import SoftTargetLoss
from ..pairing import pair


def soft_term(loss: SoftTargetLoss, student: Tensor, teacher: Tensor, avg_factor: Tensor,
              weight: Optional[Tensor] = None, hard: Optional[Tensor] = None) -> Tensor:
    """A soft-target loss, less what the teacher itself has: for a cross entropy the KL divergence.

    Args:
        loss (SoftTargetLoss): As :func:`~mmskd.models.losses.soft_form` made it.
        student (Tensor): (N, C), as the loss expects it (logits; probabilities for TOOD).
        teacher (Tensor): The same of the teacher.
        avg_factor (Tensor): What the sum is divided by.
        weight (Tensor, optional): Of the samples, (N,). Defaults to None, 1.
        hard (Tensor, optional): What a loss that looks at the hard target is shown. Defaults to the
            teacher's probabilities, or its best class for a softmax.

    Returns:
        Tensor: Scalar; 0, and without gradient, where student and teacher agree.
    """
    if hard is None:
        softmax = not getattr(loss, 'use_sigmoid', True)
        hard = teacher.argmax(-1) if softmax else loss.probability(teacher)
    return excess(lambda prediction: loss(pair(prediction, teacher), hard, weight,
                                          avg_factor=avg_factor, reduction_override='mean'),
                  student, teacher)


def box_term(loss: Callable, student: Tensor, teacher: Tensor, weight: Tensor,
             avg_factor: Tensor) -> Tensor:
    """The head's own box loss to the teacher's boxes.

    Args:
        loss (Callable): As mmdet's box losses, of distances or of overlaps.
        student (Tensor): What the head gives it, (N, 4).
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
    """A factor to average by: the mean over the processes, at least 1, as mmdet's heads count theirs."""
    total = total.detach().float()
    all_reduce(total, 'mean')
    return total.clamp(min=1)
