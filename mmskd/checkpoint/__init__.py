"""Reading checkpoints without running code, and publishing them. Knows no hook and no loss."""
from .publishing import publishable, write_checkpoint
from .reading import allow_checkpoint_classes, load_checkpoint_safely, use_safe_loading
from .weights import load_weights

__all__ = [
    'allow_checkpoint_classes', 'load_checkpoint_safely', 'load_weights', 'publishable',
    'use_safe_loading', 'write_checkpoint'
]
