"""Names under which torch.profiler shows what mmskd adds to a training step."""
from torch.profiler import record_function

TEACHER = 'mmskd/teacher'
"""The teacher's forward pass."""
PAIRING = 'mmskd/pairing'
"""Its predictions follow those of the student."""
LOSS = 'mmskd/loss'
"""Losses with a soft target, and between student and teacher; forward."""
REFRESH = 'mmskd/refresh'
"""The teacher takes over new weights."""

__all__ = ['LOSS', 'PAIRING', 'REFRESH', 'TEACHER', 'record_function']
