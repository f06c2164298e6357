"""A teacher in the form in which it answers fastest.

Folded, cast, in another layout, without idle branches.
"""
import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..heads.adapter import HeadAdapter
from ..low_precision import as_the_student, is_of_mmcv_ops, plainly
from ..ranges import REFRESH, record_function
from .folding import FoldingWatch, folded, is_overheard
from .frozen import device_of, frozen_copy, named_tensors
from .functional_dropout import DropoutOff

DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}
PRECISIONS = ('auto', *DTYPES, None)
"""What an option ``precision`` of a hook may be; None is that of the student, exactly."""

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""What gets its weights cast: these and mmcv's wrappers of them. Others are left to autocast."""


class CompiledTeacher:
    """A copy of a frozen model for inference, which follows its source.

    - A batch norm that uses its running statistics is folded into the convolution before it, where
      the first pass shows that this changes nothing (see
      :class:`~mmskd.models.teachers.folding.FoldingWatch`). Which ones use these is up to the
      modules of ``source`` and may change.
    - Convolutions and linear layers hold their weights in ``dtype`` and in channels-last layout;
      the rest runs under autocast. Operators of mmcv, of which some know no half precision and some
      read channels-last tensors in the wrong order (RoIAlign, deformable convolutions), run in
      float32 on contiguous tensors, and so do the layers within them. A part that turns out not to
      run in ``dtype`` runs in float32 too.
    - Dropout is off, be it a module or a function.
    - What leads only to outputs that nobody compares (a dense head's boxes) is taken out. Where
      boxes are compared, modules that add up coordinates (a DETR's decoder and head) run in
      float32.

    It is written anew, in place, where the weights of ``source`` or the modes of its norm layers
    are not those of the last time.

    Args:
        source (nn.Module): A frozen model. Not changed.
        precision (str, optional): 'bfloat16' or 'float16'; 'auto': bfloat16 where ``source`` is on
            a device that is fast in it, as :func:`fast_dtype` says, else float32. Defaults to None:
            float32.
        heads (sequence[HeadAdapter]): The heads that are asked.
        boxes (bool): Whether for their boxes, too. Defaults to False: for class scores alone.

    Attributes:
        model (nn.Module): The copy, with the names of the modules of ``source``.
    """

    def __init__(self, source: nn.Module, precision: Optional[str] = None,
                 heads: Sequence[HeadAdapter] = (), boxes: bool = False):
        self.model = frozen_copy(source)
        self._source = source
        self.dtype = fast_dtype(device_of(source)) if precision == 'auto' else DTYPES.get(
            precision or '')
        self._islands: Set[nn.Module] = set()
        for adapter in () if boxes else heads:
            _take_out(adapter, self.model)
        self._layers = self._find_layers()
        for layer in self._layers:
            _relayout(layer.mine, self.dtype)
        for module in self.model.modules():
            if is_of_mmcv_ops(module):
                self._keep_plain(module)
        for adapter in heads if boxes and self.dtype else ():
            for name in adapter.decodes:
                self._keep_plain(self.model.get_submodule(name))
        mine = dict(named_tensors(self.model))
        owned = {id(tensor) for layer in self._layers for tensor in layer.mine.parameters()}
        self._rest = [(mine[name], theirs) for name, theirs in named_tensors(source)
                      if name in mine and id(mine[name]) not in owned]
        self._tensors = [tensor for _, tensor in named_tensors(source)]
        self._pairs = _same_names(source, self.model)
        self._seen: Any = None
        self._watch = FoldingWatch(self.model)
        self._known: Set[Callable] = set()
        self._dropout = DropoutOff()

    @torch.no_grad()
    def follow(self) -> None:
        """Be what the source is at this moment."""
        modes = tuple(theirs.training for theirs, _ in self._pairs)
        seen = modes, sum(tensor._version for tensor in self._tensors)
        if seen == self._seen:
            return
        self._seen = seen
        with record_function(REFRESH):
            for theirs, mine in self._pairs:
                mine.training = theirs.training
            for mine, theirs in self._rest:
                mine.copy_(theirs)
            for layer in self._layers:
                layer.write()

    def ask(self, question: Callable, *args, **kwargs) -> Any:
        """Call a module of :attr:`model`, or a function that does so, in its precision.

        The first time it is called twice, once to see which norm layers may be folded.
        """
        device = device_of(self.model)
        if question not in self._known:
            self._look_on(device, question, args, kwargs)
        with self._dropout.while_asking(question):
            return self._answer(device, question, *args, **kwargs)

    def _answer(self, device: torch.device, question: Callable, *args, **kwargs) -> Any:
        if self.dtype is None:
            with as_the_student(self.model):
                return question(*args, **kwargs)
        if question not in self._islands:
            try:
                with torch.autocast(device.type, dtype=self.dtype):
                    return question(*args, **kwargs)
            except RuntimeError as error:  # NotImplementedError is one
                if not _is_about_precision(error):
                    raise
                self._give_up(question, error)
        return plainly(device.type, question, *args, **kwargs)

    def _give_up(self, question: Callable, error: RuntimeError) -> None:
        """Let a part that does not run in low precision run in float32 from here on."""
        part = question if isinstance(question, nn.Module) else self.model
        print_log(
            f'the teacher\'s {type(part).__name__} runs in float32: {str(error).splitlines()[0]}',
            'current', logging.WARNING)
        self._islands.add(question)
        self._watch.paused = True
        inside = set(part.modules())
        for layer in self._layers:
            if layer.mine in inside:
                _relayout(layer.mine, torch.float32)
        self._watch.restart()
        self._write()
        self._watch.paused = False

    def _keep_plain(self, module: nn.Module) -> None:
        forward, device = module.forward, device_of(self.model)
        inside = set(module.modules())
        for layer in self._layers:
            if layer.mine in inside:
                _relayout(layer.mine, layer.theirs.weight.dtype, torch.contiguous_format)
        module.forward = lambda *args, **kwargs: plainly(device.type, forward, *args, **kwargs)

    def _find_layers(self) -> List['Layer']:
        """The layers to be written."""
        theirs = dict(self._source.named_modules(remove_duplicate=False))
        found: Dict[nn.Module, Layer] = {}
        for name, module in self.model.named_modules(remove_duplicate=False):
            if is_plain_layer(module) and is_plain_layer(theirs[name]) and module not in found:
                found[module] = Layer(module, theirs[name])
        return list(found.values())

    def _look_on(self, device: torch.device, question: Callable, args: tuple, kwargs: dict) -> None:
        """Ask once, and drop the answer, to see which norm layers may be folded."""
        self._known.add(question)
        self._unfold()
        with torch.random.fork_rng([device] if device.type == 'cuda' else []), self._watch:
            self._answer(device, question, *args, **kwargs)
        norms = self._watch.pairs()
        theirs = {mine: source for source, mine in self._pairs}
        for layer in self._layers:
            if layer.mine in norms:
                norm = norms[layer.mine]
                layer.norms = norm, theirs[norm]
        self._write()

    def _unfold(self) -> None:
        if any(layer.norms for layer in self._layers):
            for layer in self._layers:
                layer.unfold()
            self._write()

    def _write(self) -> None:
        self._seen = None
        self.follow()


class PlainTeacher:
    """A frozen model that is asked as it is: exactly what the student would say.

    Args:
        model (nn.Module): The model.
    """
    dtype = None

    def __init__(self, model: nn.Module):
        self.model = model
        self._dropout = DropoutOff()

    def follow(self) -> None:
        """It is what it is."""

    def ask(self, question: Callable, *args, **kwargs) -> Any:
        """Call a module or a function."""
        with as_the_student(self.model), self._dropout.while_asking(question):
            return question(*args, **kwargs)


def teacher_to_ask(source: nn.Module, precision: Optional[str],
                   heads: Sequence[HeadAdapter] = (),
                   boxes: bool = False) -> Union[CompiledTeacher, PlainTeacher]:
    """The form of a frozen model for a hook's option ``precision``: without one, the model itself.

    A teacher with a method ``ask_in(precision)`` is asked as it is, and sees to the models within
    it.
    """
    if hasattr(source, 'ask_in'):
        source.ask_in(precision)
        return PlainTeacher(source)
    return CompiledTeacher(source, precision, heads, boxes) if precision else PlainTeacher(source)


class Layer:
    """A layer of the copy, and the norm layer that is folded into it, if any.

    Args:
        mine (nn.Module): A convolution or linear layer of the copy.
        theirs (nn.Module): Of the source.

    Attributes:
        norms (tuple[nn.Module, nn.Module], optional): The batch norm behind ``mine``, and that of
            the source.
    """

    def __init__(self, mine: nn.Module, theirs: nn.Module):
        self.mine, self.theirs = mine, theirs
        self.norms: Optional[Tuple[nn.Module, nn.Module]] = None

    def write(self) -> None:
        """Take over the weights of the source, with its norm layer if that uses statistics."""
        weight, bias = self.theirs.weight, self.theirs.bias
        if self.norms:
            norm, theirs = self.norms
            if theirs.training or is_overheard(self.mine, norm):
                vars(norm).pop('forward', None)
            else:
                norm.forward = unchanged  # hooks on it go on seeing what it would have said
                weight, bias = folded(weight, bias, theirs)
        self.mine.weight.copy_(weight)
        if bias is None:
            self.mine.bias = None
        elif self.mine.bias is None:
            self.mine.bias = nn.Parameter(bias.to(self.mine.weight.dtype), requires_grad=False)
        else:
            self.mine.bias.copy_(bias)

    def unfold(self) -> None:
        """Let the norm layer be called."""
        if self.norms:
            vars(self.norms[0]).pop('forward', None)
        self.norms = None


def unchanged(x: Tensor) -> Tensor:
    """What a module that is left out computes."""
    return x


def fast_dtype(device: torch.device) -> Optional[torch.dtype]:
    """bfloat16 where a device computes in it faster than in float32, else None.

    Of CPUs these are those with AMX, and AMD's with AVX512-BF16 (half of float32's time on Zen 4).
    Intel's with the flag but without AMX, as a virtual machine may show them, take twice the time.
    """
    if device.type == 'cuda':
        modern = torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if modern and torch.cuda.is_bf16_supported() else None
    if device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return None
    cpu = _cpu_words()
    fast = 'amx_bf16' in cpu or {'avx512_bf16', 'AuthenticAMD'} <= cpu
    return torch.bfloat16 if fast else None


def name_of(dtype: Optional[torch.dtype]) -> str:
    """How a log calls what a teacher runs in; None is the precision of the student."""
    return str(dtype).rpartition('.')[2] if dtype else 'the precision of the student'


def is_plain_layer(module: nn.Module) -> bool:
    """Whether it is a convolution or a linear layer that does not derive its weights anew."""
    kind = type(module)
    wrapper = kind.__module__ == 'mmcv.cnn.bricks.wrappers' and issubclass(kind, LAYERS)
    return (kind in LAYERS
            or wrapper) and not module._forward_pre_hooks and 'weight' in module._parameters


def _cpu_words() -> Set[str]:
    """The CPU's maker and what it can do, as Linux names them; nothing on other systems."""
    info = Path('/proc/cpuinfo')
    first = info.read_text().partition('\n\n')[0] if info.exists() else ''
    return {word for line in first.splitlines() if line.startswith(('vendor_id', 'flags'))
            for word in line.split()}


def _relayout(layer: nn.Module, dtype: Optional[torch.dtype],
              layout: torch.memory_format = torch.channels_last) -> None:
    for parameter in layer.parameters(recurse=False):
        kept = layout if parameter.dim() == 4 else torch.preserve_format
        parameter.data = parameter.data.to(dtype=dtype, memory_format=kept)


def _is_about_precision(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(word in text for word in ('bfloat16', 'half', 'dtype', 'scalar type', 'float16'))


def _same_names(source: nn.Module, copied: nn.Module) -> List[Tuple[nn.Module, nn.Module]]:
    theirs = dict(source.named_modules())
    return [(theirs[name], module) for name, module in copied.named_modules() if name in theirs]


class FirstChannels(nn.Module):
    """In place of a layer whose output nobody looks at: something with at most as many channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :self.channels]


def _take_out(adapter: HeadAdapter, model: nn.Module) -> None:
    """Empty the branches that do not lead to a head's class scores."""
    head = model.get_submodule(adapter.name) if adapter.exact else None
    if head is None or type(head) is not type(adapter.head):
        return
    for name in adapter.beside:
        if name in head._modules:
            head._modules[name] = _emptied(head._modules[name])


def _emptied(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.ModuleList):
        return nn.ModuleList(map(_emptied, module))
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        channels = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        return FirstChannels(channels)
    return nn.Identity()
