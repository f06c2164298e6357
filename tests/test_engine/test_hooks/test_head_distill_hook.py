"""HeadDistillHook: what is frozen stays bit for bit, the head learns from the trained one."""
import copy
import re

import pytest
import torch
from torch import nn

pytest.importorskip('mmpose')

from mmskd.checkpoint import load_checkpoint_safely  # noqa: E402
from mmskd.engine.hooks import HeadDistillHook  # noqa: E402
from tests.support import pose_runs, poses, runs  # noqa: E402

FAMILIES = ('rtmpose', 'rtmw', 'simcc', 'heatmap', 'mspn')


def saved(model: nn.Module, folder) -> str:
    path = str(folder / 'trained.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def head_norms(model: nn.Module, training: bool) -> None:
    for module in model.head.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(training)


def frozen(state: dict) -> dict:
    return {key: value.clone() for key, value in state.items() if not key.startswith('head.')}


@pytest.mark.parametrize('family', FAMILIES)
def test_only_the_head_learns(family, tmp_path):
    trained = poses.build(family, seed=1)
    model = poses.build(family)
    fresh = copy.deepcopy(model.head.state_dict())
    keys = list(model.state_dict())
    flags = {name: param.requires_grad for name, param in model.named_parameters()}
    hook = HeadDistillHook(checkpoint=saved(trained, tmp_path))
    hook.attach(model)
    assert list(model.state_dict()) == keys
    runs.assert_equal(frozen(model.state_dict()), frozen(trained.state_dict()))
    runs.assert_equal(dict(model.head.state_dict()), fresh)

    before = frozen(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(2):
        model.train()
        losses = poses.losses(model)
        assert losses['loss_kpt'] == 0 and losses['loss_logit'] > 0
        optimizer.zero_grad()
        poses.total(losses).backward()
        optimizer.step()
    runs.assert_equal(frozen(model.state_dict()), before)
    assert all((param.grad is None) == (not name.startswith('head.'))
               for name, param in model.named_parameters() if flags[name])
    teacher = hook._distiller.teacher
    assert not hasattr(teacher, 'backbone') and not teacher.training

    hook.detach()
    assert {name: param.requires_grad for name, param in model.named_parameters()} == flags
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize('family', FAMILIES)
def test_the_trained_head_has_nothing_to_learn_from_itself(family, tmp_path):
    model = poses.build(family)
    hook = HeadDistillHook(checkpoint=saved(poses.build(family, seed=1), tmp_path),
                           reinit_head=False)
    hook.attach(model)
    head_norms(model, training=False)  # the teacher uses running statistics
    losses = poses.losses(model)
    assert losses['loss_logit'].abs() < (1e-4 if family in poses.KL else 1e-12)
    poses.total(losses).backward()
    assert max(param.grad.abs().max() for param in model.head.parameters()) < 1e-2


def test_a_fresh_head_comes_to_the_teachers_level(tmp_path):
    model = poses.build('rtmpose')
    hook = HeadDistillHook(checkpoint=saved(poses.build('rtmpose', seed=1), tmp_path))
    hook.attach(model)
    data = poses.batch(model)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=2e-3)
    seen = []
    for _ in range(60):
        loss = poses.total(poses.losses(model, data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.05 * seen[0]


def test_the_features_are_computed_once_without_a_graph(tmp_path):
    model = poses.build('rtmw')  # with a neck
    hook = HeadDistillHook(checkpoint=saved(model, tmp_path), gt_weight=0.5, gamma=2.)
    hook.attach(model)
    calls = []
    for name in ('backbone', 'neck'):
        getattr(model, name).register_forward_hook(
            lambda module, args, output, name=name: calls.append((name, output)))
    losses = poses.losses(model)
    assert [name for name, _ in calls] == ['backbone', 'neck']
    assert not any(level.requires_grad for _, output in calls for level in output)
    plain = HeadDistillHook(checkpoint=hook.checkpoint)
    hook.detach()
    stock = poses.losses(model.train())
    plain.attach(model)
    once = poses.losses(model)
    assert torch.allclose(losses['loss_logit'], 2 * once['loss_logit'])
    assert losses['loss_kpt'] > 0 and stock['loss_kpt'] > 0


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return pose_runs.data(tmp_path_factory.mktemp('figures') / 'data')


@pytest.fixture(scope='module')
def trained(data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    for kind in ('simcc', 'heatmap'):
        runs.train(pose_runs.config(data_root, folder / kind, [], kind, length=2))
    return {kind: str(folder / kind / 'epoch_2.pth') for kind in ('simcc', 'heatmap')}


@pytest.mark.parametrize('kind', ['simcc', 'heatmap'])
@pytest.mark.parametrize('reinit', [True, False], ids=['fresh', 'continued'])
def test_a_run_leaves_backbone_and_statistics_bit_equal(data_root, trained, tmp_path, kind, reinit):
    hook = dict(type='mmskd.HeadDistillHook', checkpoint=trained[kind], reinit_head=reinit)
    cfg = pose_runs.config(data_root, tmp_path / 'run', [hook], kind, length=4, ema=True)
    runner = runs.train(cfg)
    state = load_checkpoint_safely(str(tmp_path / 'run' / 'epoch_4.pth'))['state_dict']
    before = load_checkpoint_safely(trained[kind])['state_dict']
    assert state.keys() == before.keys()
    runs.assert_equal(frozen(state), frozen(before))
    runs.assert_equal(frozen(runner.model.state_dict()), frozen(before))
    assert any(not torch.equal(state[key], before[key]) for key in state if key.startswith('head.'))
    assert all(param.requires_grad for param in runner.model.parameters())


@pytest.mark.parametrize('loop,length,stop', [('epoch', 4, 'epoch_2.pth'),
                                              ('iter', 8, 'iter_6.pth')])
def test_resumed_equals_never_interrupted(data_root, trained, tmp_path, loop, length, stop):
    hook = dict(type='mmskd.HeadDistillHook', checkpoint=trained['simcc'], gt_weight=0.2)
    config = lambda name: pose_runs.config(  # noqa: E731
        data_root, tmp_path / name, [hook], 'simcc', loop, length, ema=True)
    whole = runs.train(config('whole'))
    cfg = config('resumed')
    cfg.resume, cfg.load_from, cfg.log_level = True, str(tmp_path / 'whole' / stop), 'INFO'
    runs.assert_equal(runs.weights(runs.train(cfg)), runs.weights(whole))
    log = next((tmp_path / 'resumed').glob('*/*.log')).read_text()
    said, = re.findall(r'Head distillation: .*', log)
    assert ' goes on and learns ' in said and ' and runs in ' in said and 'anew' not in said


def test_what_stage_2_saves_is_what_it_loads(data_root, trained, tmp_path):
    hook = dict(type='mmskd.HeadDistillHook', checkpoint=trained['simcc'])
    runs.train(pose_runs.config(data_root, tmp_path / 'first', [hook], length=1))
    again = dict(hook, checkpoint=str(tmp_path / 'first' / 'epoch_1.pth'))
    runs.train(pose_runs.config(data_root, tmp_path / 'second', [again], length=1))


def test_testing_needs_no_trained_model(data_root, tmp_path):
    hook = dict(type='mmskd.HeadDistillHook', checkpoint='gone.pth')
    cfg = pose_runs.config(data_root, tmp_path / 'run', [hook])
    cfg.test_dataloader, cfg.test_cfg = cfg.val_dataloader, {}
    cfg.test_evaluator = cfg.val_evaluator
    assert 'PCK' in str(runs.runner(cfg).test())


@pytest.mark.parametrize('options,message', [
    (dict(gamma=-1.), 'gamma must be a number, at least 0'),
    (dict(gamma=0.), 'gamma and gt_weight are both 0'),
    (dict(gt_weight=-0.1), 'gt_weight must be a number, at least 0'),
    (dict(reinit_head='no'), 'reinit_head')])
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        HeadDistillHook(checkpoint='x.pth', **options)


def test_wrong_checkpoints_and_models_are_named(trained):
    model = poses.build('heatmap')
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(FileNotFoundError, match='no checkpoint .*gone.pth'):
        HeadDistillHook(checkpoint='gone.pth').attach(model)
    with pytest.raises(ValueError, match='epoch_2.pth does not fit TopdownPoseEstimator: it lacks'):
        HeadDistillHook(checkpoint=trained['simcc']).attach(model)
    runs.assert_equal(model.state_dict(), state)
    assert all(param.requires_grad for name, param in model.named_parameters())
