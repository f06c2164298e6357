import os
import signal
import socket
import subprocess
import sys

import pytest

from mmskd.engine import peers
from mmskd.engine.peers import Peer, meet_peers, who_is_lost

RESET = RuntimeError('[/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:54957: '
                     'Connection reset by peer')
pytestmark = pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='no /proc')


@pytest.fixture
def child(monkeypatch):
    """A process that is rank 1 of two."""
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    host = socket.gethostname()
    monkeypatch.setattr(peers, '_peers', [Peer(0, host, os.getpid()), Peer(1, host, process.pid)])
    yield process
    process.kill()
    process.wait()


def test_a_dead_process_is_named(child):
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not cleared away
    expected = (
        'rank 0 of 2 ends because rank 1 has died (Read error [127.0.0.1]:54957: Connection '
        'reset by peer). --resume goes on from the newest checkpoint')
    assert who_is_lost(RESET) == expected
    child.wait()
    assert who_is_lost(RESET) == expected


def test_a_stopped_process_is_named(child):
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert 'rank 1 was stopped' in who_is_lost(
        RuntimeError('Timed out waiting 20000ms for recv operation to complete'))


def test_nobody_is_accused(child):
    assert 'none of this machine has died' in who_is_lost(RESET)
    assert who_is_lost(RuntimeError('shape mismatch')) is None
    assert who_is_lost(ValueError('reset by peer')) is None
    peers._peers[1] = Peer(1, 'another machine', 1)
    assert 'another rank does not answer' in who_is_lost(RESET)


def test_one_process_has_no_peers():
    meet_peers()
    assert who_is_lost(RESET) is None
