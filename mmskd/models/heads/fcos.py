"""FCOS's head: distances to the four sides, and a centerness."""
from torch import Tensor

from .adapter import register_head
from .dense import DenseAdapter, Priors, corners_from_distances


@register_head('FCOSHead')
class FCOSAdapter(DenseAdapter):
    """See the module."""

    quality = 'loss_centerness'
    beside = ('reg_convs', 'conv_reg', 'conv_centerness')

    def corners(self, prediction: Tensor, priors: Priors) -> Tensor:
        return corners_from_distances(prediction)
