"""Mixed precision without a GPU."""
import logging
from contextlib import contextmanager
from typing import Iterator

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import nn

from mmskd.errors import UsageError
from mmskd.models.low_precision import low_precision_layers
from mmskd.models.teachers.compiled import fast_dtype
from mmskd.models.teachers.frozen import device_of
from mmskd.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Trains convolutions under bfloat16 autocast, in channels-last layout, on a CPU.

    MMEngine's AmpOptimWrapper refuses a CPU. In bfloat16 run backbone and neck, and the head of a
    one-stage detector that mmskd knows, but for the layers that predict its boxes. Those, other
    heads and all losses stay in float32, and so do weights, gradients and the optimizer's state: a
    checkpoint is that of an OptimWrapper. There is no loss scale, which bfloat16, with the range of
    float32, has no use for.

    Takes the arguments of MMEngine's ``OptimWrapper``.

    Raises:
        UsageError: In the first step, if the model is not on a CPU, or has no backbone.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._checked = False

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context of a forward pass in training."""
        own = model.module if is_model_wrapper(model) else model
        if not self._checked:
            _check(own)
            self._checked = True
        with super().optim_context(model), low_precision_layers(own):
            yield


def _check(model: nn.Module) -> None:
    device = device_of(model)
    if device.type != 'cpu':
        raise UsageError(
            f'optim_wrapper.type: CPUAmpOptimWrapper is for a CPU, and the model is on {device}; '
            'use AmpOptimWrapper there')
    if not isinstance(getattr(model, 'backbone', None), nn.Module):
        raise UsageError(
            f'optim_wrapper.type: CPUAmpOptimWrapper runs the backbone in bfloat16, and '
            f'{type(model).__name__} has none; use OptimWrapper')
    if fast_dtype(device) is None:
        print_log(
            'CPUAmpOptimWrapper: this CPU has neither AMX nor, as one of AMD, AVX512-BF16, so '
            'bfloat16 is likely to be slower than float32', 'current', logging.WARNING)
