"""Batch norms that may be folded into the convolution before them, as seen in a forward pass."""
import weakref
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ..taps import Tap

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
"""What may be folded: these alone, a class derived from them may do more (timm's do)."""


class FoldingWatch(TorchFunctionMode):
    """Sees in forward passes of a model which convolutions hand all they compute to one batch norm.

    Names do not tell: a block may normalise first, share a convolution between levels, look at what
    it computes on the way, or use the weights by itself. A pair is foldable where in all passes
    seen each output of the convolution went into that norm and nowhere else, that norm was called
    on nothing else, and their weights were used by these two alone.

    Use it as a context manager around each pass.

    Args:
        model (nn.Module): The model, none of whose norm layers is folded during a pass.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        modules = list(model.modules())
        self._convs = [module for module in modules if type(module) is nn.Conv2d]
        self._norms = [module for module in modules
                       if type(module) in NORMS and module.running_mean is not None]
        self._norm_of: Dict[nn.Module, nn.Module] = {}
        self._conv_of: Dict[nn.Module, nn.Module] = {}
        self._refused: Set[nn.Module] = set()
        self._handles: List[Any] = []
        self._inside: List[nn.Module] = []
        self._outputs: Dict[int, Tuple[nn.Module, weakref.ref]] = {}
        self._left: Dict[nn.Module, int] = {}  # outputs that no norm layer took
        self.paused = False
        """Whether what happens is no part of a pass: weights are written."""

    def __enter__(self) -> 'FoldingWatch':
        for module in (*self._convs, *self._norms):
            self._handles += [module.register_forward_pre_hook(self._before),
                              module.register_forward_hook(self._after)]
        self._users = {id(tensor): module for module in (*self._convs, *self._norms)
                       for tensor in (*module.parameters(), *module.buffers())}
        return super().__enter__()

    def __exit__(self, *args) -> None:
        super().__exit__(*args)
        self._refused.update(conv for conv, number in self._left.items() if number)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.restart()

    def restart(self) -> None:
        """A pass is over, or broken off."""
        self._inside.clear()
        self._outputs.clear()
        self._left.clear()

    def pairs(self) -> Dict[nn.Module, nn.Module]:
        """The norm layer to be folded into each convolution."""
        return {conv: norm for conv, norm in self._norm_of.items()
                if not {conv, norm} & self._refused}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        here = self._inside[-1] if self._inside else None
        for tensor in _tensors((args, list(kwargs.values()))):
            user = self._users.get(id(tensor))
            if user is not None and user is not here:
                self._refused.update({user, here} - {None})  # two convolutions may share weights
            conv = self._computed_by(tensor)
            if conv is not None and not isinstance(here, NORMS):
                self._refused.add(conv)
        return func(*args, **kwargs)

    def _before(self, module: nn.Module, args: tuple) -> None:
        self._inside.append(module)
        if isinstance(module, NORMS):
            conv = self._computed_by(args[0]) if args else None
            if conv is not None:
                self._left[conv] -= 1
            if conv is None or conv.out_channels != module.num_features or \
                    self._norm_of.setdefault(conv, module) is not module or \
                    self._conv_of.setdefault(module, conv) is not conv:
                self._refused.update({module, conv} - {None})

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._inside.pop()
        if isinstance(module, nn.Conv2d):
            self._outputs[id(output)] = module, weakref.ref(output)
            self._left[module] = self._left.get(module, 0) + 1

    def _computed_by(self, tensor: Any) -> Optional[nn.Module]:
        conv, known = self._outputs.get(id(tensor), (None, None))
        return conv if known is not None and known() is tensor else None


def folded(weight: Tensor, bias: Optional[Tensor], norm: _BatchNorm) -> Tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm behind it, by running statistics.

    Args:
        weight (Tensor): (C, ...).
        bias (Tensor, optional): (C,).
        norm (_BatchNorm): Of C channels.
    """
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * factor
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * factor.view(-1, *[1] * (weight.dim() - 1)), shift


def is_overheard(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a hook gets to see what is between a convolution and its norm layer."""
    hooks = (*conv._forward_hooks.values(), *norm._forward_pre_hooks.values())
    return any(not isinstance(hook, Tap) or hook.func is not None for hook in hooks)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
