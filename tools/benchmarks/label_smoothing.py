"""Label smoothing for detectors, to compare with: losses in the place of mmdet's.

Configs import it by ``custom_imports = dict(imports=['benchmarks.label_smoothing'])``, which
tools/train.py finds.
"""
from typing import Optional

import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss, FocalLoss
from mmdet.models.losses.utils import weight_reduce_loss
from mmengine.registry import MODELS
from torch import Tensor

from mmskd.models.losses.functional import focal_to_target


@MODELS.register_module()
class SmoothedFocalLoss(FocalLoss):
    """Focal loss whose positives have smoothed targets.

    A positive's target is ``1 - smoothing / 2`` for its class and ``smoothing / 2`` for the others,
    as in YOLO; background stays 0, for there are hundreds of times more of it. The loss of a soft
    target is ``(a y + (1 - a)(1 - y)) |y - p|^gamma BCE(z, y)``.

    Args:
        smoothing (float): Between 0 and 1. Defaults to 0.1.
        kwargs: Of mmdet's FocalLoss.
    """

    def __init__(self, smoothing: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        self.smoothing = smoothing

    def forward(self, pred: Tensor, target: Tensor, weight: Optional[Tensor] = None,
                avg_factor: Optional[float] = None,
                reduction_override: Optional[str] = None) -> Tensor:
        """As mmdet's: logits (N, C), labels (N,), C is background; weights (N,) or (N, C)."""
        num_classes = pred.size(1)
        hard = F.one_hot(target, num_classes + 1)[:, :num_classes].type_as(pred)
        positive = hard.sum(1, keepdim=True)
        soft = hard * (1 - self.smoothing) + positive * self.smoothing / 2
        loss = focal_to_target(pred, soft, self.gamma, self.alpha)
        if weight is not None and weight.dim() == 1:
            weight = weight[:, None].expand_as(loss)
        return self.loss_weight * weight_reduce_loss(
            loss, weight, reduction_override or self.reduction, avg_factor)


@MODELS.register_module()
class SmoothedCrossEntropyLoss(CrossEntropyLoss):
    """Softmax cross entropy with smoothed labels, ``(1 - smoothing) y + smoothing / (C + 1)``.

    Args:
        smoothing (float): Between 0 and 1. Defaults to 0.1.
        kwargs: Of mmdet's CrossEntropyLoss.
    """

    def __init__(self, smoothing: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        self.smoothing = smoothing

    def forward(self, cls_score: Tensor, label: Tensor, weight: Optional[Tensor] = None,
                avg_factor: Optional[float] = None, reduction_override: Optional[str] = None,
                **kwargs) -> Tensor:
        """As mmdet's: logits (N, C + 1), labels (N,), weights (N,)."""
        loss = F.cross_entropy(cls_score, label, label_smoothing=self.smoothing, reduction='none')
        return self.loss_weight * weight_reduce_loss(
            loss, weight, reduction_override or self.reduction, avg_factor)
