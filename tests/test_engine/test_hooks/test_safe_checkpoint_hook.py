"""Killed at any moment, a run goes on from a whole checkpoint, to the same end."""
import os
from pathlib import Path

import pytest
import torch

from mmskd.checkpoint import load_checkpoint_safely, newest_whole, use_safe_loading
from tests.support.tiny_runs import tiny_runner


class Killed(BaseException):
    """A kill: nothing of the program runs after it."""


@pytest.fixture(autouse=True)
def schemes(monkeypatch):
    from mmengine.runner import CheckpointLoader
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())
    use_safe_loading()


class Disk:
    """Counts what changes names on the disk, and kills before one of these steps."""

    def __init__(self, monkeypatch):
        self.done, self.kill_at = 0, None
        for name in ('replace', 'unlink', 'remove'):
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))

    def watched(self, function):

        def step(*args, **kwargs):
            if str(args[0]).endswith(('.pth', '.pth.unfinished', 'last_checkpoint.unfinished')):
                self.done += 1
                if self.done == self.kill_at:
                    raise Killed
            return function(*args, **kwargs)

        return step


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


SCORES = {2: .1, 4: .3, 6: .2, 8: .4}
BEST = dict(save_best='score', rule='greater', scores=SCORES)
SETTINGS = [
    dict(max_keep_ckpts=2, length=3),
    dict(max_keep_ckpts=1, length=2, loop='iter'),
    dict(max_keep_ckpts=1, length=2, **BEST),
    dict(max_keep_ckpts=1, length=2, **BEST, loop='iter'),
]


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py')


def final(folder):
    return load_checkpoint_safely(newest_whole(str(folder)).path)


def assert_same(first, second):
    for name, value in first['state_dict'].items():
        assert torch.equal(value, second['state_dict'][name]), name
    for kept in ('keep_ckpt_ids', 'best_score', 'epoch', 'iter'):
        assert first['message_hub']['runtime_info'].get(kept) == second['message_hub'][
            'runtime_info'].get(kept)
    assert first['optimizer']['state'].keys() == second['optimizer']['state'].keys()
    for name, state in first['optimizer']['state'].items():
        assert torch.equal(state['momentum_buffer'],
                           second['optimizer']['state'][name]['momentum_buffer'])
    assert first['param_schedulers'] == second['param_schedulers']


@pytest.mark.parametrize('settings', SETTINGS, ids=['epoch', 'iter', 'best', 'best by iter'])
def test_killed_at_any_step_the_run_goes_on_to_the_same_end(settings, tmp_path, disk):
    tiny_runner(tmp_path / 'whole', **settings).train()
    steps, expected = disk.done, final(tmp_path / 'whole')
    assert steps >= 5
    for step in range(1, steps + 1):
        folder = tmp_path / f'killed-{step}'
        disk.done, disk.kill_at = 0, step
        with pytest.raises(Killed):
            tiny_runner(folder, **settings).train()
        disk.kill_at = None
        found = newest_whole(str(folder))
        assert not found.passed_over
        assert step <= 2 or found.path, 'there was a checkpoint, and it is lost'
        named = folder / 'last_checkpoint'
        assert not named.exists() or Path(named.read_text()).is_file(), 'stock tools follow it'
        tiny_runner(folder, **settings, resume=bool(found.path), load_from=found.path).train()
        assert_same(expected, final(folder))
        assert files(folder) == files(tmp_path / 'whole')


def test_options_and_files_are_those_of_the_original(tmp_path):
    settings = dict(max_keep_ckpts=2, save_best='score', rule='greater', scores=SCORES,
                    filename_tmpl='e{}.pth', save_optimizer=False)
    for hook in ('CheckpointHook', 'mmskd.SafeCheckpointHook'):
        tiny_runner(tmp_path / hook, hook=hook, **settings).train()
    ours, theirs = tmp_path / 'mmskd.SafeCheckpointHook', tmp_path / 'CheckpointHook'
    assert files(ours) == files(theirs) == [
        'best_score_e4.pth', 'e3.pth', 'e4.pth', 'last_checkpoint'
    ]
    for name in ('e4.pth', 'best_score_e4.pth'):
        first, second = (load_checkpoint_safely(str(folder / name)) for folder in (ours, theirs))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second['state_dict'][key])
                   for key, value in first['state_dict'].items())


def test_out_dir(tmp_path):
    tiny_runner(tmp_path / 'run', out_dir=str(tmp_path / 'saved'), max_keep_ckpts=1).train()
    assert files(tmp_path / 'saved' / 'run') == ['epoch_4.pth']
    found = newest_whole(str(tmp_path / 'run'), str(tmp_path / 'saved' / 'run'))
    assert found.path == str(tmp_path / 'saved' / 'run' / 'epoch_4.pth')


def test_a_validation_that_is_done_again_keeps_its_best_checkpoint(tmp_path):
    """MMEngine deletes the previous best one by name, which may be that of the new one."""
    runner = tiny_runner(tmp_path, save_best='score', rule='greater', scores={2: .1}, length=1)
    runner.train()
    runner.message_hub.update_info('best_score', 0.)
    runner.train_loop._epoch = 1
    runner.call_hook('after_val_epoch', metrics=dict(score=.2))
    assert 'best_score_epoch_1.pth' in files(tmp_path)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    from mmskd.checkpoint import saving
    from mmskd.errors import DiskFullError
    write = saving.os.fsync

    def fsync(descriptor):
        if os.path.exists(tmp_path / 'epoch_3.pth.unfinished'):
            raise OSError(28, 'No space left on device')
        write(descriptor)

    monkeypatch.setattr(saving.os, 'fsync', fsync)
    with pytest.raises(DiskFullError, match=r'epoch_3.pth: \d.\d MB are needed'):
        tiny_runner(tmp_path, max_keep_ckpts=1).train()
    monkeypatch.undo()
    assert files(tmp_path) == ['epoch_2.pth', 'last_checkpoint']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_2.pth')
