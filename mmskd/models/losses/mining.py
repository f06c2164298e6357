"""Losses by which a head also chooses its samples."""
import torch
from torch import Tensor

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
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        if not torch.is_grad_enabled():
            return func(*_side('hard', args), **kwargs)
        soft = func(*_side('soft', args), **kwargs)
        if name == 'topk':
            chosen = func(*_side('hard', args), **kwargs).indices
            dim = kwargs.get('dim', args[2] if len(args) > 2 else -1)
            return type(soft)((_side('soft', args)[0].gather(dim, chosen), chosen))
        if name not in _FOLLOWED:
            return soft
        with torch.no_grad():
            return cls.of(soft, func(*_side('hard', args), **kwargs))


def _side(name: str, args: tuple) -> tuple:
    return tuple(getattr(arg, name) if isinstance(arg, MinedLoss) else arg for arg in args)
