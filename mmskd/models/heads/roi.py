"""Box and mask heads of two-stage detectors, which are asked about RoIs."""
from typing import List

from torch import nn

from .adapter import HeadAdapter, register_head


@register_head('BBoxHead', 'ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead')
class BoxHeadAdapter(HeadAdapter):
    """Scores (N, C + 1) and offsets at RoIs, of which there may be none."""

    rests = True
    beside = ('reg_convs', 'reg_fcs', 'fc_reg')

    def links(self, model: nn.Module) -> List[str]:
        return ['roi_head.bbox_roi_extractor', 'roi_head.shared_head']


@register_head('FCNMaskHead')
class MaskHeadAdapter(HeadAdapter):
    """A map of logits (C, H, W) for each positive RoI. It has no class scores."""
