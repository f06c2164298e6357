"""Watching the module that computes a model's classification loss, from a hook that adds another."""
from typing import Any, NamedTuple, Optional, Tuple

from torch import Tensor, nn

from mmskd.models.pairing import student_side


class ClassLossCall(NamedTuple):
    """What a classification loss was called with.

    Attributes:
        logits (Any): (N, C), if it is a loss of one softmax a row; None if it was not called as a loss.
        labels (Tensor): (N,) or (N, C).
        weight (Tensor, optional): (N,).
        avg_factor (float, optional): What the sum is divided by.
    """
    logits: Any
    labels: Optional[Tensor]
    weight: Optional[Tensor]
    avg_factor: Optional[float]


def read_call(args: tuple, kwargs: dict) -> ClassLossCall:
    """Read the arguments of a loss of torch, mmpretrain or mmdet: (logits, labels, weight, avg_factor)."""
    if len(args) < 2:
        return ClassLossCall(None, None, None, None)
    return ClassLossCall(student_side(args[0]), args[1],
                         kwargs.get('weight', args[2] if len(args) > 2 else None),
                         kwargs.get('avg_factor', args[3] if len(args) > 3 else None))


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


def require_logits(hook: str, name: str, logits: Any, shape: Tuple[int, int], source: str) -> None:
    """Refuse a loss that is not called with logits of this shape.

    Raises:
        ValueError: Names both.
    """
    if isinstance(logits, Tensor) and logits.shape == shape:
        return
    got = tuple(logits.shape) if isinstance(logits, Tensor) else f'a {type(logits).__name__}'
    raise ValueError(
        f'{hook}: model.{name} is called with {got} where (logits, labels) with logits of shape '
        f'{tuple(shape)} were expected, {source}. It is for heads that classify each row by one softmax.')


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
