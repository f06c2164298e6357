"""Schedules walked through step by step, as a Runner does it, without a model or data."""
from typing import Any, Dict, List

import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn


def by_iterations(cfg: Config) -> Config:
    """A config whose smooth schedulers change with every iteration: without coarse steps."""
    cfg = Config(cfg.to_dict())
    for scheduler in schedulers(cfg) if 'max_epochs' in cfg.train_cfg else ():
        kind = scheduler['type'].rpartition('.')[2]
        length = scheduler.get('end', 10**9) - scheduler.get('begin', 0)
        constant = kind.startswith('Constant') and length > 1
        if scheduler.get('by_epoch', True) and (constant or kind.startswith(
                ('Cosine', 'Linear', 'OneCycle', 'Poly', 'Quadratic'))):
            scheduler['convert_to_iter_based'] = True
    return cfg


def schedulers(cfg: Config) -> List[dict]:
    """The schedulers of a config."""
    found = cfg.get('param_scheduler') or []
    return [found] if isinstance(found, dict) else list(found)


def rates(cfg: Config, epoch_length: int = 10, name: str = 'lr') -> List[float]:
    """The learning rate in each iteration of a training that begins with 1.

    Args:
        cfg (Config): With ``train_cfg`` and ``param_scheduler``.
        epoch_length (int): Iterations in an epoch. Defaults to 10.
        name (str): Or what else of the optimizer is scheduled. Defaults to 'lr'.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1., momentum=0.9)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        built = [PARAM_SCHEDULERS.build(dict(scheduler), default_args=dict(
            optimizer=optimizer, epoch_length=epoch_length)) for scheduler in schedulers(cfg)]
    found = []
    for iteration in range(iterations(cfg, epoch_length)):
        optimizer._global_step = iteration  # what step() would count
        found.append(optimizer.param_groups[0][name])
        epoch_ends = 'max_epochs' in cfg.train_cfg and (iteration + 1) % epoch_length == 0
        for scheduler in built:
            if not scheduler.by_epoch or epoch_ends:
                scheduler.step()
    return found


def iterations(cfg: Config, epoch_length: int = 10) -> int:
    """How many iterations a config trains for."""
    loop = cfg.train_cfg
    return loop['max_epochs'] * epoch_length if 'max_epochs' in loop else loop['max_iters']


def events(cfg: Config) -> Dict[str, List[int]]:
    """After which epochs (iterations) is validated and saved, and before which is switched.

    Returns:
        dict: ``validated`` and ``saved``, counted from 1; ``switched``: those, counted from 0, that
        come after a switch, for each hook that switches something.
    """
    loop = cfg.train_cfg
    length = loop.get('max_epochs') or loop.get('max_iters')
    every = loop.get('val_interval', 1 if 'max_epochs' in loop else 1000)
    counts = range(1, length + 1)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    begin, interval = checkpoint.get('save_begin', 0), checkpoint.get('interval', -1)
    found: Dict[str, Any] = dict(
        validated=[i for i in counts if i >= loop.get('val_begin', 1) and
                   (i % every == 0 or i == length)],
        saved=[i for i in counts if interval > 0 and i >= begin and (i - begin) % interval == 0 or
               i == length and checkpoint.get('save_last', True)])
    for hook in cfg.get('custom_hooks') or []:
        kind = hook['type'].rpartition('.')[2]
        if 'switch_epoch' in hook:
            found[kind] = list(range(hook['switch_epoch'], length))
        if kind == 'YOLOXModeSwitchHook':
            last = hook.get('num_last_epochs', 15)
            found[kind] = [i for i in range(length) if i + 1 >= length - last]
        if kind == 'YOLOXPoseModeSwitchHook':
            last = hook.get('num_last_epochs', 20)
            found[kind] = [i for i in range(length) if i + 1 == length - last]
        if kind == 'RTMOModeSwitchHook':
            found[kind] = [i for i in range(length) if i in hook['epoch_attributes']]
        if kind == 'EMAHook':
            found[kind] = [i for i in range(length) if i + 1 >= hook.get('begin_epoch', 0)]
    return found
