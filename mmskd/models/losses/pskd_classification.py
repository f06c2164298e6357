"""PS-KD drop-in for the softmax loss of torch, and what it shares with those of MMPreTrain."""
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmskd.registry import MODELS

from .functional import soft_loss
from .soft_target import FORMS, SoftTargetLoss, at_least_float32, register_soft_loss


class SoftmaxLoss(SoftTargetLoss):
    """A softmax loss of samples of which each is of one class, and none is background.

    So all are positive, and ``about`` knows no 'positives'.
    """

    forms, abouts = FORMS, ('all', 'confidence')
    usual_form = 'rescaled'  # has a lower error than the paper's (docs/results.md)

    def probability(self, pred: Tensor) -> Tensor:
        return pred.softmax(_class_axis(pred))

    def confidence(self, past: Tensor, hard: Tensor) -> Tensor:
        """The largest probability of a class, of each sample: (N, ...)."""
        return self.probability(past).amax(_class_axis(past))

    def soften(self, hard: Tensor, logits: Tensor, past: Tensor, weight: Tensor) -> Tensor:
        """The loss to the hard target and the past self, in the form that is asked for.

        Args:
            hard (Tensor): The stock loss of each sample, (N, ...).
            logits (Tensor): (N, C, ...).
            past (Tensor): The past self's logits, same shape.
            weight (Tensor): How much each sample counts, (N, ...).

        Returns:
            Tensor: Of each sample, (N, ...).
        """
        axis = _class_axis(logits)
        prob, logs = past.softmax(axis), logits.log_softmax(axis)
        entropy = torch.xlogy(prob, prob).sum(axis) * weight
        soft = -(prob * logs).sum(axis) * weight
        # Linear in the target, so that the place between y (0) and q (1) is enough to know of it
        return soft_loss(self.form, torch.zeros_like(hard), torch.ones_like(hard),
                         self.alpha_of(past, hard), lambda place: (1 - place) * hard + place * soft,
                         lambda place: entropy + soft)


@MODELS.register_module()
class PSKDTorchCrossEntropyLoss(SoftmaxLoss, nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` with the progressive target.

    Kim et al., ICCV 2021, eq. (3) and (4).
    ``(1 - alpha_t) CE(z, y) + alpha_t w CE(z, softmax(past))``: the loss is linear in the target,
    so mixing losses is mixing targets. ``CE(z, y)`` is that of torch, with its smoothing, class
    weights and ignored samples. w is the class weight of the sample's hard label (of soft labels,
    the mean over them), and 0 where it is ignored: a sample counts as much as without a past self,
    and has no gradient where alpha_t is 1 and past and present self agree.

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
        logits = at_least_float32(logits)
        target = target.to(logits) if target.is_floating_point() else target
        classes = None if self.weight is None else self.weight.to(logits)
        hard = F.cross_entropy(logits, target, classes, ignore_index=self.ignore_index,
                               reduction='none', label_smoothing=self.label_smoothing)
        weight, count = self._weigh(logits, target)
        loss = self.soften(hard, logits, past, weight)
        if self.reduction == 'none':
            return loss
        if self.reduction == 'mean':  # of no samples 0, where torch has NaN
            return loss.sum() / count.clamp(min=torch.finfo(count.dtype).tiny)
        return loss.sum()

    def _weigh(self, logits: Tensor, target: Tensor) -> Tuple[Tensor, Tensor]:
        """The weight of each sample, and what torch divides the sum of their losses by."""
        axis = _class_axis(logits)
        if target.shape == logits.shape:
            classes = logits.new_ones(logits.size(axis)) if self.weight is None else self.weight
            weight = (target.movedim(axis, -1) * classes.to(logits)).sum(-1)
            return weight, weight.new_tensor(weight.numel())
        weight = (target != self.ignore_index).to(logits)
        if self.weight is not None:
            weight = weight * self.weight.to(logits)[target.clamp(0, logits.size(axis) - 1)]
        return weight, weight.sum()


def _class_axis(logits: Tensor) -> int:
    return min(logits.dim() - 1, 1)


register_soft_loss(nn.CrossEntropyLoss, PSKDTorchCrossEntropyLoss)
