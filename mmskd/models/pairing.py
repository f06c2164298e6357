"""A tensor that carries a teacher's prediction of the same thing.

Between a head's ``forward`` and its classification loss, class scores are permuted, reshaped,
concatenated over levels, split over images and indexed with masks that depend on the assignment.
Every detector does it in its own way. :class:`Pair` makes following along unnecessary: the
student's scores leave the head as a ``Pair`` and every operation that only moves elements around is
applied to the teacher's scores as well. When the pair arrives at the loss, both sides are aligned
by construction.

This module knows no loss and no model.
"""
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from mmskd.errors import UsageError

from .ranges import PAIRING, record_function

# Operations that move, select or recast elements without looking at their values. Only these are
# applied to the teacher's side; what any other operation returns is a plain tensor.
_SHAPE_OPS = frozenset(
    '__getitem__ index_select masked_select gather take_along_dim take narrow select '
    'reshape view view_as reshape_as flatten unflatten ravel squeeze unsqueeze '
    'permute transpose swapaxes swapdims movedim moveaxis t '
    'expand expand_as broadcast_to repeat repeat_interleave tile flip '
    'cat concat concatenate stack hstack vstack '
    'split split_with_sizes tensor_split chunk unbind '
    'masked_fill '
    'contiguous clone detach to type type_as float double half bfloat16 cpu cuda'.split())


class Pair(Tensor):
    """The student's scores, with the teacher's scores of the same shape riding along.

    To every operation it is the student's tensor: the operation runs on ``pair.student``, so
    values, gradients and even the autograd graph are those of a run without a teacher.
    ``pair.teacher`` follows through the operations in ``_SHAPE_OPS``. A concatenation of which only
    some members are pairs is a plain tensor, and so is the result of any arithmetic; an in-place
    operation on a pair drops its teacher. A loss that expects a pair and gets a plain tensor can
    tell (:func:`unpair` returns None for the teacher).
    """

    student: Tensor
    teacher: Optional[Tensor]
    overrides: Dict[Callable, Callable]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        source = _leading_pair(args)
        if source is not None and func in source.overrides:
            return source.overrides[func](*args, **kwargs)
        out = func(*map_leaves(student_side, args), **map_leaves(student_side, kwargs))
        if source is None:
            return out
        name = getattr(func, '__name__', '')
        if name in _SHAPE_OPS:
            with torch.no_grad(), record_function(PAIRING):
                teacher_out = func(*map_leaves(teacher_side, args),
                                   **map_leaves(teacher_side, kwargs))
            return map_leaves(lambda s, t: _wrap(s, t, source.overrides), out, teacher_out)
        if name == '__setitem__' or out is source.student:
            source.teacher = None  # the student's values have changed in place
        return out


def pair(student: Tensor,
         teacher: Tensor,
         overrides: Optional[Dict[Callable, Callable]] = None) -> Pair:
    """Let ``teacher`` ride along with ``student``.

    Args:
        student (Tensor): What the loss would see without a teacher. Any shape.
        teacher (Tensor): The teacher's prediction, of the same shape. Detached.
        overrides (dict, optional): Functions to call instead of a torch function when a pair is its
            first argument, e.g. ``{F.cross_entropy: soft_cross_entropy}``. Defaults to None.

    Returns:
        Pair: ``student``, paired.

    Raises:
        UsageError: If the shapes differ.
    """
    if student.shape != teacher.shape:
        raise UsageError(f'the student predicts {tuple(student.shape)} and the teacher '
                         f'{tuple(teacher.shape)}: they do not answer the same question')
    return _wrap(student_side(student), teacher.detach(), overrides or {})


def ride(student: Tensor, teacher: Tensor) -> Pair:
    """As :func:`pair`, for features on the way: their channels may differ, their scores may not."""
    return _wrap(student_side(student), teacher.detach(), {})


def unpair(value: Any) -> Tuple[Any, Optional[Tensor]]:
    """Split into the student's plain tensor and the teacher's.

    What is no pair comes back as it is, with None for the teacher.
    """
    return (value.student, value.teacher) if isinstance(value, Pair) else (value, None)


def student_side(value: Any) -> Any:
    """The student's plain tensor of a pair; anything else as it is."""
    return unpair(value)[0]


def teacher_side(value: Any) -> Any:
    """The teacher's tensor of a pair; anything else as it is."""
    student, teacher = unpair(value)
    return student if teacher is None else teacher


def has_pair(value: Any) -> bool:
    """Whether a live pair is anywhere in nested lists, tuples and dicts."""
    if isinstance(value, Pair):
        return value.teacher is not None
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return any(has_pair(item) for item in value)


def map_leaves(func: Callable, value: Any, *others: Any) -> Any:
    """Apply ``func`` to all that is no list, tuple or dict in nested ones of the same structure."""
    if isinstance(value, dict):
        return type(value)((key, map_leaves(func, item, *(other[key] for other in others)))
                           for key, item in value.items())
    if isinstance(value, (list, tuple)):
        items = [map_leaves(func, *row) for row in zip(value, *others)]
        return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)
    return func(value, *others)


def _wrap(student: Any, teacher: Any, overrides: Dict[Callable, Callable]) -> Any:
    if not isinstance(student, Tensor):
        return student
    out = student.as_subclass(Pair)
    out.student, out.teacher, out.overrides = student, teacher, overrides
    return out


def _leading_pair(args: tuple) -> Optional[Pair]:
    """The pair that an operation is about: its first argument, or the first of a list of pairs."""
    first = args[0] if args else None
    if isinstance(first, (list, tuple)) and first:
        if not all(isinstance(item, Pair) and item.teacher is not None for item in first):
            return None
        first = first[0]
    return first if isinstance(first, Pair) and first.teacher is not None else None
