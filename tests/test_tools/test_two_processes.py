"""PS-KD in two processes, started as a user starts them: bash tools/dist_train.sh CONFIG 2."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from tests import runs  # noqa: E402

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    """One that nobody listens on, so that two test runs on a machine do not meet."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def dist_train(config: Path, *args) -> None:
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PORT=free_port(),
                       PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    done = subprocess.run(['bash', str(ROOT / 'tools/dist_train.sh'), str(config), '2', *args],
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:]


def ranks(folder: Path) -> list:
    return [torch.load(folder / f'rank{rank}.pt', weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return runs.data(tmp_path_factory.mktemp('shapes') / 'data', train=16)


@pytest.mark.parametrize('loop,length', [('epoch', 3), ('iter', 6)])
def test_ranks_agree_and_the_run_resumes(data_root, tmp_path, loop, length):
    cfg = runs.config(data_root, tmp_path / 'whole', loop, length, ema=True)
    cfg.custom_imports = dict(imports=['tests.rank_recorder'])
    cfg.custom_hooks += [dict(type='RankRecorder'), dict(type='mmskd.CalibrationPictureHook')]
    cfg.pop('env_cfg')  # the backend is the tool's to choose
    config = tmp_path / 'config.py'
    cfg.dump(str(config))

    dist_train(config)
    first, second = ranks(tmp_path / 'whole')
    runs.assert_equal(first['weights'], second['weights'])
    runs.assert_equal(first['past'], second['past'])
    assert (first['wrapper'], first['unused']) == ('MMDistributedDataParallel', False)
    pictures = [path.name for path in (tmp_path / 'whole').rglob('vis_image/*.png')]
    assert sorted(pictures) == [f'{name}_{step}.png' for name in ('predictions', 'reliability')
                                for step in ((2, 3) if loop == 'epoch' else (4, 6))]
    assert first['losses'] != second['losses']  # each rank has images of its own
    for rank in (first, second):
        assert rank['disagreement'] > 0 and len(rank['losses']) == 6
        assert all(value == value and value < 1e4 for row in rank['losses'] for value in row.values())

    # Stopped after two thirds and taken up again, it ends in the same place.
    work_dir = tmp_path / 'resumed'
    saved = tmp_path / 'whole' / ('epoch_2.pth' if loop == 'epoch' else 'iter_4.pth')
    dist_train(config, '--work-dir', str(work_dir), '--resume', str(saved))
    for whole, resumed in zip((first, second), ranks(work_dir)):
        runs.assert_equal(whole['weights'], resumed['weights'])
        assert resumed['losses'] == whole['losses'][4:]
