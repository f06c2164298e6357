"""What the trained box and mask heads of a two-stage model teach, at the RoIs that are sampled.

All sampled RoIs count alike, whether the labels call them positive or not, and sums are divided by
their number, as in the stock losses.
"""
from typing import Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmskd.errors import UsageError

from ..heads.roi import BoxHeadAdapter
from ..losses.boxes import box_term, excess
from ..losses.soft_target import at_least_float32, soft_form
from .soft_loss import soft_term


class BoxDistiller:
    """Compares the outputs of two box heads for the same RoIs.

    Args:
        adapter (BoxHeadAdapter): What is known of the student's head.

    Raises:
        UsageError: If its class loss has no soft-target form, or it compares decoded boxes.
    """

    def __init__(self, adapter: BoxHeadAdapter):
        head = adapter.head
        if head.reg_decoded_bbox:
            raise UsageError(
                f'model.{adapter.name} has reg_decoded_bbox=True: its box loss needs the RoIs, '
                'which the head is not given. Set it to False, with L1Loss or SmoothL1Loss '
                'as loss_bbox.')
        self._adapter, self._head = adapter, head
        self._class_loss = soft_form(head.loss_cls)

    def __call__(self, student: Tuple[Tensor, Tensor],
                 teacher: Tuple[Tensor, Tensor]) -> Dict[str, Tensor]:
        """The terms by the names of the head's own losses.

        Args:
            student (tuple): Class scores (N, C + 1) and offsets (N, C * 4), or (N, 4) if they are
                the same for all classes; None where the head has none.
            teacher (tuple): The same of the teacher.
        """
        (scores, offsets), (their_scores, their_offsets) = student, teacher
        rois = scores.new_tensor(max(len(scores), 1))
        terms = {'loss_cls': soft_term(self._class_loss, scores, their_scores, rois)}
        if offsets is not None:
            terms['loss_bbox'] = box_term(self._head.loss_bbox, offsets.reshape(-1, 4),
                                          their_offsets.reshape(-1, 4),
                                          self._adapter.box_weights(their_scores), rois)
        return terms


def mask_term(head: nn.Module, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The mask loss with the teacher's mask for a target, less the teacher's entropy.

    Args:
        head (nn.Module): FCNMaskHead.
        student (Tensor): Logits (N, C, H, W) of the positive RoIs, or (N, 1, H, W) if
            class-agnostic.
        teacher (Tensor): The same of the teacher.
        labels (Tensor): Which channel counts, (N,): the head has been trained in that one alone.

    Returns:
        Tensor: Scalar, the mean over pixels and RoIs.
    """
    rows = torch.arange(len(labels), device=labels.device)
    mine, theirs = (at_least_float32(side[rows, labels]) for side in (student, teacher))
    target = theirs.sigmoid()
    return head.loss_mask.loss_weight * excess(
        lambda logits: F.binary_cross_entropy_with_logits(logits, target), mine, theirs)
