"""PS-KD drop-ins for the losses of MMPose's SimCC and heatmap heads.

Each class has the constructor and the call of its hard-target namesake. Keypoint weights, masks and the label's
own smoothing are handled as there: they belong to the hard target, which is softened after them.
"""
from typing import Optional, Tuple

import torch.nn.functional as F
from mmpose.models.losses import KeypointMSELoss, KeypointOHKMMSELoss, KLDiscretLoss
from torch import Tensor

from mmskd.registry import MODELS
from .functional import mean_of, progressive_target, pskd_simcc_kl
from .soft_target import SoftTargetLoss, at_least_float32, register_soft_loss


@MODELS.register_module()
class PSKDKLDiscretLoss(SoftTargetLoss, KLDiscretLoss):
    """mmpose's ``KLDiscretLoss`` (RTMPose, RTMW, SimCC) with the progressive target.

    The past self's distribution over the bins of an axis, ``softmax(beta * past)``, is mixed into the
    label's, after ``label_softmax`` where that is set.

    Args: As ``mmpose.KLDiscretLoss``.
    """

    def forward(self, pred_simcc: Tuple[Tensor, Tensor], gt_simcc: Tuple[Tensor, Tensor],
                target_weight: Tensor) -> Tensor:
        """As ``mmpose.KLDiscretLoss``.

        Args:
            pred_simcc (tuple[Tensor | Pair]): Logits over the bins of x and of y, (N, K, W) each with
                its own W.
            gt_simcc (tuple[Tensor]): Targets of the same shapes.
            target_weight (Tensor): Weights of the keypoints, (N, K).

        Returns:
            Tensor: The loss, a scalar.
        """
        pred_simcc, past_simcc = self.split(pred_simcc)
        if past_simcc is None:
            return super().forward(pred_simcc, gt_simcc, target_weight)
        keypoints = pred_simcc[0].size(1)
        weight = target_weight if self.use_target_weight else 1.
        loss = 0.
        for logits, target, past in zip(pred_simcc, gt_simcc, past_simcc):
            logits = at_least_float32(logits)
            if self.label_softmax:
                target = F.softmax(target * self.label_beta, dim=-1)
            divergence = pskd_simcc_kl(logits, target.to(logits), past, self.alpha_t, self.beta)
            divergence = divergence * weight
            if self.mask is not None:
                divergence[:, self.mask] = divergence[:, self.mask] * self.mask_weight
            loss = loss + divergence.sum()
        return loss / keypoints

    def probability(self, pred: Tensor) -> Tensor:
        return (pred * self.beta).softmax(-1)


@MODELS.register_module()
class PSKDKeypointMSELoss(SoftTargetLoss, KeypointMSELoss):
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
        soft = progressive_target(target.to(output), past, self.alpha_t)
        loss = F.mse_loss(output, soft, reduction='none')
        loss = loss if weight is None else loss * weight
        return mean_of(loss) * self.loss_weight

    def probability(self, pred: Tensor) -> Tensor:
        return pred


@MODELS.register_module()
class PSKDKeypointOHKMMSELoss(SoftTargetLoss, KeypointOHKMMSELoss):
    """mmpose's ``KeypointOHKMMSELoss`` (MSPN) with the past heatmap mixed into the target heatmap.

    The hardest keypoints are those with the largest loss to the hard target, as without a past self.

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
        soft = progressive_target(target, past, self.alpha_t)
        to_soft, to_hard = ((((output - each) * weight)**2).mean((2, 3)) for each in (soft, target))
        hardest = to_hard.topk(self.topk, dim=1).indices
        return mean_of(to_soft.gather(1, hardest)) * self.loss_weight

    def probability(self, pred: Tensor) -> Tensor:
        return pred


for _stock, _soft in ((KLDiscretLoss, PSKDKLDiscretLoss), (KeypointMSELoss, PSKDKeypointMSELoss),
                      (KeypointOHKMMSELoss, PSKDKeypointOHKMMSELoss)):
    register_soft_loss(_stock, _soft)
