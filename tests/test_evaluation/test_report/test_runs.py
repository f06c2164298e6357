"""Work dirs are written by hand here; those of real trainings are read in test_page.py."""
import json
from datetime import datetime

import numpy as np
import pytest

from mmskd.errors import UsageError
from mmskd.evaluation.report.runs import MISSING, Run, config_differences, group_runs, metrics_of
from tests.support.report_runs import write_run

CONFIG = """
default_scope = '{scope}'
helper = {lr}
model = dict(type='RetinaNet', layers=[dict(size=1), dict(size=2)])
optim_wrapper = dict(optimizer=dict(lr={lr}))
randomness = dict(seed={seed})
work_dir = '{name}'
resume = {resume}
load_from = {load_from!r}
"""


@pytest.fixture
def make_run(tmp_path):

    def make(name, seed=0, lr=0.1, scope='mmdet', resume=False, load_from=None, lines=(), **more):
        folder = tmp_path / name / '20260101_000000' / 'vis_data'
        folder.mkdir(parents=True)
        text = CONFIG.format(name=name, seed=seed, lr=lr, scope=scope, resume=resume,
                             load_from=load_from)
        text += ''.join(f'{key} = {value!r}\n' for key, value in more.items())
        (folder / 'config.py').write_text(text)
        (folder / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        return Run(tmp_path / name)

    return make


def test_groups_differ_in_more_than_the_seed(make_run):
    runs = [make_run('pskd_s0', 0, lr=0.2), make_run('base_seed0', 0),
            make_run('pskd_s1', 1, lr=0.2),
            make_run('base_seed1', 1, resume=True, load_from='epoch_3.pth')]
    groups = group_runs(runs)
    assert [group.name for group in groups] == ['pskd', 'base']
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [0, 1]]
    groups = group_runs(runs, baseline=str(runs[3].folder))
    assert [group.name for group in groups] == ['base', 'pskd']


def test_a_start_from_other_weights_is_another_group(make_run):
    runs = [make_run('a'), make_run('b', 1, load_from='teacher.pth')]
    assert len(group_runs(runs)) == 2


def test_stages_of_the_same_seed_are_one_group(make_run):
    """Each second stage goes on from the first stage of its own seed."""
    runs = [
        make_run(f's2_{seed}', seed, load_from=f'work/s1_s{seed}/epoch_10.pth') for seed in (1, 2)
    ]
    assert len(group_runs(runs)) == 1
    runs = [make_run(f't{seed}', seed, load_from=f'work/{name}_s{seed}/epoch_10.pth')
            for seed, name in ((3, 'small'), (4, 'large'))]
    assert len(group_runs(runs)) == 2


def test_one_teacher_of_all_seeds_is_one_group(make_run):
    """Though its folder has the seed of one of them for a number, as the demo's teacher_s0."""
    runs = [make_run(f'taught_s{seed}', seed, load_from='work/teacher_s0/epoch_10.pth')
            for seed in (0, 1, 2)]
    group, = group_runs(runs)
    assert group.runs == runs and group.name == 'taught'


@pytest.mark.parametrize('second, message', [
    (dict(), 'same config and the same seed, 0'),
    (dict(scope='mmpose'), 'cannot be compared'),
])
def test_what_cannot_be_compared(make_run, second, message):
    with pytest.raises(UsageError, match=message):
        group_runs([make_run('a'), make_run('b', **second)])


def test_runs_without_a_seed_are_different_runs(make_run):
    group, = group_runs([make_run('a', seed=None), make_run('b', seed=None)])
    assert len(group.runs) == 2


def test_unknown_baseline(make_run):
    with pytest.raises(UsageError, match='--baseline elsewhere is none'):
        group_runs([make_run('a')], baseline='elsewhere')


def test_equal_names_are_told_apart_by_the_folder(make_run):
    names = [group.name for group in group_runs([make_run('x/run'), make_run('y/run', lr=0.5)])]
    assert len(set(names)) == 2 and all(name.startswith('run (') for name in names)


def test_folders_called_by_their_seed_have_the_name_of_the_one_around(make_run):
    groups = group_runs([make_run('baseline/0', seed=0), make_run('baseline/1', seed=1),
                         make_run('pskd/seed_0', seed=0, lr=0.5)])
    assert [group.name for group in groups] == ['baseline', 'pskd']


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(UsageError, match='no folder'):
        Run(tmp_path / 'nowhere')
    with pytest.raises(UsageError, match='not a work dir'):
        Run(tmp_path)
    (tmp_path / 'config.py').write_text('this is no config')
    with pytest.raises(UsageError, match='cannot be read as a config'):
        Run(tmp_path)


def train(epoch, step, loss):
    return dict(epoch=epoch, iter=step, step=step, loss=loss)


def test_a_resumed_run_is_read_as_one(make_run):
    run = make_run('run', lines=[
        train(1, 1, 3.0), train(1, 2, 1.0), dict(step=1, mAP=0.1), train(2, 3, 9.0)])
    later = run.folder / '20260102_000000' / 'vis_data'
    later.mkdir(parents=True)
    (later / 'config.py').write_text(CONFIG.format(
        name='run', seed=0, lr=0.1, scope='mmdet', resume=True, load_from=None))
    (later / 'scalars.json').write_text(
        '\n'.join(map(json.dumps, [train(2, 3, 0.5), dict(step=2, mAP=0.3, time=1.)])) + '\n{"ste')
    run = Run(run.folder)
    epochs, losses = run.curve('loss')
    assert (epochs.tolist(), losses.tolist()) == ([1, 2], [2.0, 0.5])
    assert [values.tolist() for values in run.curve('mAP')] == [[1, 2], [0.1, 0.3]]
    assert run.last_metrics() == dict(mAP=0.3) and run.metric_names() == ['mAP']
    assert run.by_epoch and run.trainings == 1 and run.started == datetime(2026, 1, 1)


@pytest.mark.parametrize('resume', [False, True])
def test_a_training_that_began_anew_is_another_one(tmp_path, resume):
    """With the rest of the old one in the same folder; ``--resume`` may have found nothing."""
    old = [dict(loss=1 / e, mAP=0.1 * e) for e in range(1, 9)]
    folder = write_run(tmp_path / 'run', lr=0.1, epochs=8, logged=old)
    for number in (2, 8):
        (folder / f'epoch_{number}.pth').touch()
    write_run(folder, lr=0.7, epochs=3, logged=[dict(loss=5., mAP=0.9)] * 3, resume=resume,
              stamp='20260201_000000')
    run = Run(folder)
    assert run.cfg.optim_wrapper.optimizer.lr == 0.7
    assert [values.tolist() for values in run.curve('mAP')] == [[1, 2, 3], [0.9] * 3]
    assert run.curve('loss')[1].tolist() == [5.] * 3
    assert run.checkpoint().name == 'epoch_2.pth', 'the new one cannot have written epoch_8.pth'
    assert run.trainings == 2 and run.started == datetime(2026, 2, 1)


def test_an_attempt_that_logged_nothing_does_not_count(tmp_path):
    folder = write_run(tmp_path / 'run', lr=0.1)
    write_run(folder, lr=0.7, logged=[], stamp='20260201_000000')
    run = Run(folder)
    assert run.cfg.optim_wrapper.optimizer.lr == 0.1 and run.reached == 12 and run.trainings == 1


@pytest.mark.parametrize('logged, more, reason', [
    (12, {}, ''),
    (5, {}, 'stopped at epoch 5 of 12'),
    (5, dict(custom_hooks=[dict(type='mmengine.EarlyStoppingHook')]), ''),
])
def test_a_run_that_stopped_early(tmp_path, logged, more, reason):
    folder = write_run(tmp_path / 'run', logged=[dict(loss=1.)] * logged, **more)
    assert Run(folder).unfinished() == reason


def test_a_checkpoint_that_is_not_of_the_end(tmp_path):
    folder = write_run(tmp_path / 'run')
    (folder / 'epoch_10.pth').touch()
    assert Run(folder).unfinished() == 'its last checkpoint is of epoch 10 of 12'
    assert Run(folder).unfinished('best') == ''
    (folder / 'epoch_12.pth').touch()
    assert Run(folder).unfinished() == ''


def test_a_run_that_diverged(tmp_path):
    losses = [1., float('nan'), 0.5, float('nan'), float('inf')]
    folder = write_run(tmp_path / 'run', epochs=5, logged=[dict(loss=x) for x in losses])
    assert Run(folder).unfinished() == 'diverged: its loss is not a number from epoch 2 on'
    folder = write_run(tmp_path / 'again', epochs=4,
                       logged=[dict(loss=x) for x in losses[:3] + [1.]])
    assert Run(folder).unfinished() == '', 'a step that was skipped is no end'


def test_an_iteration_based_run_need_not_log_its_last_iteration(make_run):
    lines = [dict(iter=i, step=i, loss=1.) for i in (50, 100)]
    loop = dict(train_cfg=dict(max_iters=120), default_hooks=dict(logger=dict(interval=50)))
    run = make_run('whole', lines=lines, **loop)
    (run.folder / 'iter_120.pth').touch()
    assert run.unfinished() == '' and run.checkpoint().name == 'iter_120.pth'
    run = make_run('half', lines=lines[:1], **loop)
    assert run.unfinished() == 'stopped at iteration 50 of 120'


def test_minus_one_is_no_value(make_run):
    """COCO's and LVIS' metrics mean by it that there are no such objects."""
    run = make_run('run', lines=[train(1, 1, -1.), dict(step=1, AP=0.3, AP_s=-1.0, n=True)])
    assert run.last_metrics() == pytest.approx(dict(AP=0.3, AP_s=np.nan), nan_ok=True)
    assert np.isnan(run.curve('AP_s')[1]).all() and run.curve('loss')[1].tolist() == [-1.]
    assert np.isnan(metrics_of(dict(AP_l=np.float32(-1)))['AP_l'])


def test_an_iteration_based_run_counts_iterations(make_run):
    run = make_run('run', lines=[dict(iter=i, step=i, loss=float(i)) for i in (5, 10)])
    assert not run.by_epoch
    assert run.curve('loss')[0].tolist() == [5, 10]


def test_checkpoints_are_ordered_by_number(make_run):
    run = make_run('run')
    assert run.checkpoint() is None and run.checkpoint('best') is None
    for name in ('epoch_10.pth', 'epoch_9.pth', 'best_coco_bbox_mAP_epoch_3.pth'):
        (run.folder / name).touch()
    assert run.checkpoint().name == 'epoch_10.pth'
    assert run.checkpoint('best').name == 'best_coco_bbox_mAP_epoch_3.pth'


def test_differences_are_as_deep_as_the_structure_is_the_same(make_run):
    first = make_run('a').essence()
    second = make_run('b', 1, lr=0.2, custom_hooks=[dict(type='Hook')],
                      model=dict(type='RetinaNet', layers=[dict(size=1), dict(size=3)])).essence()
    assert dict(config_differences([first, second])) == {
        'optim_wrapper.optimizer.lr': [0.1, 0.2],
        'model.layers.1.size': [2, 3],
        'custom_hooks': [MISSING, [dict(type='Hook')]],
    }
    assert config_differences([first, first]) == []
