"""PS-KD in two processes; one run is started as a user does: tools/dist_train.sh CONFIG 2."""
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from mmskd.checkpoint import load_checkpoint_safely  # noqa: E402
from tests.support import runs  # noqa: E402
from tests.support.processes import dist_train, train_in_two  # noqa: E402


def ranks(folder: Path) -> list:
    return [torch.load(folder / f'rank{rank}.pt', weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return runs.data(tmp_path_factory.mktemp('shapes') / 'data', train=16)


@pytest.mark.parametrize('loop,length', [('epoch', 3), ('iter', 6)])
def test_ranks_agree_and_the_run_resumes(data_root, tmp_path, loop, length):
    cfg = runs.config(data_root, tmp_path / 'whole', loop, length, ema=True)
    cfg.custom_imports = dict(imports=['tests.support.rank_recorder'])
    cfg.custom_hooks += [dict(type='RankRecorder'), dict(type='mmskd.CalibrationPictureHook')]
    cfg.pop('env_cfg')  # the backend is the tool's to choose
    config = tmp_path / 'config.py'
    cfg.dump(str(config))

    train_in_two(config)
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
        assert all(value == value and value < 1e4
                   for row in rank['losses']
                   for value in row.values())

    # Stopped after two thirds and taken up again, it ends in the same place.
    work_dir = tmp_path / 'resumed'
    if loop == 'iter':
        train_in_two(config, '--work-dir', str(work_dir), '--resume',
                     str(tmp_path / 'whole' / 'iter_4.pth'))
    else:  # a rank dies in the fifth iteration, and torchrun starts all again
        cfg.custom_hooks.append(dict(type='DyingRank', iteration=4))
        cfg.dump(str(config))
        dist_train(config, '--work-dir', str(work_dir), '--resume', 'auto-or-start',
                   MAX_RESTARTS='1')
    for whole, resumed in zip((first, second), ranks(work_dir)):
        runs.assert_equal(whole['weights'], resumed['weights'])
        assert resumed['losses'] == whole['losses'][4:]


@pytest.mark.parametrize('make, head', [(runs.config, 'bbox_head.'),
                                        (runs.two_stage_config, 'roi_head.bbox_head.')])
def test_a_fresh_head_is_all_that_learns_and_the_run_resumes(data_root, tmp_path, make, head):
    """No head parameter is unused, though the labels do not count; nothing else moves on any rank.
    """
    runs.train(make(data_root, tmp_path / 'trained', length=1))
    checkpoint = str(tmp_path / 'trained' / 'epoch_1.pth')
    cfg = make(data_root, tmp_path / 'whole', length=2)
    cfg.custom_imports = dict(imports=['tests.support.rank_recorder'])
    cfg.custom_hooks[0] = dict(type='mmskd.HeadDistillHook', checkpoint=checkpoint)
    cfg.custom_hooks.append(dict(type='RankRecorder'))
    cfg.pop('env_cfg')
    config = tmp_path / 'config.py'
    cfg.dump(str(config))

    train_in_two(config)
    first, second = ranks(tmp_path / 'whole')
    runs.assert_equal(first['weights'], second['weights'])
    assert (first['wrapper'], first['unused']) == ('MMDistributedDataParallel', False)
    assert first['losses'] != second['losses']  # each rank has images of its own
    before = load_checkpoint_safely(checkpoint)['state_dict']
    for name, value in first['weights'].items():
        name = name.replace('module.', '', 1)
        assert name.startswith(head) or torch.equal(value, before[name]), name

    train_in_two(config, '--work-dir', str(tmp_path / 'resumed'), '--resume',
                 str(tmp_path / 'whole' / 'epoch_1.pth'))
    for whole, resumed in zip((first, second), ranks(tmp_path / 'resumed')):
        runs.assert_equal(whole['weights'], resumed['weights'])
        assert resumed['losses'] == whole['losses'][2:]
