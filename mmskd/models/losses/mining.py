"""Losses by which a head also chooses its samples."""
from typing import Any

import torch
from torch import Tensor

from ..pairing import map_leaves

_FOLLOWED = frozenset('mul __mul__ __rmul__ __getitem__ view reshape flatten'.split())


class MinedLoss(Tensor):
    """The losses of samples to a soft target, with those to the hard target for all decisions.

    SSD and YOLACT keep the negatives with the largest losses, FSAF gives an object to the level
    with the smallest. Such choices are part of the assignment, which a teacher is not to change:
    ``topk``, and whatever is computed without a gradient, sees the hard losses. All else sees the
    soft ones.
    """

    soft: Tensor
    hard: Tensor

    @classmethod
    def of(cls, soft: Tensor, hard: Tensor) -> 'MinedLoss':
        """Bind the two.

        Args:
            soft (Tensor): What is minimised, any shape.
            hard (Tensor): What decides, of the same shape.
        """
        out = soft.as_subclass(cls)
        out.soft, out.hard = soft, hard.detach()
        return out

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, '__name__', '')

        def on(side: str) -> Any:
            return func(*_side(side, args), **_side(side, kwargs or {}))

        if not torch.is_grad_enabled():
            return on('hard')
        soft = on('soft')
        if name == 'topk':
            chosen = on('hard').indices
            dim = (kwargs or {}).get('dim', args[2] if len(args) > 2 else -1)
            return type(soft)((_side('soft', args)[0].gather(dim, chosen), chosen))
        if name not in _FOLLOWED:
            return soft
        with torch.no_grad():
            return cls.of(soft, on('hard'))


def _side(name: str, given: Any) -> Any:
    """One side of all such losses in nested arguments."""
    return map_leaves(lambda arg: getattr(arg, name) if isinstance(arg, MinedLoss) else arg, given)
