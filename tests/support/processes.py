"""Two training processes: started as a user starts them, or without waiting for their imports."""
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import torch

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


def forking_context():
    """Processes are forked off one that has imported everything and done nothing else.

    That saves the ten seconds which each would take to import it.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmdet.apis', 'mmpose.apis', 'mmskd.engine.launch'])
    return context


def run_in_two(function, *args) -> None:
    """Call a function of a module with 0 and 1 and the arguments, in two processes."""
    context = forking_context()
    torch.multiprocessing.start_processes(function, args, nprocs=2,
                                          start_method=context.get_start_method())


def train_in_two(config: Path, *args: str) -> None:
    """``tools/train.py CONFIG --launcher pytorch`` in two processes."""
    context = forking_context()
    argv = [str(ROOT / 'tools/train.py'), str(config), '--launcher', 'pytorch', *args]
    log, port = config.with_suffix('.log'), free_port()
    ranks = [context.Process(target=_rank, args=(rank, argv, port, log)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0], log.read_text()[-3000:]


def _rank(rank: int, argv: list, port: str, log: Path) -> None:
    """What torchrun gives a process, and the tool."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    with log.open('a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = argv
    runpy.run_path(argv[0], run_name='__main__')
