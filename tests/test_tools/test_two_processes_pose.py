"""Both stages of DWPose in two processes."""
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpose')

from mmskd.checkpoint import load_checkpoint_safely  # noqa: E402
from tests.support import pose_runs, runs  # noqa: E402
from tests.support.processes import train_in_two  # noqa: E402


def ranks(folder: Path) -> list:
    return [torch.load(folder / f'rank{rank}.pt', weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return pose_runs.data(tmp_path_factory.mktemp('figures') / 'data')


@pytest.fixture(scope='module')
def trained(data_root, tmp_path_factory):
    """A teacher twice as wide, and a trained student."""
    folder = tmp_path_factory.mktemp('trained')
    for name, base in (('teacher', 16), ('student', 8)):
        cfg = pose_runs.config(data_root, folder / name, [], length=1, base=base)
        cfg.dump(str(folder / f'{name}.py'))
        runs.train(cfg)
    return folder


def run(data_root: Path, tmp_path: Path, hook: dict) -> list:
    """Train three epochs; again from the second; both ranks of both must agree."""
    cfg = pose_runs.config(data_root, tmp_path / 'whole', [hook], length=3, ema=True)
    cfg.custom_imports = dict(imports=['tests.support.rank_recorder'])
    cfg.custom_hooks.append(dict(type='RankRecorder'))
    cfg.pop('env_cfg')  # the backend is the tool's to choose
    config = tmp_path / 'config.py'
    cfg.dump(str(config))
    train_in_two(config)
    whole = ranks(tmp_path / 'whole')
    for rank in whole:
        assert (rank['wrapper'], rank['unused']) == ('MMDistributedDataParallel', False)
        assert all(value == value and value < 1e6
                   for row in rank['losses']
                   for value in row.values())
    runs.assert_equal(whole[0]['weights'], whole[1]['weights'])
    assert whole[0]['losses'] != whole[1]['losses']  # each rank has images of its own

    train_in_two(config, '--work-dir', str(tmp_path / 'resumed'), '--resume',
                 str(tmp_path / 'whole' / 'epoch_2.pth'))
    for first, second in zip(whole, ranks(tmp_path / 'resumed')):
        runs.assert_equal(first['weights'], second['weights'])
        assert second['losses'] == first['losses'][-len(second['losses']):]
    return whole


def test_stage_1(data_root, trained, tmp_path):
    teacher = dict(config=str(trained / 'teacher.py'),
                   checkpoint=str(trained / 'teacher/epoch_1.pth'))
    first, second = run(data_root, tmp_path, dict(type='mmskd.DistillHook', teacher=teacher))
    assert first['projections']
    runs.assert_equal(first['projections'], second['projections'])


def test_stage_2(data_root, trained, tmp_path):
    checkpoint = str(trained / 'student/epoch_1.pth')
    first, _ = run(data_root, tmp_path, dict(type='mmskd.HeadDistillHook', checkpoint=checkpoint))
    before = load_checkpoint_safely(checkpoint)['state_dict']
    for name, value in first['weights'].items():
        name = name.replace('module.', '', 1)
        assert torch.equal(value, before[name]) == (not name.startswith('head.')), name
