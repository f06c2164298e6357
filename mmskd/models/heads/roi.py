"""Box and mask heads of two-stage detectors, which are asked about RoIs."""
from typing import Any, List

from torch import Tensor, nn

from ..losses.boxes import BoxLesson
from ..losses.soft_target import at_least_float32
from .adapter import HeadAdapter, register_head


@register_head('BBoxHead', 'ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead')
class BoxHeadAdapter(HeadAdapter):
    """Scores (N, C + 1) and offsets at RoIs, of which there may be none."""

    rests = True
    beside = ('reg_convs', 'reg_fcs', 'fc_reg')
    has_boxes = True

    @property
    def foreground(self) -> int:
        """int: Losses of sigmoids, too, have a score of the background behind those of classes."""
        return self.head.num_classes

    @property
    def box_refusal(self) -> str:
        """str: Also if the boxes do not simply scale with the RoI, which the head is not given."""
        head, refusal = self.head, super().box_refusal
        if refusal:
            return refusal
        if not head.with_reg:
            return 'it predicts no boxes (with_reg=False)'
        if type(head.bbox_coder).__name__ != 'DeltaXYWHBBoxCoder' or head.bbox_coder.add_ctr_clamp:
            return (f'its bbox_coder is {type(head.bbox_coder).__name__}, and supported is '
                    'DeltaXYWHBBoxCoder without add_ctr_clamp')
        return ''

    def box_weights(self, scores: Tensor) -> Tensor:
        """How much the teacher's boxes count: those of a class by its probability.

        The offsets to other classes were not trained.

        Args:
            scores (Tensor): The teacher's, (N, C + 1).

        Returns:
            Tensor: (N * C,), or (N,) where a RoI has one box for all classes.
        """
        weight = self.class_loss().probability(scores)[:, :self.head.num_classes]
        if self.head.reg_class_agnostic:
            weight = weight.sum(1).clamp(max=1)
        return weight.reshape(-1)

    def box_lessons(self, output: Any, answer: Any) -> List[BoxLesson]:
        """Offsets to a RoI of size 1 in place of its own.

        Overlaps do not depend on place and size.
        """
        scores, theirs = at_least_float32(answer[0]), at_least_float32(answer[1]).reshape(-1, 4)
        mine = at_least_float32(output[1]).reshape(-1, 4)
        unit = mine.new_tensor([0., 0., 1., 1.]).expand_as(mine)
        decode = self.head.bbox_coder.decode
        return [BoxLesson(decode(unit, mine), decode(unit, theirs), self.box_weights(scores))]

    def obstacle(self, model: nn.Module) -> str:
        """HTC and SCNet add features of another branch to those of a RoI."""
        roi_head = getattr(model, 'roi_head', None)
        for name in ('semantic_head', 'glbctx_head'):
            fused = name != 'semantic_head' or 'bbox' in getattr(roi_head, 'semantic_fusion',
                                                                 ('bbox', ))
            if getattr(roi_head, name, None) is not None and fused:
                return (
                    f'what model.roi_head.{name} finds is added to the features of its RoIs, and a '
                    "teacher's answer does not survive a sum. Leave that branch out (HTC: "
                    'htc-without-semantic_r50_fpn_1x_coco.py), or train without a teacher.')
        return ''

    def links(self, model: nn.Module) -> List[str]:
        return ['roi_head.bbox_roi_extractor', 'roi_head.shared_head']


@register_head('FCNMaskHead')
class MaskHeadAdapter(HeadAdapter):
    """A map of logits (C, H, W) for each positive RoI. It has no class scores."""
