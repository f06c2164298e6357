"""The head's own losses, with the teacher's prediction for a target."""
from typing import Optional

from torch import Tensor

from ..losses import SoftTargetLoss
from ..losses.boxes import excess
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
