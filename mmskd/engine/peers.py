"""Who else takes part in a distributed run, and who is gone."""
import os
import re
import socket
from pathlib import Path
from typing import List, NamedTuple, Optional

from mmengine.dist import all_gather_object, get_rank, is_distributed

# What gloo and NCCL say when another process does not answer
LOST = re.compile(r'closed by peer|reset by peer|Broken pipe|Timed out waiting|Socket Timeout'
                  r'|timed out|remote process|NCCL error', re.IGNORECASE)


class Peer(NamedTuple):
    """One process of a distributed run, and where it is."""
    rank: int
    host: str
    pid: int

    @property
    def state(self) -> Optional[str]:
        """What is known of a process of this machine that is not at work."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
            # 'Z': ended, but not yet taken note of; 'T': stopped. The name before it may hold
            # blanks
            state = Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()[0]
        except ProcessLookupError:
            state = 'Z'
        except OSError:  # no /proc
            return None
        return {'Z': 'has died', 'X': 'has died', 'T': 'was stopped'}.get(state)


_peers: List[Peer] = []


def meet_peers() -> None:
    """Remember the processes of this run; all call it, when they have met."""
    _peers[:] = []
    if is_distributed():
        _peers[:] = all_gather_object(Peer(get_rank(), socket.gethostname(), os.getpid()))


def who_is_lost(error: BaseException) -> Optional[str]:
    """A line on an error that says another process does not answer.

    Returns:
        str, optional: It names the ranks of this machine that have died. None if this is another
        error, or the run is not distributed.
    """
    if not _peers or not isinstance(error, RuntimeError) or not LOST.search(str(error)):
        return None
    states = [(peer.rank, peer.state) for peer in _peers if peer.pid != os.getpid() and peer.state]
    found = ', '.join(f'rank {rank} {state}' for rank, state in states) or (
        'another rank does not answer; none of this machine has died, so see the others')
    reason = str(error).strip().partition('\n')[0].rpartition('] ')[2]
    return (f'rank {get_rank()} of {len(_peers)} ends because {found} ({reason}). '
            '--resume goes on from the newest checkpoint')
