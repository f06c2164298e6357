"""What the heads of MMDetection and MMPose are: a file for each family.

A head of your own: derive from :class:`HeadAdapter` (or a family's adapter), say what differs, and
register it with :func:`register_head`, anywhere in your own code. See docs/extend.md.
"""
from . import (  # noqa: F401
               atss,
               fcos,
               gfl,
               paa,
               pose,
               query,
               refused,
               retina,
               roi,
               rtmdet,
               rtmo,
               solo,
               ssd,
               tood,
               vfnet,
               yolox,
)
from .adapter import HeadAdapter, adapter_of, refuse_heads, register_head
from .choosing import choose_heads, is_detector, is_pose_estimator, stage_weight
from .dense import DenseAdapter, Priors
from .taught import TaughtHead

__all__ = [
    'DenseAdapter', 'HeadAdapter', 'Priors', 'TaughtHead', 'adapter_of', 'choose_heads',
    'is_detector', 'is_pose_estimator', 'refuse_heads', 'register_head', 'stage_weight'
]
