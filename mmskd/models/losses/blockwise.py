"""The soft focal loss in blocks that fit a cache, without a chain of temporaries for backward.

A plain expression of :func:`~mmskd.models.losses.functional.focal_to_target` keeps half a dozen
tensors as big as all logits until backward (120 MB each for 800x1333, batch 2, 80 classes). Here
forward computes the gradient along with the loss, block by block, and keeps the gradient alone: by
hand where the target is mixed, by autograd on the block in the other forms.
"""
from typing import Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .functional import one_hot, pskd_focal, rescaling

CPU_BLOCK, GPU_BLOCK = 1 << 16, 1 << 24  # elements


def soft_focal_rows(logits: Tensor, hard: Tensor, teacher: Tensor,
                    alpha_t: Union[float, Tensor], gamma: float = 2.0, alpha: float = 0.25,
                    form: str = 'paper') -> Tensor:
    """Sum over the classes of :func:`~mmskd.models.losses.functional.pskd_focal`.

    Args:
        logits (Tensor): ``z`` of shape (N, C).
        hard (Tensor): Class indices (N,), of which those outside of [0, C) are background, or
            targets (N, C).
        teacher (Tensor): The teacher's logits, (N, C), in any floating type.
        alpha_t (float | Tensor): Weight of the teacher in the target; of each sample, (N, 1).
        gamma (float): Focusing exponent, 0 or at least 1. Defaults to 2.0.
        alpha (float): Weight of the positive part. Defaults to 0.25.
        form (str): As in :func:`~mmskd.models.losses.functional.soft_loss`. Defaults to 'paper'.

    Returns:
        Tensor: Loss of each sample, (N,). It has a gradient in ``logits``, but no second one.
    """
    by_hand = form in ('paper', 'rescaled')
    rows = _SoftFocalRows.apply(logits, hard, teacher.detach(), alpha_t, gamma, alpha,
                                None if by_hand else form)
    if form != 'rescaled':
        return rows
    factor = rescaling(alpha_t)
    return rows * (factor.squeeze(1) if isinstance(factor, Tensor) else factor)


class _SoftFocalRows(torch.autograd.Function):

    @staticmethod
    def forward(ctx, logits: Tensor, hard: Tensor, teacher: Tensor,
                alpha_t: Union[float, Tensor], gamma: float, alpha: float,
                form: Optional[str]) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = logits.new_empty(len(logits))
        size = CPU_BLOCK if logits.device.type == 'cpu' else GPU_BLOCK
        step = max(1, size // max(1, logits.size(1)))
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            weight = alpha_t[part] if isinstance(alpha_t, Tensor) else alpha_t
            sides = logits[part], hard[part], teacher[part], weight
            if form is None:
                target = _target(*sides)
                loss, slope = _focal(logits[part], target, gamma, alpha, gradient is not None)
            else:
                loss, slope = _in_form(*sides, gamma, alpha, form, gradient is not None)
            rows[part] = loss.sum(1)
            if gradient is not None:
                gradient[part] = slope
        ctx.save_for_backward(gradient)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx, of_rows: Tensor):
        gradient, = ctx.saved_tensors
        return gradient * of_rows.unsqueeze(1), None, None, None, None, None, None


def _in_form(logits: Tensor, hard: Tensor, teacher: Tensor, alpha_t: Union[float,
                                                                           Tensor], gamma: float,
             alpha: float, form: str, with_slope: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """Loss of each element of a block and its derivative in the logit, by autograd."""
    teacher = teacher.to(logits.dtype)
    with torch.set_grad_enabled(with_slope):
        leaf = logits.detach().requires_grad_(with_slope)
        loss = pskd_focal(leaf, hard, teacher, alpha_t, gamma, alpha, form)
        slope = torch.autograd.grad(loss.sum(), leaf)[0] if with_slope else None
    return loss.detach(), slope


def _target(logits: Tensor, hard: Tensor, teacher: Tensor,
            alpha_t: Union[float, Tensor]) -> Tensor:
    """The soft target of a block; its own, so that it may be changed in place."""
    target = teacher.to(logits.dtype).sigmoid().mul_(alpha_t)
    if hard.dim() == logits.dim():
        hard = hard.to(logits.dtype)
    else:
        hard = one_hot(hard, logits.size(1), logits.dtype)
    if isinstance(alpha_t, Tensor):
        return target.addcmul_(hard, 1 - alpha_t)
    return target.add_(hard, alpha=1 - alpha_t)


def _focal(logits: Tensor, target: Tensor, gamma: float, alpha: float,
           with_slope: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """Loss of each element and its derivative in the logit.

    With d = p - y, w = alpha y + (1 - alpha)(1 - y) and c the cross entropy: ``w |d|^gamma c``, and
    ``w |d|^(gamma - 1) (gamma sign(d) p (1 - p) c + |d| d)``.
    """
    prob = logits.sigmoid()
    entropy = F.softplus(logits).sub_(logits * target)
    distance = prob - target
    weight = target.mul_(2 * alpha - 1).add_(1 - alpha)
    size = distance.abs()
    if gamma == 2:
        loss = distance.square().mul_(entropy).mul_(weight)
    else:
        loss = size.pow(gamma).mul_(entropy).mul_(weight)
    if not with_slope:
        return loss, None
    slope = (1 - prob).mul_(prob).mul_(entropy).mul_(gamma)
    if gamma == 2:  # |d| (2 sign(d) s + |d| d) = d (2 s + d^2)
        return loss, slope.addcmul_(distance, distance).mul_(distance).mul_(weight)
    slope.mul_(distance.sign()).addcmul_(size, distance)
    return loss, slope.mul_(size.pow_(gamma - 1) if gamma else 1 / size).mul_(weight)
