"""Where a teacher's prediction comes from."""
from .mirror import Mirror
from .past_self import PastSelf

__all__ = ['Mirror', 'PastSelf']
