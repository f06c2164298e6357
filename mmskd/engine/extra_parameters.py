"""Trainable modules beside a model: trained with it, yet no part of it.

A hook may need parameters of its own (a projection, an auxiliary classifier) while the model and
its state dict stay stock. In ``before_run`` it hands them to :func:`wrap_for_ddp`, then to
:func:`join_optimizer`. At that time the optimizer and its schedulers are built, and the state of a
resumed optimizer is not loaded yet; so a resume finds the same parameters in the same places.
"""
import copy
import math
from typing import List

from mmengine.device import get_device
from mmengine.optim import ApexOptimWrapper, OptimWrapper, OptimWrapperDict, ZeroRedundancyOptimizer
from mmengine.registry import MODEL_WRAPPERS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmskd.errors import UsageError


def join_optimizer(runner, module: nn.Module) -> None:
    """Let the model's optimizer train another module as well; without effect if it does already.

    The parameters are appended to a parameter group that has the optimizer's own learning rate and
    weight decay. A group of their own is out of the question: MMEngine's schedulers remember a base
    value for each group that was there when they were built.

    Args:
        runner (Runner): In ``before_run``.
        module (nn.Module): Already on its device. What needs no gradient is left out.

    Raises:
        UsageError: If there is not one plain optimizer, or none of its groups has the optimizer's
            own learning rate and weight decay.
    """
    groups = _optimizer(runner).param_groups
    known = {parameter for group in groups for parameter in group['params']}
    new = [parameter for parameter in module.parameters()
           if parameter.requires_grad and parameter not in known]
    if new:
        _default_group(runner, groups)['params'].extend(new)


def wrap_for_ddp(runner, module: nn.Module) -> nn.Module:
    """Move a module to the model's device; in a distributed run, wrap it as the model is wrapped.

    All ranks then start with the parameters of rank 0, and their gradients are averaged.

    Args:
        runner (Runner): In ``before_run``.
        module (nn.Module): Called once in each forward pass of the model, on all ranks.

    Returns:
        nn.Module: What to call: a DistributedDataParallel, or ``module`` itself.

    Raises:
        UsageError: If the model is wrapped by something else than DistributedDataParallel.
    """
    if not runner.distributed:
        return module.to(get_device())
    cfg = runner.cfg.get('model_wrapper_cfg')
    if cfg is not None:
        wrapper = MODEL_WRAPPERS.get(cfg.get('type', 'MMDistributedDataParallel'))
        if not issubclass(wrapper, DistributedDataParallel):
            raise UsageError(
                f'model_wrapper_cfg.type is {wrapper.__name__}: a module beside the model can be '
                'trained in a distributed run with MMDistributedDataParallel only.')
    return runner.wrap_model(copy.deepcopy(cfg), module)


def _optimizer(runner):
    wrapper = runner.optim_wrapper
    plain = isinstance(wrapper, OptimWrapper) and not isinstance(
        wrapper, (OptimWrapperDict, ApexOptimWrapper))
    # ZeRO divides the parameters among the ranks when it is built
    found = wrapper.optimizer if plain else wrapper
    if not plain or isinstance(found, ZeroRedundancyOptimizer):
        raise UsageError(
            f'optim_wrapper: {type(found).__name__} cannot take the parameters of a module beside '
            'the model. Use one optimizer in an OptimWrapper or AmpOptimWrapper.')
    return found


def _default_group(runner, groups: List[dict]) -> dict:
    """The last group without a learning rate or weight decay of its own."""
    if len(groups) == 1:
        return groups[0]
    defaults = runner.optim_wrapper.optimizer.defaults
    base_lr = defaults['lr'] * _lr_scale(runner)
    decay = defaults.get('weight_decay')
    for group in reversed(groups):
        # A scheduler may have set lr to its first step; it keeps the lr from before as initial_lr
        if math.isclose(group.get('initial_lr', group['lr']), base_lr) and group.get(
                'weight_decay') == decay:
            return group
    raise UsageError(
        'optim_wrapper.paramwise_cfg (or the constructor): no parameter group has the learning '
        'rate '
        f"{base_lr:g} and weight decay {decay} of the optimizer itself, so there is none that a "
        'module beside the model could join. Leave at least one parameter of the model without '
        'settings of its own.')


def _lr_scale(runner) -> float:
    """What ``Runner.scale_lr`` has multiplied each group's learning rate with."""
    scaling = runner.auto_scale_lr or {}
    if not scaling.get('enable', False):
        return 1.0
    loader = runner._train_dataloader
    batch_size = loader['batch_size'] if isinstance(loader, dict) else loader.batch_size
    return runner.world_size * batch_size / scaling['base_batch_size']
