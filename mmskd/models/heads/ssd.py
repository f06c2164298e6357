"""SSD's head: a softmax over the classes and the background, by a function and not by a module."""
from typing import Callable, Dict

import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.soft_target import SoftTargetLoss, soft_form
from .adapter import register_head
from .retina import RetinaAdapter


@register_head('SSDHead')
class SSDAdapter(RetinaAdapter):
    """It keeps the negatives with the largest losses, so many for each positive."""

    beside = ('reg_convs', )

    def loss_functions(self) -> Dict[Callable, nn.Module]:
        from ..losses import PSKDCrossEntropyLoss
        return {F.cross_entropy: PSKDCrossEntropyLoss()}

    def class_loss(self) -> SoftTargetLoss:
        loss, = self.loss_functions().values()
        return soft_form(loss)

    def box_losses(self) -> Dict[str, Callable]:
        from mmdet.models.losses import SmoothL1Loss
        return {'loss_bbox': SmoothL1Loss(beta=self.head.train_cfg['smoothl1_beta'])}

    def class_weights(self, confidence: Tensor) -> Tensor:
        """What its mining keeps, on average."""
        background = 1 - confidence
        ratio = self.head.train_cfg['neg_pos_ratio'] * confidence.sum() / background.sum()
        return confidence + ratio * background
