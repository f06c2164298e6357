"""Watching the module that computes a model's classification loss, from a hook that adds another."""
from typing import Any, Sequence

from torch import Tensor, nn


def find_module(hook: str, model: nn.Module, option: str, name: str) -> nn.Module:
    """A module of a model by the name that an option gives.

    Raises:
        ValueError: If there is none; says which there are.
    """
    modules = dict(model.named_modules())
    if not name or name not in modules:
        parent = name.rpartition('.')[0]
        parent = parent if parent in modules else ''
        known = ', '.join(child for child, _ in modules[parent].named_children())
        raise ValueError(f'{hook}: {type(model).__name__} has no module {name!r}. Choose another '
                         f'`{option}`; {"model." + parent if parent else "the model"} has: {known}')
    return modules[name]


def find_loss_module(hook: str, model: nn.Module, name: str) -> nn.Module:
    """The module of a model that computes its classification loss.

    Raises:
        ValueError: If there is none of this name, or it is a loss of sigmoids.
    """
    module = find_module(hook, model, 'loss_module', name)
    if getattr(module, 'use_sigmoid', False) or isinstance(module, nn.BCEWithLogitsLoss):
        raise ValueError(
            f'{hook}: model.{name} ({type(module).__name__}) is a sigmoid loss. NKD and USKD normalise '
            'over the classes of a softmax; name a softmax loss in `loss_module`.')
    return module


def refuse_logits(hook: str, name: str, logits: Sequence[Any], wanted: str) -> None:
    """Refuse a loss that is called with something else than it should be.

    Args:
        hook (str): For whom.
        name (str): Of the loss module in the model.
        logits (Sequence[Any]): What it classifies.
        wanted (str): What was expected.

    Raises:
        ValueError: Names both.
    """
    got = ' and '.join(str(tuple(each.shape)) if isinstance(each, Tensor) else f'a {type(each).__name__}'
                       for each in logits) or 'something else'
    raise ValueError(f'{hook}: model.{name} is called with {got} where (logits, labels) with logits of '
                     f'{wanted} were expected. It is for heads that classify by a softmax.')


def require_one(hook: str, calls: list, option: str, name: str) -> None:
    """Refuse a module that was not called just once.

    Raises:
        RuntimeError: Names it.
    """
    if len(calls) != 1:
        raise RuntimeError(
            f'{hook}: model.{name} was called {len(calls)} times in a forward pass when its result was '
            f'needed, not once. Choose another `{option}`: one classification loss is needed, of all '
            'samples at once.')
