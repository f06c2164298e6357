"""Box and mask heads of two-stage detectors, which are asked about RoIs."""
from typing import List

from torch import nn

from .adapter import HeadAdapter, register_head


@register_head('BBoxHead', 'ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead')
class BoxHeadAdapter(HeadAdapter):
    """Scores (N, C + 1) and offsets at RoIs, of which there may be none."""

    rests = True
    beside = ('reg_convs', 'reg_fcs', 'fc_reg')

    def obstacle(self, model: nn.Module) -> str:
        """HTC and SCNet add features of another branch to those of a RoI."""
        roi_head = getattr(model, 'roi_head', None)
        for name in ('semantic_head', 'glbctx_head'):
            fused = name != 'semantic_head' or 'bbox' in getattr(roi_head, 'semantic_fusion', ('bbox', ))
            if getattr(roi_head, name, None) is not None and fused:
                return (f"what model.roi_head.{name} finds is added to the features of its RoIs, and a teacher's "
                        'answer does not survive a sum. Leave that branch out (HTC: '
                        'htc-without-semantic_r50_fpn_1x_coco.py), or train without a teacher.')
        return ''

    def links(self, model: nn.Module) -> List[str]:
        return ['roi_head.bbox_roi_extractor', 'roi_head.shared_head']


@register_head('FCNMaskHead')
class MaskHeadAdapter(HeadAdapter):
    """A map of logits (C, H, W) for each positive RoI. It has no class scores."""
