"""PS-KD drop-ins for the classification losses of MMDetection.

Each class has the constructor and the call of its hard-target namesake. The formulas are in
:mod:`~mmskd.models.losses.functional`; weights, ``avg_factor`` and ignored samples are handled as
there.
"""
from typing import Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, QualityFocalLoss, VarifocalLoss
from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor

from mmskd.errors import UsageError
from mmskd.registry import MODELS

from .blockwise import soft_focal_rows
from .functional import (
    one_hot,
    pskd_binary_cross_entropy,
    pskd_cross_entropy,
    soft_focal,
    soft_loss,
    soft_quality_focal,
    soft_varifocal,
)
from .soft_target import ABOUT, FORMS, SoftTargetLoss, at_least_float32, register_soft_loss


class _DetectionLoss(SoftTargetLoss):
    forms, abouts = FORMS, ABOUT
    # The paper's form leaves ever less of the labels' gradient, which costs AP (docs/results.md)
    usual_form = 'rescaled'


@MODELS.register_module()
class PSKDCrossEntropyLoss(_DetectionLoss, CrossEntropyLoss):
    """mmdet's ``CrossEntropyLoss``, softmax or sigmoid, with the progressive target.

    A class weight is that of the sample's hard label: it says how much a sample counts, and that
    does not change because the past self had doubts. (Weighing each class of the soft target
    instead would leave a gradient where present and past self agree.)

    Args: As ``mmdet.CrossEntropyLoss``. ``use_mask=True`` has no class target and is refused.

    Raises:
        ValueError: If ``use_mask`` is set.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.use_mask:
            raise UsageError('PSKDCrossEntropyLoss: use_mask=True is a mask loss without a class '
                             'target; keep CrossEntropyLoss there')

    def forward(self, cls_score: Tensor, label: Tensor, weight: Optional[Tensor] = None,
                avg_factor: Optional[float] = None, reduction_override: Optional[str] = None,
                ignore_index: Optional[int] = None, **kwargs) -> Tensor:
        """As ``mmdet.CrossEntropyLoss``.

        Args:
            cls_score (Tensor | Pair): Logits (N, C); softmax: background is the last class.
            label (Tensor): Class indices (N,), or targets (N, C) for sigmoid.
            weight (Tensor, optional): Sample weights, (N,) (or (N, C) for (N, C) targets).
            avg_factor (float, optional): What a mean divides by. Defaults to the number of
                elements.
            reduction_override (str, optional): 'none', 'mean' or 'sum'.
            ignore_index (int, optional): Label without loss. Defaults to that of the constructor.
            **kwargs: As the stock loss takes them.

        Returns:
            Tensor: The loss.
        """
        cls_score, past = self.split(cls_score)
        if past is None:
            return super().forward(cls_score, label, weight, avg_factor, reduction_override,
                                   ignore_index, **kwargs)
        ignore_index = self.ignore_index if ignore_index is None else ignore_index
        ignore_index = -100 if ignore_index is None else ignore_index
        reduction = reduction_override or self.reduction
        cls_score = at_least_float32(cls_score)
        soft = self._sigmoid if self.use_sigmoid else self._softmax
        loss, valid = soft(cls_score, label, past, ignore_index)
        if avg_factor is None and self.avg_non_ignore and reduction == 'mean':
            avg_factor = valid.sum().item()
        if weight is not None and weight.dim() < loss.dim():
            weight = weight.unsqueeze(-1)
        weight = valid.to(loss) if weight is None else weight.float() * valid
        return self.loss_weight * _reduce(loss, weight, reduction, avg_factor)

    def probability(self, pred: Tensor) -> Tensor:
        return pred.sigmoid() if self.use_sigmoid else pred.softmax(-1)

    @classmethod
    def takes(cls, loss: CrossEntropyLoss) -> bool:
        """All but the loss of masks."""
        return not loss.use_mask

    def confidence(self, past: Tensor, hard: Tensor) -> Tensor:
        """As the others; but a softmax needs all scores for a probability."""
        if self.use_sigmoid:
            return super().confidence(past, hard)
        return self.probability(past)[:, :self.count_foreground(past)].amax(-1, keepdim=True)

    def count_foreground(self, past: Tensor) -> int:
        """Softmax: all but the last, which is background, if nothing else is known."""
        if self.use_sigmoid or self.foreground is not None:
            return super().count_foreground(past)
        return past.size(-1) - 1

    def _softmax(self, logits: Tensor, labels: Tensor, past: Tensor,
                 ignore_index: int) -> Tuple[Tensor, Tensor]:
        """Loss (N,) and which samples are not ignored, bool (N,)."""
        valid = labels != ignore_index
        alpha_t = self.alpha_of(past, labels)
        loss = pskd_cross_entropy(logits, labels, past, alpha_t, self.form)
        if self.class_weight is not None:
            class_weight = self._class_weights(logits)
            loss = loss * class_weight[labels.clamp(0, logits.size(1) - 1)]
        return loss, valid

    def _sigmoid(self, logits: Tensor, labels: Tensor, past: Tensor,
                 ignore_index: int) -> Tuple[Tensor, Tensor]:
        """Loss (N, C) and which elements are not ignored, bool (N, C)."""
        valid = (labels >= 0) & (labels != ignore_index)
        hard = labels.to(logits)
        if labels.dim() < logits.dim():
            valid = valid.unsqueeze(-1).expand_as(logits)
            hard = one_hot(labels, logits.size(-1), logits.dtype) * valid
        alpha_t = self.alpha_of(past, hard)
        loss = pskd_binary_cross_entropy(logits, hard, past, alpha_t, self.form)
        if self.class_weight is not None:  # stock: pos_weight, a factor of the positive part
            factor = self._class_weights(logits)
            weight = 1 + (factor - 1) * hard
            # The positive part of a label between 0 and 1, as that of an IoU, is not all of it
            rest = F.binary_cross_entropy_with_logits(
                logits, hard, pos_weight=factor, reduction='none') - weight * (
                    F.binary_cross_entropy_with_logits(logits, hard, reduction='none'))
            share = soft_loss(self.form, torch.ones_like(hard), torch.zeros_like(hard), alpha_t,
                              lambda hard_share: hard_share, lambda hard_share: hard_share)
            loss = loss * weight + share * rest
        return loss, valid

    def _class_weights(self, logits: Tensor) -> Tensor:
        return torch.as_tensor(self.class_weight, dtype=logits.dtype, device=logits.device)


@MODELS.register_module()
class PSKDFocalLoss(_DetectionLoss, FocalLoss):
    """mmdet's ``FocalLoss`` with the progressive target (see ``functional.pskd_focal``).

    Args: As ``mmdet.FocalLoss``.
    """

    def forward(self, pred: Tensor, target: Tensor, weight: Optional[Tensor] = None,
                avg_factor: Optional[float] = None,
                reduction_override: Optional[str] = None) -> Tensor:
        """As ``mmdet.FocalLoss``.

        Args:
            pred (Tensor | Pair): Logits (N, C), or probabilities if ``activated``.
            target (Tensor): Class indices (N,), where C is background, or targets (N, C).
            weight (Tensor, optional): (N,), (N, C) or (N * C,).
            avg_factor (float, optional): What a mean divides by. Defaults to the number of
                elements.
            reduction_override (str, optional): 'none', 'mean' or 'sum'.

        Returns:
            Tensor: The loss.
        """
        pred, past = self.split(pred)
        if past is None:
            return super().forward(pred, target, weight, avg_factor, reduction_override)
        pred = at_least_float32(pred)
        reduction = reduction_override or self.reduction
        alpha_t = self.alpha_of(past, target)
        if self._sums_rows(pred, weight, reduction):
            rows = soft_focal_rows(pred, target, past, alpha_t, self.gamma, self.alpha, self.form)
            if reduction == 'mean' and avg_factor is None:
                rows = rows / pred.size(1)
            return self.loss_weight * _reduce(rows, weight, reduction, avg_factor)
        hard = target.to(pred) if target.dim() == pred.dim() else one_hot(
            target, pred.size(1), pred.dtype)
        loss = soft_focal(pred, hard, self.probability(past), alpha_t, self.gamma, self.alpha,
                          self.activated, self.form)
        if weight is not None and weight.shape != loss.shape:
            per_sample = weight.size(0) == loss.size(0)
            weight = weight.view(-1, 1) if per_sample else weight.view(loss.size(0), -1)
        return self.loss_weight * _reduce(loss, weight, reduction, avg_factor)

    def probability(self, pred: Tensor) -> Tensor:
        return pred if self.activated else pred.sigmoid()

    def _sums_rows(self, pred: Tensor, weight: Optional[Tensor], reduction: str) -> bool:
        """Whether the sums over the classes are enough: then it is done block by block."""
        per_sample = weight is None or weight.shape == pred.shape[:1]
        return (per_sample and pred.dim() == 2 and reduction != 'none' and self.gamma >= 1
                and not self.activated)


@MODELS.register_module()
class PSKDQualityFocalLoss(_DetectionLoss, QualityFocalLoss):
    """mmdet's ``QualityFocalLoss`` (GFL, RTMDet, TOOD) with the progressive target.

    The hard target is the IoU-aware one: the quality at the positive's class, 0 elsewhere.

    Args: As ``mmdet.QualityFocalLoss``.
    """

    def forward(self, pred: Tensor, target: Union[Tensor, Tuple[Tensor, Tensor]],
                weight: Optional[Tensor] = None, avg_factor: Optional[float] = None,
                reduction_override: Optional[str] = None) -> Tensor:
        """As ``mmdet.QualityFocalLoss``.

        Args:
            pred (Tensor | Pair): Logits (N, C), or probabilities if ``activated``.
            target (tuple[Tensor] | Tensor): Labels (N,) and qualities (N,), or targets (N, C).
            weight (Tensor, optional): (N,).
            avg_factor (float, optional): What a mean divides by. Defaults to N.
            reduction_override (str, optional): 'none', 'mean' or 'sum'.

        Returns:
            Tensor: The loss.
        """
        pred, past = self.split(pred)
        if past is None:
            return super().forward(pred, target, weight, avg_factor, reduction_override)
        pred = at_least_float32(pred)
        if isinstance(target, Tensor):
            hard = labels = target.to(pred)
        else:
            labels, quality = target
            hard = one_hot(labels, pred.size(1), pred.dtype) * quality.to(pred).unsqueeze(-1)
        loss = soft_quality_focal(pred, hard, self.probability(past), self.alpha_of(past, labels),
                                  self.beta, self.activated, self.form).sum(1)
        return self.loss_weight * _reduce(loss, weight, reduction_override or self.reduction,
                                          avg_factor)

    def probability(self, pred: Tensor) -> Tensor:
        return pred if self.activated else pred.sigmoid()


@MODELS.register_module()
class PSKDVarifocalLoss(_DetectionLoss, VarifocalLoss):
    """mmdet's ``VarifocalLoss`` (VFNet) with the progressive target.

    Who is positive stays with the hard target (see ``functional.varifocal_to_target``).

    Args: As ``mmdet.VarifocalLoss``.
    """

    def forward(self, pred: Tensor, target: Tensor, weight: Optional[Tensor] = None,
                avg_factor: Optional[float] = None,
                reduction_override: Optional[str] = None) -> Tensor:
        """As ``mmdet.VarifocalLoss``.

        Args:
            pred (Tensor | Pair): Logits (N, C).
            target (Tensor): IoU-aware targets (N, C).
            weight (Tensor, optional): (N, C), or broadcastable to it.
            avg_factor (float, optional): What a mean divides by. Defaults to the number of
                elements.
            reduction_override (str, optional): 'none', 'mean' or 'sum'.

        Returns:
            Tensor: The loss.
        """
        pred, past = self.split(pred)
        if past is None:
            return super().forward(pred, target, weight, avg_factor, reduction_override)
        pred = at_least_float32(pred)
        hard = target.to(pred)
        loss = soft_varifocal(pred, hard, self.probability(past), self.alpha_of(past, hard),
                              self.alpha, self.gamma, self.iou_weighted, self.form)
        return self.loss_weight * _reduce(loss, weight, reduction_override or self.reduction,
                                          avg_factor)

    def probability(self, pred: Tensor) -> Tensor:
        return pred.sigmoid()


def _reduce(loss: Tensor, weight: Optional[Tensor], reduction: str,
            avg_factor: Optional[float]) -> Tensor:
    """As MMDetection does it; but the mean of nothing is 0, not NaN."""
    if not loss.numel() and avg_factor is None and reduction == 'mean':
        reduction = 'sum'
    return weight_reduce_loss(loss, weight, reduction, avg_factor)


for _stock, _soft in ((CrossEntropyLoss, PSKDCrossEntropyLoss), (FocalLoss, PSKDFocalLoss),
                      (QualityFocalLoss, PSKDQualityFocalLoss),
                      (VarifocalLoss, PSKDVarifocalLoss)):
    register_soft_loss(_stock, _soft)
