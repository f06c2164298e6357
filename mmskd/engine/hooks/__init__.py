"""Hooks: when a teacher is refreshed, saved and asked, and what makes a resume exact."""
from mmskd.optional import HAS_MMDET
from .calibration_picture_hook import CalibrationPictureHook
from .random_streams_hook import RandomStreamsHook

__all__ = ['CalibrationPictureHook', 'RandomStreamsHook']

if HAS_MMDET:
    from .pskd_hook import PSKDHook
    __all__ += ['PSKDHook']
