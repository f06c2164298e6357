"""Where a teacher's prediction comes from."""
from .mirror import Mirror
from .past_self import PastSelf
from .pose_mirror import PoseMirror

__all__ = ['Mirror', 'PastSelf', 'PoseMirror']
