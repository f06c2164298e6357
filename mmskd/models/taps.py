"""Forward hooks that leave no trace, and what the calls that they see mean."""
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Mapping, Optional

from torch import nn


class Tap:
    """A forward hook that a deep copy or a pickle of the module replaces by one that does nothing.

    The copy of a student that is being taught is a plain model without a teacher.
    """

    def __init__(self, func: Optional[Callable] = None):
        self.func = func

    def __call__(self, *args, **kwargs):
        return self.func(*args, **kwargs) if self.func else None

    def __reduce__(self):
        return Tap, ()


@contextmanager
def stand_ins(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Within it modules compute something else; afterwards they are as they were.

    Args:
        forwards (Mapping[nn.Module, Callable]): What each computes.
    """
    before = {module: vars(module).get('forward') for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop('forward', None)
            else:
                module.forward = forward


def listeners(model: nn.Module) -> List[Any]:
    """The objects of mmskd that listen to the calls of this module."""
    return [hook.func.__self__ for hook in model._forward_pre_hooks.values()
            if isinstance(hook, Tap) and hasattr(hook.func, '__self__')]


def is_loss_pass(args: tuple, kwargs: dict) -> bool:
    """Whether a model of OpenMMLab is called with ``mode='loss'``."""
    return kwargs.get('mode', args[2] if len(args) > 2 else 'tensor') == 'loss'


def has_objects(args: tuple, kwargs: dict) -> bool:
    """Whether there is anything to learn from in the batch that such a model is called with.

    True where the samples do not say, as those of a classifier.
    """
    samples = kwargs.get('data_samples', args[1] if len(args) > 1 else None)
    if not isinstance(samples, (list, tuple)):
        return True
    return any(_number(sample) for sample in samples) or not samples


def _number(sample: Any) -> int:
    found = getattr(sample, 'gt_instances', None)
    return 1 if found is None else len(found)
