"""PS-KD drop-ins for the softmax losses of MMPreTrain.

Imported where one of these is met: that package need not be there.
"""
from typing import Optional

import torch
from mmpretrain.models.losses import CrossEntropyLoss, LabelSmoothLoss
from mmpretrain.models.losses.utils import weight_reduce_loss
from torch import Tensor

from .pskd_classification import SoftmaxLoss
from .soft_target import at_least_float32, register_soft_loss

IGNORED = -100  # torch's default, which MMPreTrain leaves as it is


class _SoftenedSoftmax(SoftmaxLoss):
    """As :class:`~mmskd.models.losses.pskd_classification.PSKDTorchCrossEntropyLoss`.

    With the call of MMPreTrain's losses.
    """

    def forward(self, cls_score: Tensor, label: Tensor, weight: Optional[Tensor] = None,
                avg_factor: Optional[float] = None, reduction_override: Optional[str] = None,
                **kwargs) -> Tensor:
        """As the stock loss.

        Args:
            cls_score (Tensor | Pair): Logits (N, C).
            label (Tensor): Class indices (N,) or (N, 1), or soft labels (N, C) (mixup, CutMix).
            weight (Tensor, optional): Sample weights (N,).
            avg_factor (float, optional): What a mean divides by. Defaults to the number of samples.
            reduction_override (str, optional): 'none', 'mean' or 'sum'.
            **kwargs: As the stock loss takes them.

        Returns:
            Tensor: The loss.
        """
        logits, past = self.split(cls_score)
        if past is None:
            return super().forward(logits, label, weight, avg_factor, reduction_override, **kwargs)
        logits = at_least_float32(logits)
        hard = super().forward(logits, label, reduction_override='none', **kwargs)
        loss = self.soften(hard, logits, past, self.loss_weight * self._weigh(logits, label))
        return weight_reduce_loss(loss, None if weight is None else weight.float(),
                                  reduction_override or self.reduction, avg_factor)

    def _weigh(self, logits: Tensor, label: Tensor) -> Tensor:
        """The class weight of each sample, (N,); 0 where it is ignored."""
        given = self._inner(self).class_weight
        classes = logits.new_ones(logits.size(1)) if given is None else logits.new_tensor(given)
        if label.shape == logits.shape:
            return (label.to(logits) * classes).sum(1)
        label = label.view(-1)
        return classes[label.clamp(0, logits.size(1) - 1)] * (label != IGNORED)

    @classmethod
    def takes(cls, loss: torch.nn.Module) -> bool:
        """A softmax alone: sigmoids classify each class for itself."""
        return not cls._inner(loss).use_sigmoid

    @staticmethod
    def _inner(loss: torch.nn.Module) -> CrossEntropyLoss:
        """The loss that has the class weights."""
        return getattr(loss, 'ce', loss)


class PSKDClsCrossEntropyLoss(_SoftenedSoftmax, CrossEntropyLoss):
    """mmpretrain's ``CrossEntropyLoss`` of a softmax, with the progressive target."""


class PSKDLabelSmoothLoss(_SoftenedSoftmax, LabelSmoothLoss):
    """mmpretrain's ``LabelSmoothLoss``: the past self is mixed into the smoothed label."""


register_soft_loss(CrossEntropyLoss, PSKDClsCrossEntropyLoss)
register_soft_loss(LabelSmoothLoss, PSKDLabelSmoothLoss)
