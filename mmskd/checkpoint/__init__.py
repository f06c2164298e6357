"""Reading checkpoints without running code, and publishing them. Knows no hook and no loss."""
from .publishing import publishable, write_checkpoint
from .reading import allow_checkpoint_classes, load_checkpoint_safely
from .resuming import Resumable, check_whole, last_checkpoint, newest_whole
from .saving import write_whole
from .sources import NotDownloadedError, use_safe_loading
from .weights import load_weights

__all__ = [
    'NotDownloadedError', 'Resumable', 'allow_checkpoint_classes', 'check_whole',
    'last_checkpoint', 'load_checkpoint_safely', 'load_weights', 'newest_whole', 'publishable',
    'use_safe_loading', 'write_checkpoint', 'write_whole'
]
