"""PS-KD drop-in for the softmax loss of torch."""
from typing import Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from mmskd.registry import MODELS
from .soft_target import SoftTargetLoss, at_least_float32, register_soft_loss


@MODELS.register_module()
class PSKDTorchCrossEntropyLoss(SoftTargetLoss, nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` with the progressive target, (Kim et al., ICCV 2021, eq. (3) and (4)).

    ``(1 - alpha_t) CE(z, y) + alpha_t w CE(z, softmax(past))``: the loss is linear in the target, so mixing
    losses is mixing targets. ``CE(z, y)`` is that of torch, with its smoothing, class weights and ignored
    samples. w is the class weight of the sample's hard label (of soft labels, the mean over them), and 0 where
    it is ignored: a sample counts as much as without a past self, and has no gradient where alpha_t is 1 and
    past and present self agree.

    Args: As ``torch.nn.CrossEntropyLoss``.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As ``torch.nn.CrossEntropyLoss``.

        Args:
            input (Tensor | Pair): Logits (N, C, ...), or (C,).
            target (Tensor): Class indices (N, ...), or probabilities of the shape of the logits.

        Returns:
            Tensor: The loss, a scalar; with ``reduction='none'`` of each sample, (N, ...).
        """
        logits, past = self.split(input)
        if past is None:
            return super().forward(logits, target)
        logits, axis = at_least_float32(logits), _class_axis(logits)
        target = target.to(logits) if target.is_floating_point() else target
        hard = F.cross_entropy(logits, target, self.weight, ignore_index=self.ignore_index,
                               reduction='none', label_smoothing=self.label_smoothing)
        weight, count = self._weigh(logits, target, axis)
        soft = -(past.softmax(axis) * logits.log_softmax(axis)).sum(axis) * weight
        loss = (1 - self.alpha_t) * hard + self.alpha_t * soft
        if self.reduction == 'none':
            return loss
        return loss.sum() / count if self.reduction == 'mean' else loss.sum()

    def probability(self, pred: Tensor) -> Tensor:
        return pred.softmax(_class_axis(pred))

    def _weigh(self, logits: Tensor, target: Tensor, axis: int) -> Tuple[Tensor, Tensor]:
        """The weight of each sample, and what torch divides the sum of their losses by."""
        if target.shape == logits.shape:
            classes = logits.new_ones(logits.size(axis)) if self.weight is None else self.weight
            weight = (target.movedim(axis, -1) * classes.to(logits)).sum(-1)
            return weight, logits.new_tensor(weight.numel())
        weight = (target != self.ignore_index).to(logits)
        if self.weight is not None:
            weight = weight * self.weight.to(logits)[target.clamp(0, logits.size(axis) - 1)]
        return weight, weight.sum()


def _class_axis(logits: Tensor) -> int:
    return min(logits.dim() - 1, 1)


register_soft_loss(nn.CrossEntropyLoss, PSKDTorchCrossEntropyLoss)
