"""Two training processes, started as a user starts them."""
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    """One that nobody listens on, so that two test runs on a machine do not meet."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def dist_train(config: Path, *args, **variables) -> None:
    """``bash tools/dist_train.sh CONFIG 2``, with further options and environment variables."""
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PORT=free_port(),
                       PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
                       **variables)
    done = subprocess.run(['bash', str(ROOT / 'tools/dist_train.sh'), str(config), '2', *args],
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:]
