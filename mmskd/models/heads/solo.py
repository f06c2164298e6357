"""SOLO's heads: an object for each cell of a grid, with its mask and its class."""
from .adapter import HeadAdapter, register_head


@register_head('SOLOHead')
class SOLOAdapter(HeadAdapter):
    """Masks (of x and of y in the decoupled form), then class scores."""

    scores = -1


@register_head('SOLOV2Head')
class SOLOv2Adapter(HeadAdapter):
    """Kernels of the masks, class scores, and the features that the kernels are applied to."""

    scores = 1
