"""Reading the call of a softmax loss.

What is classified, by which labels, and how much it counts.
"""
from typing import Any, List, NamedTuple, Optional

import torch
from torch import Tensor, nn

from ..pairing import map_leaves, student_side


class SoftmaxCall(NamedTuple):
    """Samples that are classified by one softmax each.

    Attributes:
        logits (Any): (N, C).
        labels (Tensor): (N,), one outside of [0, C) does not count; or (N, C).
        weight (Tensor, optional): (N,).
        avg_factor (float, optional): What the sum is divided by.
    """
    logits: Any
    labels: Tensor
    weight: Optional[Tensor]
    avg_factor: Optional[float]


def read_softmax_calls(loss: nn.Module, args: tuple, kwargs: dict) -> List[SoftmaxCall]:
    """The classifications in a call of a loss of torch, mmpretrain, mmdet or mmpose.

    The logits are the student's, if they carry a teacher's.

    Args:
        loss (nn.Module): What is called: with (logits, labels, weight, avg_factor), or mmpose's
            ``KLDiscretLoss`` with (bins of x and of y, labels, weights of keypoints), in which each
            keypoint is classified once for each axis and its class is the bin with the largest
            label.
        args (tuple): Of the call.
        kwargs (dict): Of the call.

    Returns:
        list[SoftmaxCall]: One, or for SimCC that of x and that of y. Class weights of the loss are
        weights of the samples; SimCC's logits are multiplied by its ``beta``. Empty if it was not
        called as a loss.
    """
    if len(args) < 2:
        return []
    if is_simcc_loss(loss):
        return _simcc_calls(loss, *args[:3])
    logits, labels = student_side(args[0]), args[1]
    weight = kwargs.get('weight', args[2] if len(args) > 2 else None)
    avg_factor = kwargs.get('avg_factor', args[3] if len(args) > 3 else None)
    class_weight = getattr(loss, 'class_weight', None)
    if class_weight is not None and isinstance(logits, Tensor) and labels.dim() == 1:
        of_label = torch.as_tensor(class_weight).to(logits)[labels.clamp(0, logits.size(1) - 1)]
        weight = of_label if weight is None else weight * of_label
    return [SoftmaxCall(logits, labels, weight, avg_factor)]


def softmax_logits(loss: nn.Module, prediction: Any) -> List[Any]:
    """The logits (N, C) of each classification, from a prediction as the loss is given it.

    SimCC has two.
    """
    if is_simcc_loss(loss):
        return [axis.flatten(0, 1) * loss.beta for axis in prediction]
    return [prediction]


def is_simcc_loss(loss: nn.Module) -> bool:
    """Whether a loss of MMPose compares distributions over bins."""
    return hasattr(loss, 'label_softmax')


def is_softmax_loss(loss: nn.Module) -> bool:
    """Whether a loss classifies by a softmax over classes or bins.

    Not by sigmoids, and not by heatmaps.
    """
    sigmoid = getattr(loss, 'use_sigmoid', False) or isinstance(loss, nn.BCEWithLogitsLoss)
    return is_simcc_loss(loss) or not (sigmoid or hasattr(loss, 'use_target_weight'))


def _simcc_calls(loss: nn.Module, bins: Any, labels: Any, weight: Tensor) -> List[SoftmaxCall]:
    weight = weight if loss.use_target_weight else weight.new_ones(weight.shape)
    if loss.mask is not None:
        weight = weight.clone()
        weight[:, loss.mask] *= loss.mask_weight
    logits = softmax_logits(loss, map_leaves(student_side, bins))
    return [SoftmaxCall(axis, _largest(label.flatten(0, 1)), weight.flatten(), None)
            for axis, label in zip(logits, labels)]


def _largest(labels: Tensor) -> Tensor:
    """Index of the largest label in each row of (N, C); -1 where there is none."""
    value, index = labels.max(1)
    return index.masked_fill(value <= 0, -1)
