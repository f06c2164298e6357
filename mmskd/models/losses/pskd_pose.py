"""PS-KD drop-ins for the losses of MMPose's SimCC and heatmap heads.

Each class has the constructor and the call of its hard-target namesake. Keypoint weights, masks and
the label's own smoothing are handled as there: they belong to the hard target, which is softened
after them.
"""
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from mmpose.models.losses import KeypointMSELoss, KeypointOHKMMSELoss, KLDiscretLoss
from torch import Tensor

from mmskd.registry import MODELS

from .functional import mean_of, pskd_heatmap, pskd_simcc_kl
from .soft_target import ABOUT, FORMS, SoftTargetLoss, at_least_float32, register_soft_loss


class _KeypointLoss(SoftTargetLoss):
    """What ``about`` means for keypoints: each is a sample.

    Positive are those with a weight, which are visible. A past self is as sure as its peak is high,
    beside that of the labels: a label that is spread over many bins has no bin near 1 either.
    """
    forms, abouts = FORMS, ABOUT
    places: Tuple[int, ...] = (-2, -1)  # the dimensions over which a keypoint is spread

    def confidence(self, past: Tensor, hard: Tensor) -> Tensor:
        """The peak of each keypoint as a share of the highest peak of the labels, in [0, 1].

        Args:
            past (Tensor): The past self's prediction, (N, K, W) or (N, K, H, W).
            hard (Tensor): The labels, same shape.

        Returns:
            Tensor: (N, K, 1) or (N, K, 1, 1).
        """
        peak = self.probability(past).amax(self.places, keepdim=True)
        highest = hard.amax() if hard.numel() else hard.new_ones(())
        return (peak / highest.clamp_min(torch.finfo(peak.dtype).tiny)).clamp(0, 1)

    def is_positive(self, past: Tensor, hard: Tensor, weight: Optional[Tensor] = None) -> Tensor:
        """Keypoints with a weight; all if there are no weights.

        Args:
            past (Tensor): As in :meth:`confidence`.
            hard (Tensor): The labels, same shape.
            weight (Tensor, optional): (N, K), or one of each pixel, (N, K, H, W).

        Returns:
            Tensor: Bool, (N, K, 1), (N, K, 1, 1) or (N, K, H, W).
        """
        if weight is None:
            return torch.ones_like(past[..., :1], dtype=torch.bool)
        return weight.view(weight.shape + (1, ) * (past.dim() - weight.dim())) > 0


@MODELS.register_module()
class PSKDKLDiscretLoss(_KeypointLoss, KLDiscretLoss):
    """mmpose's ``KLDiscretLoss`` (RTMPose, RTMW, SimCC) with the progressive target.

    The past self's distribution over the bins of an axis, ``softmax(beta * past)``, is mixed into
    the label's, after ``label_softmax`` where that is set.

    Args: As ``mmpose.KLDiscretLoss``.
    """
    usual_form = 'rescaled'  # the paper's costs keypoints (docs/results.md)
    places = (-1, )

    def forward(self, pred_simcc: Tuple[Tensor, Tensor], gt_simcc: Tuple[Tensor, Tensor],
                target_weight: Tensor) -> Tensor:
        """As ``mmpose.KLDiscretLoss``.

        Args:
            pred_simcc (tuple[Tensor | Pair]): Logits over the bins of x and of y, (N, K, W) each
                with its own W.
            gt_simcc (tuple[Tensor]): Targets of the same shapes.
            target_weight (Tensor): Weights of the keypoints, (N, K).

        Returns:
            Tensor: The loss, a scalar.
        """
        pred_simcc, past_simcc = self.split(pred_simcc)  # type: ignore[assignment]  # two axes
        if past_simcc is None:
            return super().forward(pred_simcc, gt_simcc, target_weight)
        keypoints = pred_simcc[0].size(1)
        weight = target_weight if self.use_target_weight else 1.
        loss = 0.
        for logits, target, past in zip(pred_simcc, gt_simcc, past_simcc):
            logits = at_least_float32(logits)
            if self.label_softmax:
                target = F.softmax(target * self.label_beta, dim=-1)
            target = target.to(logits)
            alpha_t = self.alpha_of(past, target, target_weight)
            divergence = pskd_simcc_kl(logits, target, past, alpha_t, self.beta, self.form)
            divergence = divergence * weight
            if self.mask is not None:
                divergence[:, self.mask] = divergence[:, self.mask] * self.mask_weight
            loss = loss + divergence.sum()
        return loss / keypoints

    def probability(self, pred: Tensor) -> Tensor:
        return (pred * self.beta).softmax(-1)


@MODELS.register_module()
class PSKDKeypointMSELoss(_KeypointLoss, KeypointMSELoss):
    """mmpose's ``KeypointMSELoss`` with the past heatmap mixed into the target heatmap.

    Which channels ``skip_empty_channel`` leaves out is decided by the hard target.

    Args: As ``mmpose.KeypointMSELoss``.
    """

    def forward(self, output: Tensor, target: Tensor, target_weights: Optional[Tensor] = None,
                mask: Optional[Tensor] = None) -> Tensor:
        """As ``mmpose.KeypointMSELoss``.

        Args:
            output (Tensor | Pair): Heatmaps (B, K, H, W).
            target (Tensor): Target heatmaps (B, K, H, W).
            target_weights (Tensor, optional): Weights (B, K) or (B, K, H, W).
            mask (Tensor, optional): Pixels that count, (B, K, H, W) or (B, 1, H, W).

        Returns:
            Tensor: The loss, a scalar.
        """
        output, past = self.split(output)
        if past is None:
            return super().forward(output, target, target_weights, mask)
        output = at_least_float32(output)
        weight = self._get_mask(target, target_weights, mask)
        target = target.to(output)
        alpha_t = self.alpha_of(past, target, target_weights)
        loss = pskd_heatmap(output, target, past, alpha_t, self.form)
        loss = loss if weight is None else loss * weight
        return mean_of(loss) * self.loss_weight

    def probability(self, pred: Tensor) -> Tensor:
        return pred


@MODELS.register_module()
class PSKDKeypointOHKMMSELoss(_KeypointLoss, KeypointOHKMMSELoss):
    """mmpose's ``KeypointOHKMMSELoss`` (MSPN) with the past heatmap mixed into the target heatmap.

    The hardest keypoints are those with the largest loss to the hard target, as without a past
    self.

    Args: As ``mmpose.KeypointOHKMMSELoss``.
    """

    def forward(self, output: Tensor, target: Tensor, target_weights: Tensor) -> Tensor:
        """As ``mmpose.KeypointOHKMMSELoss``.

        Args:
            output (Tensor | Pair): Heatmaps (B, K, H, W).
            target (Tensor): Target heatmaps (B, K, H, W).
            target_weights (Tensor): Weights (B, K).

        Returns:
            Tensor: The loss, a scalar.
        """
        output, past = self.split(output)
        if past is None:
            return super().forward(output, target, target_weights)
        output = at_least_float32(output)
        target = target.to(output)
        weight = target_weights[..., None, None] if self.use_target_weight else 1.
        alpha_t = self.alpha_of(past, target, target_weights)
        to_soft = pskd_heatmap(output, target, past, alpha_t, self.form)
        to_hard = F.mse_loss(output.detach(), target, reduction='none')
        to_soft, to_hard = ((each * weight**2).mean((2, 3)) for each in (to_soft, to_hard))
        hardest = to_hard.topk(self.topk, dim=1).indices
        return mean_of(to_soft.gather(1, hardest)) * self.loss_weight

    def probability(self, pred: Tensor) -> Tensor:
        return pred


for _stock, _soft in ((KLDiscretLoss, PSKDKLDiscretLoss), (KeypointMSELoss, PSKDKeypointMSELoss),
                      (KeypointOHKMMSELoss, PSKDKeypointOHKMMSELoss)):
    register_soft_loss(_stock, _soft)
