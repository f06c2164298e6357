"""Who the past self of PSKDHook is: of the last epoch, an average, or the best validated so far."""
import copy

import pytest
import torch
from mmengine.hooks import Hook

from mmskd.checkpoint import load_checkpoint_safely
from mmskd.engine.hooks import PSKDHook
from mmskd.models.teachers.past_self import named_tensors
from mmskd.optional import HAS_MMDET
from tests.support import classifiers
from tests.support.classifiers import TinyClassifier
from tests.support.runs import InterruptHook, Interruption, assert_equal, weights

SCORES = [2., 3., 1., 5., 4.]


class Recorder(Hook):
    """Past self (or None), student and EMAHook's average at the start of each iteration."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.pasts, self.students, self.averages = [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        teacher = hook_of(runner).teacher
        self.pasts.append(None if teacher is None else tensors(teacher))
        self.students.append(tensors(runner.model))
        self.averages += [tensors(hook.ema_model.module) for hook in runner.hooks
                          if hasattr(hook, 'ema_model')]


def tensors(model):
    return {name: value.clone() for name, value in named_tensors(model)}


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, PSKDHook))


def config(work_dir, past, loop='epoch', length=5, ema=False, changes=None, **options):
    hooks = [dict(type='mmskd.PSKDHook', loss_module='criterion', past=past, **options)]
    hooks += [dict(type='EMAHook', momentum=0.1)] * ema
    return classifiers.config(work_dir, hooks, loop, length, **(changes or {}))


def record(cfg):
    runner = classifiers.runner(cfg)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder


def best(by_epoch=True, scores=SCORES, **checkpoint):
    return classifiers.validation(scores, by_epoch, **checkpoint)


# Who it is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('momentum', [None, 0.5])
def test_the_average_follows_each_iteration(tmp_path, momentum):
    seen = record(config(tmp_path, 'average', length=3, past_momentum=momentum))
    momentum = momentum or 0.98
    assert seen.pasts[:2] == [None, None]
    assert_equal(seen.pasts[2], seen.students[2])  # it starts from the end of the first epoch
    parameters = dict(TinyClassifier().named_parameters())
    for now in (3, 4, 5):
        for name, before in seen.pasts[now - 1].items():
            student = seen.students[now][name]
            expected = momentum * before.double() + (1 - momentum) * student.double() \
                if name in parameters else student.double()
            torch.testing.assert_close(seen.pasts[now][name].double(), expected, rtol=1e-6,
                                       atol=1e-7)


def test_the_average_of_an_iteration_loop_begins_after_the_first_interval(tmp_path):
    seen = record(config(tmp_path, 'average', 'iter', 6, interval=3))
    assert [past is None for past in seen.pasts] == [True] * 3 + [False] * 3
    assert_equal(seen.pasts[3], seen.students[3])
    assert not torch.equal(seen.pasts[4]['net.fc.weight'], seen.students[4]['net.fc.weight'])


@pytest.mark.parametrize('rule,expected', [
    ('greater', [None, 2, 4, 4, 8]), ('less', [None, 2, 2, 6, 6])])
def test_the_best_is_the_model_with_the_best_score(tmp_path, rule, expected):
    """After the epochs with the scores 2, 3, 1 and 5."""
    seen = record(config(tmp_path, 'best', changes=best(rule=rule)))
    for epoch, start in enumerate(expected):
        for past in seen.pasts[2 * epoch:2 * epoch + 2]:
            if start is None:
                assert past is None
            else:
                assert_equal(past, seen.students[start])


def test_the_best_in_an_iteration_loop(tmp_path):
    seen = record(config(tmp_path, 'best', 'iter', 8, changes=best(False)))
    for iteration, start in ((2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 4)):
        assert_equal(seen.pasts[iteration], seen.students[start])


@pytest.mark.parametrize('ema_first', [False, True])
def test_what_is_validated_is_the_average_of_ema_hook(tmp_path, ema_first):
    cfg = config(tmp_path, 'best', length=3, ema=True, changes=best())
    if ema_first:
        cfg.custom_hooks = cfg.custom_hooks[::-1]
    seen = record(cfg)
    assert_equal(seen.pasts[2], seen.averages[2])
    assert_equal(seen.pasts[4], seen.averages[4])
    assert not torch.equal(seen.averages[4]['net.fc.weight'], seen.students[4]['net.fc.weight'])


def test_the_first_of_several_metrics_counts(tmp_path):
    scores = best(save_best=['score', 'loss'], rule=['greater', 'less'])
    seen = record(config(tmp_path, 'best', length=4, changes=dict(
        scores, val_evaluator=dict(type='GivenScores', scores=SCORES, loss=[3., 1., 2., 1.]))))
    assert_equal(seen.pasts[4], seen.students[4])
    assert_equal(seen.pasts[6], seen.students[4])


def test_the_metric_may_be_that_of_the_first_validation(tmp_path):
    seen = record(config(tmp_path, 'best', length=2, changes=best(save_best='auto')))
    assert_equal(seen.pasts[2], seen.students[2])


@pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
@pytest.mark.parametrize('precision', [None, 'bfloat16'])
def test_a_detector_asks_the_average_of_this_moment(precision):
    """Also the copy of it that is compiled, with folded norm layers."""
    from tests.support import detectors
    model = detectors.build('retinanet')  # its norm layers are frozen
    hook = PSKDHook(past='average', past_momentum=0.5, precision=precision)
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 1.
    stale = detectors.total(detectors.losses(model))
    average = copy.deepcopy(model)
    with torch.no_grad():
        for mine, moved in zip(model.parameters(), average.parameters()):
            if mine.requires_grad:
                step = 0.1 * mine.abs().mean()
                mine.add_(step)
                moved.add_(step / 2)
    hook.average_teacher()
    ours = detectors.total(detectors.losses(model))
    hook.detach()
    fresh = PSKDHook(precision=precision)
    fresh.attach(model)
    fresh._remember(average)
    fresh.alpha_t = 1.
    expected = detectors.total(detectors.losses(model))
    torch.testing.assert_close(ours, expected, rtol=1e-3 if precision else 1e-5, atol=0)
    assert abs(stale - expected) > 0.01 * expected


# What it leaves in a checkpoint -------------------------------------------------------------------


@pytest.mark.parametrize('past,carried', [
    ('epoch', [False] * 4), ('average', [False, True, True, True]), ('best', [0, 0, 1, 0])])
def test_a_checkpoint_holds_the_past_self_only_where_it_is_needed(tmp_path, past, carried):
    classifiers.train(config(tmp_path, past, length=4, changes=best()))
    saved = [load_checkpoint_safely(tmp_path / f'epoch_{epoch}.pth').get(PSKDHook.state_key)
             for epoch in (1, 2, 3, 4)]
    assert [bool(state) for state in saved] == carried
    assert all((state == {}) == (past == 'best' and not any(state or ())) for state in saved)


# Resume -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('past,loop,options,iteration,ema', [
    ('average', 'epoch', {}, 3, False),  # from where the student is the first past self
    ('average', 'epoch', dict(interval=2), 7, True),
    ('average', 'iter', dict(interval=3), 5, False),
    ('best', 'epoch', {}, 5, True),  # from where the student is the best
    ('best', 'epoch', {}, 7, False), ('best', 'iter', {}, 7, True)])
def test_resumed_equals_never_interrupted(tmp_path, past, loop, options, iteration, ema):
    changes = best(loop == 'epoch') if past == 'best' else None
    length = 5 if loop == 'epoch' else 10

    def build(name):
        return config(tmp_path / name, past, loop, length, ema, changes, **options)

    whole = classifiers.train(build('whole'))
    first = classifiers.runner(build('run'))
    first.register_hook(InterruptHook(iteration))
    with pytest.raises(Interruption):
        first.train()
    cfg = build('run')
    cfg.resume = True
    resumed = classifiers.runner(cfg)
    recorder = Recorder()
    resumed.register_hook(recorder)
    resumed.train()
    assert len(recorder.pasts) == 10 - iteration // 2 * 2  # it did not start anew
    assert_equal(weights(resumed), weights(whole))


def test_a_validation_that_was_interrupted_is_known_to_the_past_self(tmp_path):
    """SafeCheckpointHook does it first; its score makes the past self."""
    whole = classifiers.train(config(tmp_path / 'whole', 'best', length=4, changes=best()))

    class InterruptValidation(Hook):

        def before_val(self, runner):
            if runner.epoch == 2:
                raise Interruption

    first = classifiers.runner(config(tmp_path / 'run', 'best', length=4, changes=best()))
    first.register_hook(InterruptValidation())
    with pytest.raises(Interruption):
        first.train()
    cfg = config(tmp_path / 'run', 'best', length=4, changes=best())
    cfg.resume = True
    assert_equal(weights(classifiers.train(cfg)), weights(whole))


def test_a_run_that_was_stock_so_far_waits_for_the_next_best(tmp_path):
    """That the model at hand is the best so far is not known."""
    cfg = config(tmp_path, 'best', length=3, changes=best())
    cfg.custom_hooks = cfg.custom_hooks[1:]
    classifiers.train(cfg)
    cfg = config(tmp_path, 'best', length=5, changes=best())
    cfg.resume = True
    seen = record(cfg)
    assert seen.pasts[:2] == [None, None]
    assert_equal(seen.pasts[2], seen.students[2])


# Refusals and the log -----------------------------------------------------------------------------


def test_the_best_needs_a_metric_that_comes(tmp_path, capsys):
    """Under another name it is refused with the first validation; one that is late is waited for.
    """
    with pytest.raises(ValueError, match="^PSKDHook: past='best': no validation gives scor; did you"
                                         ' mean score.*checkpoint.save_best'):
        record(config(tmp_path, 'best', length=2, changes=best(save_best='scor')))
    classifiers.train(config(tmp_path / 'late', 'best', length=2, changes=dict(
        best(save_best='other', rule='greater'), log_level='WARNING')))
    assert 'this validation has no other, by which' in capsys.readouterr().out


def test_the_best_needs_a_validation_and_a_metric(tmp_path):
    needs = "^PSKDHook: past='best' needs a "
    with pytest.raises(ValueError, match=needs + 'validation.*val_dataloader'):
        classifiers.train(config(tmp_path, 'best'))
    with pytest.raises(ValueError, match=needs + 'metric.*checkpoint.save_best'):
        classifiers.train(config(tmp_path, 'best', changes=best(save_best=None, rule=None)))


@pytest.mark.parametrize('options,message', [
    (dict(past='last'), "past must be 'epoch', 'average' or 'best', got 'last'"),
    (dict(past='average', past_momentum=1.), 'past_momentum must be a number, at least 0, below 1'),
    (dict(past='average', past_momentum=True), 'past_momentum must be'),
    (dict(past_momentum=0.9), "past_momentum is of past='average', and past is 'epoch'"),
    (dict(past='best', interval=2), "interval has no part in past='best'"),
    (dict(loss_module=''), 'loss_module must be a string')])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PSKDHook(**options)


@pytest.mark.parametrize('past,line', [
    ('epoch', 'the past self is refreshed every 1 epoch'),
    ('average', 'an average of the weights, of which each iteration keeps 0.98, from epoch 1 of 1'),
    ('best', 'the best model validated so far, by score')])
def test_the_log_says_who_it_is_and_that_it_never_speaks(tmp_path, past, line):
    classifiers.train(config(tmp_path, past, length=1, changes=dict(best(), log_level='INFO')))
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert line in text
    assert 'before the past self is refreshed for the first time' in text
    advice = text.partition('Train for longer')[2].partition('\n')[0]
    assert ('train_cfg.val_begin' in advice) == (past == 'best')


@pytest.mark.parametrize('loop,length,interval,never', [
    ('epoch', 2, 1, False), ('epoch', 2, 3, True), ('iter', 4, 2, False), ('iter', 4, 6, True)])
def test_the_first_validation_may_come_when_all_is_done(tmp_path, loop, length, interval, never):
    changes = dict(best(loop == 'epoch'), train_cfg__val_interval=interval)
    classifiers.train(config(tmp_path, 'best', loop, length, changes=dict(
        changes, log_level='WARNING')))
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert ('before the past self is refreshed for the first time' in text) == never


def test_weights_that_are_not_finite_are_no_past_self():
    model = TinyClassifier()
    hook = PSKDHook(past='average', loss_module='criterion')
    with pytest.raises(ValueError, match='no past self to average with'):
        hook.average_teacher()
    hook.attach(model)
    hook.refresh_teacher()
    before = tensors(hook.teacher)
    good = copy.deepcopy(model.state_dict())
    for bad in (float('nan'), float('inf')):
        with torch.no_grad():
            model.net.conv1[0].weight[0, 0, 0, 0] = bad
        hook.average_teacher()
    assert_equal(tensors(hook.teacher), before)
    assert hook.counts['pskd_snapshots_refused'] == 2
    model.load_state_dict(good)
    with torch.no_grad():
        model.net.fc.weight[0, 0] = 1e30  # its square is too large for float32, and it is finite
    hook.average_teacher()
    assert hook.counts['pskd_snapshots_refused'] == 2
    assert hook.teacher.net.fc.weight[0, 0] == pytest.approx(0.02e30)
