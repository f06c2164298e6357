"""Hooks: when a teacher is refreshed, saved and asked, and what makes a resume exact."""
from mmskd.optional import HAS_MMDET
from .nkd_hook import NKDHook
from .random_streams_hook import RandomStreamsHook
from .uskd_hook import USKDHook

__all__ = ['NKDHook', 'RandomStreamsHook', 'USKDHook']

if HAS_MMDET:
    from .pskd_hook import PSKDHook
    __all__ += ['PSKDHook']
