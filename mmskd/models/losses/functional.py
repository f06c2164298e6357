"""The soft-target losses as plain tensor functions, to be read against the papers.

PS-KD mixes the hard target ``y`` with a teacher's prediction ``q`` of the same thing,
``y_soft = (1 - alpha) y + alpha q`` (Kim et al., "Self-Knowledge Distillation with Progressive
Refinement of Targets", ICCV 2021); ``q`` is the model's own prediction one epoch ago, eq. (3) and
(4) there.

NKD and USKD add a loss beside the hard one, in two parts: the target class, and the distribution
over all others (Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
Approach with Normalized Loss and Customized Soft Labels", ICCV 2023).

No function keeps state. No gradient flows into the past prediction. Of no samples at all a mean is
0, not NaN. Features, heatmaps and SimCC logits are taken to float32, since half precision ends at
65504; the modules do so with all others. In float32 each loss is what it is in float64 but for 1e-5
of its value and 2e-6 of the largest logit (tests/test_models/test_losses/test_any_numbers.py).
"""
from typing import Callable, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .soft_target import at_least_float32

RESCALED_AT_MOST = 5.
"""The largest factor of the form 'rescaled', that of alpha 0.8.

Beyond it, it would go to infinity.
"""


DEAD = 1e-6
"""Standard deviation of a channel of features below which it says nothing, MMRazor's epsilon."""


def progressive_target(hard: Tensor, past_prob: Tensor, alpha_t: Union[float, Tensor]) -> Tensor:
    """Soften a hard target with the past prediction: ``(1 - alpha_t) hard + alpha_t past``.

    Args:
        hard (Tensor): Targets in [0, 1], any shape.
        past_prob (Tensor): Past probabilities of the same shape. Detached here.
        alpha_t (float | Tensor): Weight of the past self in [0, 1]; one of each sample broadcasts.

    Returns:
        Tensor: Soft target of the same shape.
    """
    return (1 - alpha_t) * hard + alpha_t * past_prob.detach()


def soft_loss(form: str, hard: Tensor, past_prob: Tensor, alpha_t: Union[float, Tensor],
              loss: Callable[[Tensor], Tensor], divergence: Callable[[Tensor], Tensor],
              distance: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
    """A loss towards a hard target ``y`` and a past prediction ``q``, in one of four forms.

    With ``L`` the stock loss, ``w(p, y)`` its weight at the hard target, and ``y_t`` the
    progressive target:

    - 'paper': ``L(y_t)``, the target of Kim et al., eq. (3).
    - 'kl': ``(1 - alpha_t) L(y) + alpha_t w(p, y) KL(q || p)``. The weight of a focal loss stays
      that of the hard target, so that this is linear in alpha_t, as a cross entropy is.
    - 'rescaled': ``L(y_t) / (1 - alpha_t)``, but never more than 5 times ``L(y_t)``: the hard
      target's share of the gradient of a cross entropy is that of the stock loss up to alpha_t =
      0.8.
    - 'added': ``L(y) + alpha_t L_KD(q)``. The hard loss is untouched. ``L_KD`` is ``KL(q || p)``,
      and for focal losses the quality focal loss towards q (CrossKD, Wang et al., CVPR 2024).

    At alpha_t = 0 each of them is ``L(y)``. Where ``q = p`` and alpha_t = 1, all but 'added' have
    no gradient. Of losses that are linear in the target (cross entropy, SimCC's divergence), or
    whose gradient is (squared differences of heatmaps), 'paper' and 'kl' have the same gradient:
    they differ by a constant at most.

    Args:
        form (str): 'paper', 'kl', 'rescaled' or 'added'.
        hard (Tensor): ``y``, any shape.
        past_prob (Tensor): ``q`` of the same shape. Detached here.
        alpha_t (float | Tensor): Weight of the past self in [0, 1]; one of each sample broadcasts.
        loss (Callable): ``L``: elementwise loss towards a target.
        divergence (Callable): ``w(p, y) KL(q || p)`` of ``q``, elementwise: 0 where they agree.
        distance (Callable, optional): ``L_KD`` of ``q``, elementwise. Defaults to None:
            ``divergence``.

    Returns:
        Tensor: Elementwise loss of the shape of ``hard``.
    """
    past_prob = past_prob.detach()
    if form == 'kl':
        return (1 - alpha_t) * loss(hard) + alpha_t * divergence(past_prob)
    if form == 'added':
        return loss(hard) + alpha_t * (distance or divergence)(past_prob)
    mixed = loss(progressive_target(hard, past_prob, alpha_t))
    return mixed * rescaling(alpha_t) if form == 'rescaled' else mixed


def rescaling(alpha_t: Union[float, Tensor]) -> Union[float, Tensor]:
    """What the form 'rescaled' multiplies a mix by: ``1 / (1 - alpha_t)``, at most 5."""
    if isinstance(alpha_t, Tensor):
        return 1 / (1 - alpha_t).clamp_min(1 / RESCALED_AT_MOST)
    return 1 / max(1 - alpha_t, 1 / RESCALED_AT_MOST)


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
                       alpha_t: Union[float, Tensor], form: str = 'paper') -> Tensor:
    """Softmax cross entropy with the progressive target: ``-sum_c y_t[c] log softmax(z)[c]``.

    Args:
        logits (Tensor): ``z`` of shape (N, C); background is an ordinary class.
        labels (Tensor): Class indices of shape (N,) in [0, C).
        past_logits (Tensor): The past self's logits, (N, C).
        alpha_t (float | Tensor): Weight of the past self; of each sample, (N, 1).
        form (str): As in :func:`soft_loss`. Defaults to 'paper'; 'kl' differs by a constant.

    Returns:
        Tensor: Loss of each sample, (N,).
    """
    hard = one_hot(labels, logits.size(1), logits.dtype)
    logs = logits.log_softmax(1)

    def divergence(past_prob: Tensor) -> Tensor:
        return torch.xlogy(past_prob, past_prob) - past_prob * logs

    return soft_loss(form, hard, past_logits.softmax(1), alpha_t, lambda target: -(target * logs),
                     divergence).sum(1)


def pskd_binary_cross_entropy(logits: Tensor, hard: Tensor, past_logits: Tensor,
                              alpha_t: Union[float, Tensor], form: str = 'paper') -> Tensor:
    """Sigmoid cross entropy with the progressive target, elementwise.

    Args:
        logits (Tensor): ``z``, any shape.
        hard (Tensor): Targets in [0, 1] of the same shape.
        past_logits (Tensor): The past self's logits of the same shape.
        alpha_t (float | Tensor): Weight of the past self; of each sample, (N, 1).
        form (str): As in :func:`soft_loss`. Defaults to 'paper'; 'kl' differs by a constant.

    Returns:
        Tensor: Loss of the same shape.
    """
    return soft_loss(form, hard, past_logits.sigmoid(), alpha_t,
                     lambda target: _bce(logits, target, False),
                     lambda past_prob: _binary_kl(logits, past_prob, False))


def pskd_focal(logits: Tensor, labels: Tensor, past_logits: Tensor, alpha_t: Union[float, Tensor],
               gamma: float = 2.0, alpha: float = 0.25, form: str = 'paper') -> Tensor:
    """Sigmoid focal loss with the progressive target.

    ``(a y_t + (1 - a)(1 - y_t)) |y_t - p|^gamma BCE(z, y_t)`` with ``p = sigmoid(z)``. For ``y_t``
    in {0, 1} this is the focal loss (Lin et al., ICCV 2017), since there ``|y - p|`` is
    ``1 - p_t``.

    Args:
        logits (Tensor): ``z`` of shape (N, C).
        labels (Tensor): Class indices (N,), where C (or any index that is no class) is background;
            or targets (N, C).
        past_logits (Tensor): The past self's logits, (N, C).
        alpha_t (float | Tensor): Weight of the past self; of each sample, (N, 1).
        gamma (float): Focusing exponent. Defaults to 2.0.
        alpha (float): Weight ``a`` of the positive part. Defaults to 0.25.
        form (str): As in :func:`soft_loss`. Defaults to 'paper'.

    Returns:
        Tensor: Elementwise loss, (N, C).
    """
    hard = one_hot(labels, logits.size(1), logits.dtype) if labels.dim() < logits.dim() else labels
    return soft_focal(logits, hard, past_logits.sigmoid(), alpha_t, gamma, alpha, form=form)


def soft_focal(pred: Tensor, hard: Tensor, past_prob: Tensor, alpha_t: Union[float, Tensor],
               gamma: float, alpha: float, activated: bool = False, form: str = 'paper') -> Tensor:
    """Focal loss towards a hard target and a past prediction, elementwise (see :func:`pskd_focal`).

    Its weight at the hard target, for the form 'kl', is ``(a y + (1 - a)(1 - y)) |y - p|^gamma``.

    Args:
        pred (Tensor): Logits, or probabilities if ``activated``.
        hard (Tensor): Targets of the same shape.
        past_prob (Tensor): Past probabilities of the same shape.
        alpha_t (float | Tensor): Weight of the past self.
        gamma (float): Focusing exponent.
        alpha (float): Weight of the positive part.
        activated (bool): Whether ``pred`` holds probabilities. Defaults to False.
        form (str): As in :func:`soft_loss`. Defaults to 'paper'.

    Returns:
        Tensor: Loss of the same shape.
    """

    def divergence(past_prob: Tensor) -> Tensor:
        weight = _balance(hard, alpha) * _focus(hard - _prob(pred, activated), gamma)
        return weight * _binary_kl(pred, past_prob, activated)

    return soft_loss(form, hard, past_prob, alpha_t,
                     lambda target: focal_to_target(pred, target, gamma, alpha, activated),
                     divergence,
                     lambda past_prob: quality_focal_to_target(pred, past_prob, gamma, activated))


def soft_quality_focal(pred: Tensor, hard: Tensor, past_prob: Tensor, alpha_t: Union[float, Tensor],
                       beta: float, activated: bool = False, form: str = 'paper') -> Tensor:
    """Quality focal loss towards a hard target and a past prediction, elementwise.

    Its weight at the hard target, for the form 'kl', is ``|y - p|^beta``.

    Args:
        pred (Tensor): Logits, or probabilities if ``activated``.
        hard (Tensor): IoU-aware targets of the same shape.
        past_prob (Tensor): Past probabilities of the same shape.
        alpha_t (float | Tensor): Weight of the past self.
        beta (float): Focusing exponent.
        activated (bool): Whether ``pred`` holds probabilities. Defaults to False.
        form (str): As in :func:`soft_loss`. Defaults to 'paper'.

    Returns:
        Tensor: Loss of the same shape.
    """

    def to_target(target: Tensor) -> Tensor:
        return quality_focal_to_target(pred, target, beta, activated)

    def divergence(past_prob: Tensor) -> Tensor:
        weight = _focus(hard - _prob(pred, activated), beta)
        return weight * _binary_kl(pred, past_prob, activated)

    return soft_loss(form, hard, past_prob, alpha_t, to_target, divergence, to_target)


def soft_varifocal(logits: Tensor, hard: Tensor, past_prob: Tensor, alpha_t: Union[float, Tensor],
                   alpha: float, gamma: float, iou_weighted: bool = True,
                   form: str = 'paper') -> Tensor:
    """Varifocal loss towards a hard target and a past prediction, elementwise.

    Its weight at the hard target, for the form 'kl', is ``y`` (or 1) of positives and ``a p^gamma``
    of negatives.

    Args:
        logits (Tensor): (N, C).
        hard (Tensor): IoU-aware targets, (N, C); positive where above 0.
        past_prob (Tensor): Past probabilities, (N, C).
        alpha_t (float | Tensor): Weight of the past self.
        alpha (float): Weight of the negatives.
        gamma (float): Focusing exponent of the negatives.
        iou_weighted (bool): Whether positives weigh their target, else 1. Defaults to True.
        form (str): As in :func:`soft_loss`. Defaults to 'paper'.

    Returns:
        Tensor: Loss of shape (N, C).
    """
    positive = hard > 0

    def divergence(past_prob: Tensor) -> Tensor:
        weight = _varifocal_weight(logits, hard, positive, alpha, gamma, iou_weighted)
        return weight * _binary_kl(logits, past_prob, False)

    return soft_loss(
        form, hard, past_prob, alpha_t,
        lambda target: varifocal_to_target(logits, target, positive, alpha, gamma, iou_weighted),
        divergence, lambda past_prob: quality_focal_to_target(logits, past_prob, gamma))


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
    return _balance(target, alpha) * quality_focal_to_target(pred, target, gamma, activated)


def quality_focal_to_target(pred: Tensor, target: Tensor, beta: float,
                            activated: bool = False) -> Tensor:
    """Quality focal loss towards a target in [0, 1], elementwise: ``|y - p|^beta BCE(z, y)``.

    Li et al., "Generalized Focal Loss", NeurIPS 2020, eq. (4). It is defined for soft targets, so
    the progressive target simply takes the place of the IoU target.

    Args:
        pred (Tensor): Logits, or probabilities if ``activated``.
        target (Tensor): Targets of the same shape.
        beta (float): Focusing exponent.
        activated (bool): Whether ``pred`` holds probabilities. Defaults to False.

    Returns:
        Tensor: Loss of the same shape.
    """
    return _focus(target - _prob(pred, activated), beta) * _bce(pred, target, activated)


def varifocal_to_target(logits: Tensor, target: Tensor, positive: Tensor, alpha: float,
                        gamma: float, iou_weighted: bool = True) -> Tensor:
    """Varifocal loss towards a soft target, elementwise.

    Zhang et al., "VarifocalNet", CVPR 2021, eq. (2): positives weigh ``y`` (the IoU target),
    negatives ``alpha |p - y|^gamma``. In the paper a negative is where the target is 0. A
    progressive target is hardly ever exactly 0, so who is positive is decided by the hard target,
    as before; the soft target enters the weight and the cross entropy.

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
    weight = _varifocal_weight(logits, target, positive, alpha, gamma, iou_weighted)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction='none')


def pskd_simcc_kl(logits: Tensor, target: Tensor, past_logits: Tensor,
                  alpha_t: Union[float, Tensor], beta: float = 1.0, form: str = 'paper') -> Tensor:
    """Divergence of a SimCC prediction from the progressive target, as mmpose averages it.

    ``mean_w KL(y_t[w] || softmax(beta z)[w])`` over the bins of one axis, with the past
    distribution ``softmax(beta past)`` mixed into the target. (Li et al., "SimCC", ECCV 2022; the
    mean over bins instead of the sum is mmpose's.)

    Args:
        logits (Tensor): ``z`` of shape (N, K, W) for N images, K keypoints and W bins.
        target (Tensor): The label's values at the bins, same shape; they need not add up to 1.
        past_logits (Tensor): The past self's logits, same shape.
        alpha_t (float | Tensor): Weight of the past self; of each keypoint, (N, K, 1).
        beta (float): Inverse temperature of the predictions. Defaults to 1.0.
        form (str): As in :func:`soft_loss`. Defaults to 'paper'; 'kl' differs by a constant.

    Returns:
        Tensor: Divergence of each keypoint, (N, K).
    """
    logs = (logits * beta).log_softmax(-1)

    def divergence(target: Tensor) -> Tensor:
        return F.kl_div(logs, target, reduction='none')

    past_prob = (past_logits * beta).softmax(-1)
    return soft_loss(form, target, past_prob, alpha_t, divergence, divergence).mean(-1)


def pskd_heatmap(output: Tensor, target: Tensor, past: Tensor, alpha_t: Union[float, Tensor],
                 form: str = 'paper') -> Tensor:
    """Squared difference of a heatmap from the progressive target, elementwise.

    Args:
        output (Tensor): Heatmaps (N, K, H, W).
        target (Tensor): Target heatmaps, same shape.
        past (Tensor): The past self's heatmaps, same shape.
        alpha_t (float | Tensor): Weight of the past self; of each keypoint, (N, K, 1, 1).
        form (str): As in :func:`soft_loss`. Defaults to 'paper'; 'kl' differs by a constant.

    Returns:
        Tensor: Same shape.
    """

    def distance(target: Tensor) -> Tensor:
        return F.mse_loss(output, target, reduction='none')

    return soft_loss(form, target, past, alpha_t, distance, distance)


def simcc_kl(student_xy: Sequence[Tensor], teacher_xy: Sequence[Tensor], beta: float,
             weight: float = 1.0, teacher_beta: Optional[float] = None,
             keypoint_weights: Optional[Tensor] = None) -> Tensor:
    """DWPose's logit loss: divergence of the student's SimCC distributions from the teacher's.

    Yang et al., "Effective Whole-body Pose Estimation with Two-stages Distillation", ICCVW 2023:
    ``-1/N sum_n sum_k sum_w T[w] log S[w]`` plus the teacher's entropy, which has no gradient; x
    and y added, divided by K as in the authors' code. All keypoints count alike, visible or not:
    the teacher has an opinion on each.

    Args:
        student_xy (Sequence[Tensor]): Logits over the bins of x and of y, (N, K, Wx) and (N, K,
            Wy).
        teacher_xy (Sequence[Tensor]): The same of the teacher. Detached here.
        beta (float): Inverse temperature of the student, that of its own loss.
        weight (float): Factor. Defaults to 1.0; DWPose uses 0.1 in its first stage.
        teacher_beta (float, optional): Inverse temperature of the teacher, which may have been
            trained with another (RTMW with 1, RTMPose with 10). Defaults to None: ``beta``.
        keypoint_weights (Tensor, optional): Factor of each keypoint, (N, K). Defaults to None: 1.

    Returns:
        Tensor: The loss, a scalar.
    """
    loss, teacher_beta = 0., beta if teacher_beta is None else teacher_beta
    for student, teacher in zip(student_xy, teacher_xy):
        student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
        target = (teacher * teacher_beta).softmax(-1)
        divergence = F.kl_div((student * beta).log_softmax(-1), target, reduction='none')
        divergence = divergence.sum(2)
        if keypoint_weights is not None:
            divergence = divergence * keypoint_weights
        loss = loss + mean_of(divergence.sum(1))
    return weight * loss / student_xy[0].size(1)


def heatmap_l2(student: Tensor, teacher: Tensor, weight: float = 1.0,
               keypoint_weights: Optional[Tensor] = None) -> Tensor:
    """Mean squared difference between heatmaps, all keypoints alike.

    Args:
        student (Tensor): Heatmaps (N, K, H, W).
        teacher (Tensor): The same of the teacher. Detached here.
        weight (float): Factor. Defaults to 1.0.
        keypoint_weights (Tensor, optional): Factor of each keypoint, (N, K). Defaults to None: 1.

    Returns:
        Tensor: The loss, a scalar.
    """
    if keypoint_weights is None:
        return weight * _squared_distance(student, teacher) / max(student.numel(), 1)
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    distance = F.mse_loss(student, teacher, reduction='none').mean((2, 3))
    return weight * mean_of(distance * keypoint_weights)


def density_kl(student: Tensor, teacher: Tensor, weight: float = 1.0) -> Tensor:
    """Divergence of distributions over the cells of heatmaps, the mean over images and keypoints.

    ``sum_i T[i] log(T[i] / S[i])`` over the cells ``i``; for the normalised heatmaps of DSNT
    (Nibali et al., 2018), and the bins of RTMO (Lu et al., 2024).

    Args:
        student (Tensor): Probabilities (N, K, H, W) or (N, K, bins) that add up to 1 over the
            cells.
        teacher (Tensor): The same of the teacher. Detached here.
        weight (float): Factor. Defaults to 1.0.

    Returns:
        Tensor: The loss, a scalar.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    logs = student.clamp_min(torch.finfo(torch.float32).tiny).log()  # in any precision the same
    return weight * mean_of(F.kl_div(logs, teacher, reduction='none').flatten(2).sum(2))


def bins_kl(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Divergence between distributions over the bins of a distance, the mean over a box's sides.

    ``tau^2 / 4 sum_sides KL(softmax(t / tau) || softmax(s / tau))``, the localisation term of Zheng
    et al., "Localization Distillation for Dense Object Detection", CVPR 2022, for distributions as
    in GFL.

    Args:
        student (Tensor): Logits (N, 4, B) over the B bins of each side.
        teacher (Tensor): The same of the teacher. Detached here.
        tau (float): Temperature. Defaults to 1.0; LD uses 10.

    Returns:
        Tensor: Divergence of each box, (N,).
    """
    mine, theirs = ((at_least_float32(side) / tau).log_softmax(-1)
                    for side in (student, teacher.detach()))
    divergence = F.kl_div(mine, theirs, reduction='none', log_target=True)
    return tau**2 * divergence.sum(-1).mean(-1)


def feature_l2(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
    """DWPose's feature loss, as the authors' code has it.

    Squared difference, summed, over the batch.

    Args:
        student (Tensor): Feature map (N, C, H, W), projected to the teacher's channels.
        teacher (Tensor): The teacher's, of the same shape. Detached here.
        weight (float): Factor; DWPose uses 5e-5 to 7e-5.

    Returns:
        Tensor: The loss, a scalar.
    """
    return weight * _squared_distance(student, teacher) / max(student.size(0), 1)


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus Pearson's correlation of each channel over images and places, their mean.

    Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient", NeurIPS 2022: half the mean squared difference of features that are standardised
    channel by channel. It depends on neither the size of the map and of the batch nor the scale of
    the features.

    Args:
        student (Tensor): Feature map (N, C, H, W), projected to the teacher's channels.
        teacher (Tensor): The teacher's, of the same shape. Detached here.

    Returns:
        Tensor: Scalar in [0, 2]. A channel without variance counts as uncorrelated.
    """
    mine, theirs = (_standardised(side) for side in (student, teacher.detach()))
    return 1 - (mine * theirs).sum(1).mean()


def channel_kl(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Divergence of the channels as distributions over places, the mean over images and channels.

    Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021: ``tau^2 / (N
    C) sum_n sum_c sum_i T[n, c, i] log(T[n, c, i] / S[n, c, i])`` with the softmax over the places
    ``i`` at temperature ``tau``. The maps are standardised channel by channel first, as in
    DAMO-YOLO, so that the weight does not depend on the scale of the features.

    Args:
        student (Tensor): Feature map (N, C, H, W), projected to the teacher's channels.
        teacher (Tensor): The teacher's, of the same shape. Detached here.
        tau (float): Temperature. Defaults to 1.0.

    Returns:
        Tensor: Scalar.
    """
    images, channels, height, width = student.shape
    logits = []
    for side in (student, teacher.detach()):
        flat = _standardised(side) * (images * height * width)**0.5
        logits.append((flat.view(channels, images, height * width) / tau).log_softmax(-1))
    divergence = F.kl_div(*logits, reduction='none', log_target=True).sum(-1)
    return tau**2 * mean_of(divergence)


def _squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher.detach()),
                      reduction='sum')


def _standardised(maps: Tensor) -> Tensor:
    """The rows (C, N * H * W) of a feature map, each less its mean, over its norm.

    0 where all numbers of a row are the same but for the rounding of their mean, or have a standard
    deviation below ``DEAD``: divided by its norm, that would be a pattern with gradients beyond
    measure. And where there are but two: standardised, they are 1 and -1 whatever they were, and a
    gradient is rounding.
    """
    rows = at_least_float32(maps).transpose(0, 1).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    rounding = 8 * torch.finfo(rows.dtype).eps * rows.detach().norm(dim=1, keepdim=True)
    varies = (norm > rounding.clamp(min=DEAD * rows.size(1)**0.5)) & (rows.size(1) > 2)
    return centred * varies / norm.where(varies, torch.ones_like(norm))


def nkd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, gamma: float = 1.5,
        tau: float = 1.0) -> Tensor:
    """Normalised knowledge distillation, mean over the samples.

    ``-T_t log S_t - gamma tau^2 sum_{i != t} N(T_i) log N(S_i)``: ``S`` and ``T`` are the
    probabilities of student and teacher, ``t`` the target class, and ``N`` is the softmax over the
    other classes at temperature ``tau``. Plain distillation compares ``S_i`` with ``T_i``, which
    sum to ``1 - S_t`` and ``1 - T_t`` and so can never agree while these differ.

    Args:
        student_logits (Tensor): (N, C).
        teacher_logits (Tensor): (N, C). Detached here.
        labels (Tensor): Class indices (N,), or soft labels (N, C), of which the largest is the
            target.
        gamma (float): Weight of the other classes. Defaults to 1.5.
        tau (float): Temperature of the other classes. Defaults to 1.0.

    Returns:
        Tensor: Scalar.
    """
    target = target_classes(labels)[0][:, :1]
    others = ~mask_of(target, student_logits)
    return mean_of(nkd_target(student_logits, teacher_logits, target) +
                   gamma * nkd_nontarget(student_logits, teacher_logits, others, tau))


def nkd_target(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
    """``-T_t log S_t``, at temperature 1.

    Args:
        student_logits (Tensor): (N, C).
        teacher_logits (Tensor): (N, C). Detached here.
        target (Tensor): The target class, (N, 1).

    Returns:
        Tensor: Loss of each sample, (N,).
    """
    teacher_prob = teacher_logits.detach().softmax(1).gather(1, target)
    return -(teacher_prob * student_logits.log_softmax(1).gather(1, target)).sum(1)


def nkd_nontarget(student_logits: Tensor, teacher_logits: Tensor, others: Tensor,
                  tau: float = 1.0) -> Tensor:
    """``-tau^2 sum_i N(T_i) log N(S_i)`` over the classes ``i`` that are in ``others``.

    Args:
        student_logits (Tensor): (N, C).
        teacher_logits (Tensor): (N, C). Detached here.
        others (Tensor): Which classes are compared, bool (N, C).
        tau (float): Temperature. Defaults to 1.0.

    Returns:
        Tensor: Loss of each sample, (N,); 0 where ``others`` has no class.
    """
    teacher_prob = _among(teacher_logits.detach() / tau, others).softmax(1)
    return tau**2 * cross_entropy_among(student_logits / tau, teacher_prob, others)


def uskd(logits: Tensor, weak_logits: Tensor, labels: Tensor, alpha: float = 1.0,
         beta: float = 0.1, mu: float = 0.005) -> Tensor:
    """Universal self-knowledge distillation, mean over the samples: a loss without a teacher.

    ``alpha`` :func:`uskd_target` + ``beta`` :func:`uskd_nontarget` + ``mu`` :func:`uskd_weak`. It
    is added to the hard loss.

    Args:
        logits (Tensor): (N, C).
        weak_logits (Tensor): What an auxiliary classifier makes of a feature from the middle of the
            network, (N, C).
        labels (Tensor): Class indices (N,), or soft labels (N, C) with at most two classes (mixup,
            CutMix), as in the authors' code.
        alpha (float): Weight of the target part. Defaults to 1.0.
        beta (float): Weight of the non-target part. Defaults to 0.1.
        mu (float): Weight of the weak logits' own loss. Defaults to 0.005.

    Returns:
        Tensor: Scalar.
    """
    others = ~mask_of(labels, logits)
    return mean_of(alpha * uskd_target(logits, labels) +
                   beta * uskd_nontarget(logits, weak_logits, others) +
                   mu * uskd_weak(weak_logits, labels))


def uskd_target(logits: Tensor, labels: Tensor) -> Tensor:
    """``-(S_t^2 + y_t - mean(S_t^2)) log S_t``, the mean over the samples.

    No gradient in the bracket.

    A sample that the model is surer of than it is on average gets a target above 1, any other one
    below. Squaring keeps the targets close together while all probabilities are small. Soft labels:
    summed over the (two) target classes, with one mean for the larger labels and one for the
    smaller.

    Args:
        logits (Tensor): (N, C).
        labels (Tensor): (N,) or (N, C).

    Returns:
        Tensor: Loss of each sample, (N,).
    """
    target, value = target_classes(labels)
    log_prob = logits.log_softmax(1).gather(1, target)
    present = value > 0
    square = log_prob.detach().exp()**2 * present
    mean = square.sum(0) / present.sum(0).clamp(min=1)
    return -((square + value - mean) * present * log_prob).sum(1)


def uskd_nontarget(logits: Tensor, weak_logits: Tensor, others: Tensor) -> Tensor:
    """``-sum_i N(Z_i) log N(S_i)`` over the ``others``, Z from :func:`zipf_weights`.

    Args:
        logits (Tensor): (N, C).
        weak_logits (Tensor): (N, C). No gradient flows into them here.
        others (Tensor): Which classes are compared, bool (N, C).

    Returns:
        Tensor: Loss of each sample, (N,); 0 where ``others`` has no class.
    """
    return cross_entropy_among(logits, zipf_weights(logits, weak_logits, others), others)


@torch.no_grad()
def zipf_weights(logits: Tensor, weak_logits: Tensor, others: Tensor) -> Tensor:
    """Soft labels for the classes in ``others`` that depend on their rank alone: ``N(Z)``.

    Zipf's law: ``Z_i = 1 / R_i``, where ``R_i`` in 1..C is the rank of the class by
    ``N(W_i) + N(S_i)``, the weak and the final probability, each divided by the sum over
    ``others``. ``N(Z)`` divides by the sum over ``others`` as well. A class that is not in
    ``others`` (the target) has a rank, too: where the model is right, that is rank 1 and the others
    begin at 1/2.

    The authors' code adds ``log S_i / (1 - log S_t)`` in place of ``N(S_i) = S_i / (1 - S_t)``.

    Args:
        logits (Tensor): (N, C).
        weak_logits (Tensor): (N, C).
        others (Tensor): Which classes get a weight, bool (N, C).

    Returns:
        Tensor: (N, C) without gradient; rows sum to 1 over ``others`` and are 0 elsewhere.
    """
    score = sum((z - _among(z, others).logsumexp(1, keepdim=True)).exp()
                for z in (logits, weak_logits))
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(1) + 1
    weights = others / rank.to(logits.dtype)
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def uskd_weak(weak_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the weak logits with the smoothed label ``0.9 y + 0.1 / C``.

    Args:
        weak_logits (Tensor): (N, C).
        labels (Tensor): (N,) or (N, C).

    Returns:
        Tensor: Loss of each sample, (N,).
    """
    labels = labels if labels.dim() == 1 else labels.to(weak_logits.dtype)
    return F.cross_entropy(weak_logits, labels, label_smoothing=0.1, reduction='none')


def cross_entropy_among(logits: Tensor, target: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy of distributions over some of the classes: ``-sum_i target_i log N(S_i)``.

    Args:
        logits (Tensor): (N, C).
        target (Tensor): (N, C); what it holds for other classes does not matter.
        classes (Tensor): Bool (N, C).

    Returns:
        Tensor: Loss of each sample, (N,).
    """
    log_prob = _among(logits, classes).log_softmax(1).masked_fill(~classes, 0)
    return -(target * log_prob).sum(1)


def target_classes(labels: Tensor) -> Tuple[Tensor, Tensor]:
    """The target class of each sample, or the two of a mixture.

    Args:
        labels (Tensor): Class indices (N,), or soft labels (N, C).

    Returns:
        tuple[Tensor]: Class indices and their labels, both (N, K), the largest label first: K = 1
        and labels 1 for class indices, K = 2 for soft labels (one of which may be 0).
    """
    if labels.dim() == 1:
        return labels.unsqueeze(1), torch.ones_like(labels).unsqueeze(1)
    value, target = labels.topk(2, dim=1)
    return target, value


def mask_of(labels: Tensor, logits: Tensor) -> Tensor:
    """Which classes are a sample's target.

    Args:
        labels (Tensor): Class indices (N,) or (N, 1), or soft labels (N, C).
        logits (Tensor): (N, C).

    Returns:
        Tensor: Bool, (N, C).
    """
    if labels.shape == logits.shape:
        return labels > 0
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels.view(-1, 1), True)


def mean_of(losses: Tensor) -> Tensor:
    """Their mean; 0, with a graph, if there are none."""
    return losses.sum() / max(losses.numel(), 1)


def _among(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits whose softmax is 0 outside of ``classes``.

    Not -inf, of which a gradient may be NaN.
    """
    return logits.masked_fill(~classes, torch.finfo(logits.dtype).min)


def _bce(pred: Tensor, target: Tensor, activated: bool) -> Tensor:
    if activated:
        return F.binary_cross_entropy(pred, target, reduction='none')
    return F.binary_cross_entropy_with_logits(pred, target, reduction='none')


def _binary_kl(pred: Tensor, target: Tensor, activated: bool) -> Tensor:
    """``KL(target || p)`` of two-valued distributions: cross entropy less the target's own."""
    entropy = torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target)
    return _bce(pred, target, activated) + entropy


def _prob(pred: Tensor, activated: bool) -> Tensor:
    return pred if activated else pred.sigmoid()


def _balance(target: Tensor, alpha: float) -> Tensor:
    """The weight that a focal loss gives to positives and negatives."""
    return alpha * target + (1 - alpha) * (1 - target)


def _varifocal_weight(logits: Tensor, target: Tensor, positive: Tensor, alpha: float, gamma: float,
                      iou_weighted: bool) -> Tensor:
    positive_weight = target if iou_weighted else torch.ones_like(target)
    negative_weight = alpha * _focus(logits.sigmoid() - target, gamma)
    return torch.where(positive, positive_weight, negative_weight)


def _focus(difference: Tensor, exponent: float) -> Tensor:
    """``|difference|^exponent``, with a finite gradient where the difference is 0."""
    magnitude = difference.abs()
    if not 0 < exponent < 1:
        return magnitude.pow(exponent)
    differs = magnitude > 0  # the power's slope is infinite at 0
    return magnitude.where(differs, torch.ones_like(magnitude)).pow(exponent) * differs
