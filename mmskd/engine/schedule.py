"""Shorten the schedule of a config, with all that is timed by it."""
from typing import Any, List

from mmengine.config import Config

SCHEDULER_TIMES = ('begin', 'end', 'T_max', 'T_0', 'step_size', 'total_steps')
HOOK_TIMES = ('switch_epoch', 'switch_iter', 'num_last_epochs')


def shorten_schedule(cfg: Config, share: float) -> str:
    """Train for a share of the epochs (iterations) that a config says.

    The learning-rate schedule, warm-up included, the times at which hooks switch something, and the
    intervals of validation and checkpoints shrink alike.

    Args:
        cfg (Config): Changed in place.
        share (float): Between 0 and 1. The number of epochs is rounded, and at least 1.

    Returns:
        str: What has changed, in a sentence for the log.

    Raises:
        ValueError: If ``train_cfg`` has neither ``max_epochs`` nor ``max_iters``.
    """
    loop = cfg.train_cfg
    unit = next((unit for unit in ('epochs', 'iters') if loop.get(f'max_{unit}')), None)
    if unit is None:
        raise ValueError('train_cfg has neither max_epochs nor max_iters, so its schedule cannot be '
                         'shortened')
    before = loop[f'max_{unit}']
    after = max(1, round(share * before))
    share = after / before
    loop[f'max_{unit}'] = after
    loop.val_interval = _scaled(loop.get('val_interval', 1), share)
    if loop.get('dynamic_intervals'):
        loop.dynamic_intervals = [(_scaled(begin, share), _scaled(interval, share))
                                  for begin, interval in loop.dynamic_intervals]
    for scheduler in _dicts(cfg.get('param_scheduler')):
        _shorten_scheduler(scheduler, share)
    for hook in _dicts([*cfg.get('default_hooks', {}).values(), *(cfg.get('custom_hooks') or [])]):
        for key in HOOK_TIMES:
            if key in hook:
                hook[key] = _scaled(hook[key], share)
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint') or {}
    if checkpoint.get('interval', -1) > 0:
        checkpoint['interval'] = _scaled(checkpoint['interval'], share)
    return (f'{after} instead of {before} {unit}; the learning-rate schedule, validation and checkpoints '
            'are scaled alike')


def _shorten_scheduler(scheduler: dict, share: float) -> None:
    for key in SCHEDULER_TIMES:
        if isinstance(scheduler.get(key), int) and 0 < scheduler[key] < 10**9:
            scheduler[key] = _scaled(scheduler[key], share)
    if 'milestones' in scheduler:
        scaled = [_scaled(milestone, share) for milestone in scheduler['milestones']]
        scheduler['milestones'] = sorted(set(scaled))


def _scaled(time: int, share: float) -> int:
    return max(1, round(time * share))


def _dicts(nodes: Any) -> List[dict]:
    nodes = [nodes] if isinstance(nodes, dict) else nodes or []
    return [node for node in nodes if isinstance(node, dict)]
