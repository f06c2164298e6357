"""RTMDet's heads: scores, and distances to the four sides."""
from torch import Tensor

from .adapter import register_head
from .dense import DenseAdapter, Priors, corners_from_distances


@register_head('RTMDetHead', 'RTMDetSepBNHead')
class RTMDetAdapter(DenseAdapter):
    """See the module."""

    beside = ('reg_convs', 'rtm_reg')

    def corners(self, prediction: Tensor, priors: Priors) -> Tensor:
        return corners_from_distances(prediction)
