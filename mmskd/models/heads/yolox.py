"""YOLOX's head: class scores given an object, boxes, and an objectness."""
from torch import Tensor

from .adapter import register_head
from .dense import DenseAdapter, Priors


@register_head('YOLOXHead')
class YOLOXAdapter(DenseAdapter):
    """Its class loss is that of the positives alone, so there may be none."""

    quality = 'loss_obj'
    objectness = True
    rests = True
    beside = ('multi_level_reg_convs', 'multi_level_conv_reg', 'multi_level_conv_obj')

    def corners(self, prediction: Tensor, priors: Priors) -> Tensor:
        return self.head._bbox_decode(priors.of(prediction, with_stride=True), prediction)
