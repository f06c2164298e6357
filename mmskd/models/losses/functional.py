"""The soft-target losses as plain tensor functions, to be read against the papers.

Every method mixes the hard target ``y`` with a teacher's prediction ``q`` of the same thing,
``y_soft = (1 - alpha) y + alpha q``. In PS-KD (Kim et al., "Self-Knowledge Distillation with Progressive
Refinement of Targets", ICCV 2021) ``q`` is the model's own prediction one epoch ago, eq. (3) and (4) there.

No function keeps state. No gradient flows into the past prediction.
"""
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def progressive_target(hard: Tensor, past_prob: Tensor, alpha_t: float) -> Tensor:
    """Soften a hard target with the past prediction: ``(1 - alpha_t) hard + alpha_t past``.

    Args:
        hard (Tensor): Targets in [0, 1], any shape.
        past_prob (Tensor): Past probabilities of the same shape. Detached here.
        alpha_t (float): Weight of the past self in [0, 1].

    Returns:
        Tensor: Soft target of the same shape.
    """
    return (1 - alpha_t) * hard + alpha_t * past_prob.detach()


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One row per label; all zeros where the label is no class (background, ignored).

    Args:
        labels (Tensor): Class indices of shape (N,); values outside [0, num_classes) are no class.
        num_classes (int): C.
        dtype (torch.dtype): Of the result. Defaults to float32.

    Returns:
        Tensor: Shape (N, C).
    """
    classes = torch.arange(num_classes, device=labels.device)
    return (labels.unsqueeze(-1) == classes).to(dtype)


def pskd_cross_entropy(logits: Tensor, labels: Tensor, past_logits: Tensor,
                       alpha_t: float) -> Tensor:
    """Softmax cross entropy with the progressive target: ``-sum_c y_t[c] log softmax(z)[c]``.

    Args:
        logits (Tensor): ``z`` of shape (N, C); background is an ordinary class.
        labels (Tensor): Class indices of shape (N,) in [0, C).
        past_logits (Tensor): The past self's logits, (N, C).
        alpha_t (float): Weight of the past self.

    Returns:
        Tensor: Loss of each sample, (N,).
    """
    hard = one_hot(labels, logits.size(1), logits.dtype)
    target = progressive_target(hard, past_logits.softmax(1), alpha_t)
    return -(target * logits.log_softmax(1)).sum(1)


def pskd_binary_cross_entropy(logits: Tensor, hard: Tensor, past_logits: Tensor,
                              alpha_t: float) -> Tensor:
    """Sigmoid cross entropy with the progressive target, elementwise.

    Args:
        logits (Tensor): ``z``, any shape.
        hard (Tensor): Targets in [0, 1] of the same shape.
        past_logits (Tensor): The past self's logits of the same shape.
        alpha_t (float): Weight of the past self.

    Returns:
        Tensor: Loss of the same shape.
    """
    target = progressive_target(hard, past_logits.sigmoid(), alpha_t)
    return F.binary_cross_entropy_with_logits(logits, target, reduction='none')


def pskd_focal(logits: Tensor, labels: Tensor, past_logits: Tensor, alpha_t: float,
               gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Sigmoid focal loss with the progressive target.

    ``(a y_t + (1 - a)(1 - y_t)) |y_t - p|^gamma BCE(z, y_t)`` with ``p = sigmoid(z)``. For ``y_t`` in
    {0, 1} this is the focal loss (Lin et al., ICCV 2017), since there ``|y - p|`` is ``1 - p_t``.

    Args:
        logits (Tensor): ``z`` of shape (N, C).
        labels (Tensor): Class indices (N,), where C (or any index that is no class) is background; or
            targets (N, C).
        past_logits (Tensor): The past self's logits, (N, C).
        alpha_t (float): Weight of the past self.
        gamma (float): Focusing exponent. Defaults to 2.0.
        alpha (float): Weight ``a`` of the positive part. Defaults to 0.25.

    Returns:
        Tensor: Elementwise loss, (N, C).
    """
    hard = one_hot(labels, logits.size(1), logits.dtype) if labels.dim() < logits.dim() else labels
    target = progressive_target(hard, past_logits.sigmoid(), alpha_t)
    return focal_to_target(logits, target, gamma, alpha)


def focal_to_target(pred: Tensor, target: Tensor, gamma: float, alpha: float,
                    activated: bool = False) -> Tensor:
    """Sigmoid focal loss towards a target in [0, 1], elementwise (see :func:`pskd_focal`).

    Args:
        pred (Tensor): Logits, or probabilities if ``activated``.
        target (Tensor): Targets of the same shape.
        gamma (float): Focusing exponent.
        alpha (float): Weight of the positive part.
        activated (bool): Whether ``pred`` holds probabilities. Defaults to False.

    Returns:
        Tensor: Loss of the same shape.
    """
    balance = alpha * target + (1 - alpha) * (1 - target)
    return balance * quality_focal_to_target(pred, target, gamma, activated)


def quality_focal_to_target(pred: Tensor, target: Tensor, beta: float,
                            activated: bool = False) -> Tensor:
    """Quality focal loss towards a target in [0, 1], elementwise: ``|y - p|^beta BCE(z, y)``.

    Li et al., "Generalized Focal Loss", NeurIPS 2020, eq. (4). It is defined for soft targets, so the
    progressive target simply takes the place of the IoU target.

    Args:
        pred (Tensor): Logits, or probabilities if ``activated``.
        target (Tensor): Targets of the same shape.
        beta (float): Focusing exponent.
        activated (bool): Whether ``pred`` holds probabilities. Defaults to False.

    Returns:
        Tensor: Loss of the same shape.
    """
    prob = pred if activated else pred.sigmoid()
    return _focus(target - prob, beta) * _bce(pred, target, activated)


def varifocal_to_target(logits: Tensor, target: Tensor, positive: Tensor, alpha: float,
                        gamma: float, iou_weighted: bool = True) -> Tensor:
    """Varifocal loss towards a soft target, elementwise.

    Zhang et al., "VarifocalNet", CVPR 2021, eq. (2): positives weigh ``y`` (the IoU target), negatives
    ``alpha |p - y|^gamma``. In the paper a negative is where the target is 0. A progressive target is
    hardly ever exactly 0, so who is positive is decided by the hard target, as before; the soft target
    enters the weight and the cross entropy.

    Args:
        logits (Tensor): (N, C).
        target (Tensor): Targets in [0, 1], (N, C).
        positive (Tensor): Where the hard target is positive, bool (N, C).
        alpha (float): Weight of the negatives.
        gamma (float): Focusing exponent of the negatives.
        iou_weighted (bool): Whether positives weigh their target, else 1. Defaults to True.

    Returns:
        Tensor: Loss of shape (N, C).
    """
    positive_weight = target if iou_weighted else torch.ones_like(target)
    negative_weight = alpha * _focus(logits.sigmoid() - target, gamma)
    weight = torch.where(positive, positive_weight, negative_weight)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction='none')


def pskd_simcc_kl(logits: Tensor, target: Tensor, past_logits: Tensor, alpha_t: float,
                  beta: float = 1.0) -> Tensor:
    """Divergence of a SimCC prediction from the progressive target, as mmpose averages it.

    ``mean_w KL(y_t[w] || softmax(beta z)[w])`` over the bins of one axis, with the past distribution
    ``softmax(beta past)`` mixed into the target. (Li et al., "SimCC", ECCV 2022; the mean over bins
    instead of the sum is mmpose's.)

    Args:
        logits (Tensor): ``z`` of shape (N, K, W) for N images, K keypoints and W bins.
        target (Tensor): The label's values at the bins, same shape; they need not add up to 1.
        past_logits (Tensor): The past self's logits, same shape.
        alpha_t (float): Weight of the past self.
        beta (float): Inverse temperature of the predictions. Defaults to 1.0.

    Returns:
        Tensor: Divergence of each keypoint, (N, K).
    """
    soft = progressive_target(target, (past_logits * beta).softmax(-1), alpha_t)
    return F.kl_div((logits * beta).log_softmax(-1), soft, reduction='none').mean(-1)


def simcc_kl(student_xy: Sequence[Tensor], teacher_xy: Sequence[Tensor], beta: float,
             weight: float = 1.0) -> Tensor:
    """DWPose's logit loss: divergence of the student's SimCC distributions from the teacher's.

    Yang et al., "Effective Whole-body Pose Estimation with Two-stages Distillation", ICCVW 2023, eq. (2):
    ``-1/N sum_n sum_k sum_w T[w] log S[w]`` up to the teacher's entropy, which has no gradient; x and y added,
    divided by K as in the authors' code. All keypoints count alike, visible or not: the teacher has an opinion on
    each.

    Args:
        student_xy (Sequence[Tensor]): Logits over the bins of x and of y, (N, K, Wx) and (N, K, Wy).
        teacher_xy (Sequence[Tensor]): The same of the teacher. Detached here.
        beta (float): Inverse temperature of both, that of the student's own loss.
        weight (float): Factor. Defaults to 1.0; DWPose uses 0.1 in its first stage.

    Returns:
        Tensor: The loss, a scalar.
    """
    loss = 0.
    for student, teacher in zip(student_xy, teacher_xy):
        target = (teacher.detach() * beta).softmax(-1)
        divergence = F.kl_div((student * beta).log_softmax(-1), target, reduction='none')
        loss = loss + divergence.sum((1, 2)).mean()
    return weight * loss / student_xy[0].size(1)


def heatmap_l2(student: Tensor, teacher: Tensor, weight: float = 1.0) -> Tensor:
    """Mean squared difference between heatmaps, all keypoints alike.

    Args:
        student (Tensor): Heatmaps (N, K, H, W).
        teacher (Tensor): The same of the teacher. Detached here.
        weight (float): Factor. Defaults to 1.0.

    Returns:
        Tensor: The loss, a scalar.
    """
    return weight * F.mse_loss(student, teacher.detach())


def feature_l2(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
    """DWPose's feature loss, eq. (1): squared difference, summed, over the batch size.

    Args:
        student (Tensor): Feature map (N, C, H, W), projected to the teacher's channels.
        teacher (Tensor): The teacher's, of the same shape. Detached here.
        weight (float): Factor; DWPose uses 5e-5 to 7e-5.

    Returns:
        Tensor: The loss, a scalar.
    """
    return weight * F.mse_loss(student, teacher.detach(), reduction='sum') / student.size(0)


def _bce(pred: Tensor, target: Tensor, activated: bool) -> Tensor:
    if activated:
        return F.binary_cross_entropy(pred, target, reduction='none')
    return F.binary_cross_entropy_with_logits(pred, target, reduction='none')


def _focus(difference: Tensor, exponent: float) -> Tensor:
    """``|difference|^exponent``, with a finite gradient where the difference is 0."""
    magnitude = difference.abs()
    if 0 < exponent < 1:  # the power's slope is infinite at 0
        magnitude = magnitude.clamp(min=torch.finfo(magnitude.dtype).eps)
    return magnitude.pow(exponent)
