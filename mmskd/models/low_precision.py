"""Backbone, neck and a one-stage head's layers in bfloat16 and channels-last, losses in float32.

Training on a CPU.
"""
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Callable, ContextManager, Iterator, List

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .heads.adapter import adapter_of
from .heads.dense import DenseAdapter
from .pairing import map_leaves
from .taps import stand_ins

FEATURE_PARTS = ('backbone', 'neck')
_IN_LOW_PRECISION: ContextVar[bool] = ContextVar('features in low precision', default=False)


@contextmanager
def low_precision_layers(model: nn.Module) -> Iterator[None]:
    """Within it the convolutions of ``model`` run under bfloat16 autocast.

    These are backbone and neck, and the head of a one-stage detector but for the layers that
    predict its boxes: a coordinate has more digits than bfloat16. What comes out is in float32.

    So it is in a teacher that is asked in the precision of the student (:func:`as_the_student`).

    Args:
        model (nn.Module): A model with a ``backbone``, or such a head alone.
    """
    token = _IN_LOW_PRECISION.set(True)
    try:
        with _patched(model):
            yield
    finally:
        _IN_LOW_PRECISION.reset(token)


@contextmanager
def as_the_student(teacher: nn.Module) -> Iterator[None]:
    """Within it ``teacher`` computes in the precision of the student right now."""
    if not _IN_LOW_PRECISION.get():
        yield
        return
    with _patched(teacher):
        yield


def feature_parts(model: nn.Module) -> List[nn.Module]:
    """Backbone and neck of a model, as far as it has them."""
    parts = (getattr(model, name, None) for name in FEATURE_PARTS)
    return [part for part in parts if isinstance(part, nn.Module)]


def _patched(model: nn.Module) -> ContextManager[None]:
    parts, head = feature_parts(model), getattr(model, 'bbox_head', model)
    exact = _box_layers(head) if isinstance(head, nn.Module) else []
    if exact:
        parts.append(head)
    exact += [module for part in parts for module in part.modules() if is_of_mmcv_ops(module)]
    return stand_ins({**{part: partial(_in_bfloat16, part.forward) for part in parts},
                      **{layer: partial(plainly, 'cpu', layer.forward) for layer in exact}})


def is_of_mmcv_ops(module: nn.Module) -> bool:
    """Whether it is one of mmcv's own operators, or a class that derives from one."""
    return any(kind.__module__.startswith('mmcv.ops') for kind in type(module).__mro__)


def _box_layers(head: nn.Module) -> List[nn.Module]:
    """The layers that predict its boxes; none unless it is a one-stage head that is known."""
    adapter = adapter_of('bbox_head', head)
    found = []
    for name in adapter.beside if adapter.exact and isinstance(adapter, DenseAdapter) else ():
        branch = getattr(head, name, None)
        layers = branch if isinstance(branch, nn.ModuleList) else [branch]
        found += [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    return found


def _in_bfloat16(forward: Callable, *args, **kwargs) -> Any:
    args = map_leaves(_channels_last, args)
    with torch.autocast('cpu', dtype=torch.bfloat16), NarrowMapsInFloat32():
        return map_leaves(as_plain, forward(*args, **kwargs))


def plainly(device_type: str, question: Callable, *args, **kwargs) -> Any:
    """Ask in float32, without autocast, with tensors in the ordinary layout.

    Some operators of mmcv know no half precision, and some read channels-last tensors wrongly.
    """
    args, kwargs = map_leaves(as_plain, args), map_leaves(as_plain, kwargs)
    with torch.autocast(device_type, enabled=False):
        return question(*args, **kwargs)


def as_plain(value: Any) -> Any:
    """A tensor in float32 at least, in the ordinary layout; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    half = value.dtype in (torch.bfloat16, torch.float16)
    return (value.float() if half else value).contiguous()


class NarrowMapsInFloat32(TorchFunctionMode):
    """Within it a convolution of a map narrower than its stride runs in float32, not in bfloat16.

    In bfloat16, torch 2.9's CPU kernels leave parts of its weight's gradient unwritten (a 3x3
    convolution of stride 2 on a map of width 1, as in the extra levels of an FPN on a small image;
    transposed ones too): these hold whatever the memory held.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.conv2d, F.conv_transpose2d) and _is_narrow(*args, **kwargs):
            return plainly('cpu', func, *args, **kwargs)
        return func(*args, **kwargs)


def _is_narrow(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, *args,
               **kwargs) -> bool:
    return x.size(-1) < (stride if isinstance(stride, int) else stride[-1])


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value
