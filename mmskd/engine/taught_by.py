"""What a run was taught by, in the meta information of its checkpoints."""
import logging
from typing import Any, Dict, List, Tuple

from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from mmskd.errors import UsageError

META_KEY = 'mmskd'
COMPARED = 'compared'
ANOTHER_WAY = 'to train its weights in another way, give it as load_from, without resume'


def record(runner, methods: Dict[str, dict]) -> dict:
    """What a run is taught by, in Python's own types.

    Args:
        runner (Runner): In a training.
        methods (dict): The options of each hook that teaches, by its name.
    """
    loop = runner.train_loop
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    return dict(
        methods={name: plain(options) for name, options in methods.items()},
        run=dict(batch_size=plain(getattr(runner.train_dataloader, 'batch_size', None)),
                 world_size=get_world_size(),
                 **{'max_iters' if by_iteration else 'max_epochs':
                    loop.max_iters if by_iteration else loop.max_epochs}))


def plain(value: Any) -> Any:
    """A setting as something that a checkpoint may hold, and that can be compared."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, nn.Module):
        return f'a {type(value).__name__} that was given'
    return value.__name__ if isinstance(value, type) else str(value)


def compare(runner, checkpoint: dict, hooks: Dict[str, Any]) -> None:
    """Refuse a checkpoint that a run cannot go on from, and say what else has changed since.

    Several hooks may ask; the first comparison counts.

    Args:
        runner (Runner): Of the run that is resumed.
        checkpoint (dict): Which it is resumed from. Where anything has changed, its logged scalars
            of the training are dropped: those of a method that is gone would be logged to the end.
        hooks (dict): The hooks that teach, by their names.

    Raises:
        UsageError: If it was taught by another method; names both and says what to do.
    """
    meta = checkpoint.get('meta')
    saved = meta.get(META_KEY) if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or saved == COMPARED:
        return
    meta[META_KEY] = COMPARED
    was = saved if isinstance(saved, dict) else {}
    before, now = was.get('methods') or {}, record(
        runner, {name: hook.given_options for name, hook in hooks.items()})
    _require_same_methods(before, hooks)
    changes = _changes('', was.get('run') or {}, now['run'])
    for name in sorted(before.keys() & hooks.keys()):
        of_method = _changes(f'{name}.', before[name], now['methods'][name])
        fixed = [
            change for change in of_method if change[0].partition('.')[2] in hooks[name].binding
        ]
        if fixed:
            raise UsageError(f'resume: {_said(*fixed[0])}, which cannot change within a run; '
                             f'set it back, or, {ANOTHER_WAY}')
        changes += of_method
    lines = [f'{_said(*change)}; the run goes on with the new one' for change in changes]
    lines += [
        f'{name} has not taught the run so far' for name in sorted(hooks.keys() - before.keys())
    ]
    for line in lines:
        print_log(f'resume: {line}', 'current', logging.WARNING)
    if lines:
        scalars = (checkpoint.get('message_hub') or {}).get('log_scalars') or {}
        for key in [key for key in scalars if key.startswith('train/')]:
            del scalars[key]


def _require_same_methods(before: Dict[str, dict], hooks: Dict[str, Any]) -> None:
    gone = sorted(before.keys() - hooks.keys())
    late = sorted(name for name in hooks.keys() - before.keys()
                  if before or not hooks[name].joins_late)
    if not (gone or late):
        return
    now = ' and '.join(sorted(hooks)) or 'no hook of mmskd'
    then = ' and '.join(sorted(before)) or 'no hook of mmskd'
    raise UsageError(
        f'resume: the checkpoint was taught by {then}, and custom_hooks has {now}. Resume with '
        f'the method of that run (its flag, or its custom_hooks), or, {ANOTHER_WAY}')


def _changes(prefix: str, before: dict, now: dict) -> List[Tuple[str, Any, Any]]:
    return [(prefix + key, before[key], now[key]) for key in before
            if key in now and before[key] != now[key]]


def _said(name: str, before: Any, now: Any) -> str:
    return f'{name} was {before!r} when the checkpoint was saved, and is {now!r}'
