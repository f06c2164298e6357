"""USKD: soft labels that a network makes for itself."""
from typing import Optional

from torch import Tensor, nn

from mmskd.options import Options
from mmskd.registry import MODELS

from .functional import mask_of, uskd_nontarget, uskd_target, uskd_weak
from .nkd import average, counted, require_same_shape
from .soft_target import at_least_float32


@MODELS.register_module()
class USKDLoss(nn.Module):
    """Universal self-knowledge distillation, for softmax heads.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels", ICCV 2023::

        alpha * -(S_t^2 + y_t - mean(S_t^2)) log S_t        target class t
        beta  * -sum_{i != t} N(Z_i) log N(S_i)             other classes
        mu    * cross entropy of the weak logits with 0.9 y + 0.1 / C

    ``S`` are the probabilities, ``Z_i`` is one over the rank of class i by the weak and the final
    probabilities together, ``N`` normalises over the classes other than t (see
    :func:`~mmskd.models.losses.functional.uskd`). It is added to the hard loss. The weak logits
    come from an auxiliary classifier on a feature from the middle of the network;
    :class:`~mmskd.engine.hooks.USKDHook` brings one along.

    Args:
        alpha (float): Weight of the target part. Defaults to 1.0, the paper's choice for ImageNet.
        beta (float): Weight of the non-target part. Defaults to 0.1.
        mu (float): Weight of the weak logits' own loss. Defaults to 0.005.
        weight (float): Factor of the whole. Defaults to 1.0.
        ignore_background (bool): Whether the last class is a background: its samples have no loss,
            and it is left out of ``N`` in all others. Defaults to False: the background is a class
            like any other.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 0.1, mu: float = 0.005,
                 weight: float = 1.0, ignore_background: bool = False):
        super().__init__()
        options = Options('USKDLoss')
        self.alpha = options.number('alpha', alpha, least=0)
        self.beta = options.number('beta', beta, least=0)
        self.mu = options.number('mu', mu, least=0)
        self.weight = options.number('weight', weight, least=0)
        self.ignore_background = options.flag('ignore_background', ignore_background)

    def forward(self, cls_score: Tensor, weak_score: Tensor, label: Tensor,
                weight: Optional[Tensor] = None, avg_factor: Optional[float] = None) -> Tensor:
        """Loss of the samples that have a target class; ``mean(S_t^2)`` is over these.

        Args:
            cls_score (Tensor): Logits (N, C).
            weak_score (Tensor): Weak logits (N, C), trained by their own part of the loss only.
            label (Tensor): Class indices (N,); one outside of [0, C) has no loss. Or soft labels
                (N, C) with at most two classes.
            weight (Tensor, optional): Of each sample, (N,). Defaults to 1.
            avg_factor (float, optional): What the sum is divided by. Defaults to the number of
                samples with a target and a weight other than 0.

        Returns:
            Tensor: Scalar; 0 if there is no such sample.

        Raises:
            ValueError: If the shapes do not fit.
        """
        require_same_shape('USKDLoss', cls_score, weak_score=weak_score)
        keep, weight = counted(cls_score, label, weight, self.ignore_background)
        final, weak = at_least_float32(cls_score[keep]), at_least_float32(weak_score[keep])
        label = label[keep]
        others = ~mask_of(label, final)
        if self.ignore_background:
            others[:, -1] = False
        loss = (self.alpha * uskd_target(final, label) +
                self.beta * uskd_nontarget(final, weak, others) +
                self.mu * uskd_weak(weak, label))
        return self.weight * average(loss, weight, avg_factor)
