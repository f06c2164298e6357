"""RetinaNet's heads: scores and offsets at anchors."""
from typing import ClassVar, Tuple

from torch import Tensor

from .adapter import register_head
from .dense import DenseAdapter, Priors, corners_from_anchors


@register_head('RetinaHead', 'RetinaSepBNHead')
class RetinaAdapter(DenseAdapter):
    """Its box loss compares offsets as they are, unless it decodes them."""

    beside: ClassVar[Tuple[str, ...]] = ('reg_convs', 'retina_reg')

    @property
    def compares_boxes(self) -> bool:
        return self.head.reg_decoded_bbox

    def corners(self, prediction: Tensor, priors: Priors) -> Tensor:
        return corners_from_anchors(prediction, priors)
