"""A module beside the model is trained by the model's optimizer, schedulers and resume."""
import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from torch import nn

from mmskd.checkpoint import load_checkpoint_safely
from mmskd.engine.extra_parameters import join_optimizer, wrap_for_ddp
from tests.support import classifiers

EXTRA = 'extra'


@HOOKS.register_module(force=True)
class ExtraScale(Hook):
    """Multiplies the logits with a learned scale that is no part of the model."""

    def before_run(self, runner):
        self.scale = nn.Linear(1, 1)
        nn.init.constant_(self.scale.weight, 0.5)
        self.scale.bias.requires_grad_(False).zero_()
        called = wrap_for_ddp(runner, self.scale)
        join_optimizer(runner, called)
        runner.model.net.register_forward_hook(
            lambda module, args, logits: called(logits.unsqueeze(-1)).squeeze(-1))

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint[EXTRA] = copy.deepcopy(self.scale.state_dict())

    def after_load_checkpoint(self, runner, checkpoint):
        self.scale.load_state_dict(checkpoint[EXTRA])


def config(work_dir, **changes):
    return classifiers.config(work_dir, [dict(type='ExtraScale')], **changes)


def hook(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, ExtraScale))


def group_of(runner, parameter):
    group, = (group for group in runner.optim_wrapper.optimizer.param_groups
              if any(member is parameter for member in group['params']))
    return group


PARAMWISE = dict(optim_wrapper__paramwise_cfg=dict(
    norm_decay_mult=0., bias_lr_mult=2., custom_keys={'net.fc': dict(lr_mult=0.1)}))


@pytest.mark.parametrize('changes', [
    {}, PARAMWISE, dict(PARAMWISE, auto_scale_lr=dict(enable=True, base_batch_size=16))],
    ids=['one group', 'groups', 'auto scale'])
def test_trained_with_the_learning_rate_and_decay_of_the_optimizer(tmp_path, changes):
    # A warm-up: the lr is not the base lr when the module joins.
    runner = classifiers.runner(config(tmp_path, length=2, **changes))
    groups = []
    joined = ExtraScale.before_run

    def before_run(self, runner):
        groups.append(len(runner.optim_wrapper.optimizer.param_groups))
        joined(self, runner)

    hook(runner).before_run = before_run.__get__(hook(runner))
    runner.train()
    scale = hook(runner).scale
    group = group_of(runner, scale.weight)
    ratio = 0.5 if 'auto_scale_lr' in changes else 1
    assert group['initial_lr'] == pytest.approx(0.05 * ratio) and group['weight_decay'] == 1e-4
    assert len(runner.optim_wrapper.optimizer.param_groups) == groups[0], 'a group was added'
    assert scale.weight.item() != 0.5 and scale.bias.item() == 0
    assert not any(member is scale.bias for group in runner.optim_wrapper.optimizer.param_groups
                   for member in group['params'])


@pytest.mark.parametrize('changes', [{}, PARAMWISE], ids=['one group', 'groups'])
def test_resumed_equals_never_interrupted(tmp_path, changes):
    whole = classifiers.train(config(tmp_path / 'run', **changes))
    cfg = config(tmp_path / 'resumed', **changes)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'run/epoch_2.pth')
    resumed = classifiers.train(cfg)
    assert torch.equal(hook(whole).scale.weight, hook(resumed).scale.weight)
    assert all(map(torch.equal, whole.model.state_dict().values(),
                   resumed.model.state_dict().values()))
    momentum = [runner.optim_wrapper.optimizer.state[hook(runner).scale.weight]['momentum_buffer']
                for runner in (whole, resumed)]
    assert torch.equal(*momentum) and momentum[0].abs() > 0


def test_the_model_stays_stock(tmp_path):
    classifiers.train(config(tmp_path, length=1))
    saved = load_checkpoint_safely(str(tmp_path / 'epoch_1.pth'))
    assert saved['state_dict'].keys() == classifiers.TinyClassifier().state_dict().keys()


def built(tmp_path, **changes):
    """A runner whose optimizer is built."""
    runner = classifiers.runner(classifiers.config(tmp_path, **changes))
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def test_joining_twice_is_joining_once(tmp_path):
    runner, module = built(tmp_path), nn.Linear(2, 2)
    for _ in range(2):
        join_optimizer(runner, module)
    params = group_of(runner, module.weight)['params']
    assert sum(member is module.weight for member in params) == 1


def test_no_group_to_join(tmp_path):
    runner = built(tmp_path, optim_wrapper__paramwise_cfg=dict(
        custom_keys={'net': dict(decay_mult=0.)}))
    with pytest.raises(RuntimeError, match=r'no parameter group has the learning rate 0.05 and '
                       'weight decay 0.0001'):
        join_optimizer(runner, nn.Linear(2, 2))


def test_several_optimizers_are_refused(tmp_path):
    runner = built(tmp_path)
    runner.optim_wrapper = OptimWrapperDict(net=runner.optim_wrapper)
    with pytest.raises(RuntimeError, match='OptimWrapperDict cannot take'):
        join_optimizer(runner, nn.Linear(2, 2))


def test_an_optimizer_that_is_divided_among_ranks_is_refused(tmp_path):
    from mmengine.optim import ZeroRedundancyOptimizer
    runner = built(tmp_path)
    divided = ZeroRedundancyOptimizer.__new__(ZeroRedundancyOptimizer)  # no process group here
    divided.param_groups = runner.optim_wrapper.optimizer.param_groups
    runner.optim_wrapper = OptimWrapper(divided)
    with pytest.raises(RuntimeError, match='ZeroRedundancyOptimizer cannot take'):
        join_optimizer(runner, nn.Linear(2, 2))


def test_outside_of_a_training_run_there_is_no_optimizer(tmp_path):
    runner = classifiers.runner(classifiers.config(tmp_path))
    with pytest.raises(RuntimeError, match='cannot take'):
        join_optimizer(runner, nn.Linear(2, 2))


def test_one_process_needs_no_wrapper(tmp_path):
    module = BaseModule()
    assert wrap_for_ddp(built(tmp_path), module) is module


def test_a_wrapper_other_than_ddp_is_refused(tmp_path):
    runner = built(tmp_path)
    runner.cfg.model_wrapper_cfg = dict(type='MMFullyShardedDataParallel')
    runner._distributed = True
    with pytest.raises(RuntimeError,
                       match='MMFullyShardedDataParallel.*MMDistributedDataParallel only'):
        wrap_for_ddp(runner, nn.Linear(2, 2))
