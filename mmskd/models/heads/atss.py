"""ATSS's head: offsets at one anchor a place, decoded for its overlap loss, and a centerness."""
from torch import Tensor

from .adapter import register_head
from .dense import DenseAdapter, Priors, corners_from_anchors


@register_head('ATSSHead')
class ATSSAdapter(DenseAdapter):
    """See the module."""

    quality = 'loss_centerness'
    beside = ('reg_convs', 'atss_reg', 'atss_centerness')

    def corners(self, prediction: Tensor, priors: Priors) -> Tensor:
        return corners_from_anchors(prediction, priors)
