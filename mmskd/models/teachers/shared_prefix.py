"""The frozen first stages of a backbone, which a model and its past self have in common.

Computed once.
"""
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List

import torch
from torch import Tensor, nn

from ..taps import Tap, stand_ins
from .compiled import unchanged
from .frozen import named_tensors

Listener = Callable[[Tensor], None]


class SharedPrefix:
    """What the student has computed by weights that never move, handed to its past self.

    A pretrained ResNet is usually trained with its stem and its first stage frozen, where the maps
    are largest. The past self's weights are the same there, and so is its answer: it goes on from
    the student's.

    Args:
        student (nn.Module): A model with a ``backbone``.
        source (nn.Module): Its frozen copy, by the same names of modules.
        asked (nn.Module): The form of ``source`` that is asked.
    """

    def __init__(self, student: nn.Module, source: nn.Module, asked: nn.Module):
        names = prefix_of(student.backbone)
        self._mine, self._theirs, self._patched = ([
            model.backbone.get_submodule(name) for name in names
        ] for model in (student, source, asked))
        self._seen: Any = None
        self._same = False

    def holds(self) -> bool:
        """Whether the two compute the same there at this moment."""
        if not self._mine:
            return False
        if any(parameter.requires_grad
               for module in self._mine
               for parameter in module.parameters()):
            return False
        mine, theirs = ([tensor for module in modules for _, tensor in named_tensors(module)]
                        for modules in (self._mine, self._theirs))
        seen = [tensor._version for tensor in (*mine, *theirs)]
        if seen != self._seen:
            self._seen, self._same = seen, all(map(torch.equal, mine, theirs))
        return self._same and not any(module.training
                                      for each in self._mine
                                      for module in each.modules()
                                      if hasattr(module, 'track_running_stats'))

    def listen(self, listener: Listener) -> Any:
        """Call ``listener`` with what the student has computed, in each of its passes.

        Returns:
            The handle of the hook; None if nothing is shared.
        """
        if not self._mine:
            return None
        hook = Tap(lambda module, args, output: listener(output.detach()))
        return self._mine[-1].register_forward_hook(hook)

    @contextmanager
    def given(self, value: Tensor) -> Iterator[None]:
        """Within it the past self goes on from ``value``."""
        *skipped, last = self._patched
        forwards: Dict[nn.Module, Callable] = dict.fromkeys(skipped, unchanged)
        with stand_ins({**forwards, last: partial(_instead, value)}):
            yield


def prefix_of(backbone: nn.Module) -> List[str]:
    """Names of the modules, from the input on, that a backbone calls in turn and does not train.

    They end with the first whose output the backbone returns: what is skipped computes nothing.

    Args:
        backbone (nn.Module): Any. Known are ResNets whose ``forward`` is MMDetection's, and mmskd's
            EfficientNet-Lite.
    """
    frozen = getattr(backbone, 'frozen_stages', -1)
    if frozen < 0 or 'forward' in vars(backbone):  # which may call none of its modules
        return []
    kind = next(kind for kind in type(backbone).__mro__ if 'forward' in vars(kind))
    prefix = _PREFIXES.get(f'{kind.__module__}.{kind.__name__}')
    return prefix(backbone, frozen) if prefix else []


def _resnet(backbone: nn.Module, frozen: int) -> List[str]:
    stem = ['stem'] if backbone.deep_stem else ['conv1', backbone.norm1_name, 'relu']
    return [*stem, 'maxpool', *backbone.res_layers[:min(frozen, min(backbone.out_indices) + 1)]]


def _efficientnet_lite(backbone: nn.Module, frozen: int) -> List[str]:
    # 0 is the stem
    first = min(level['stage'] for level in backbone.features.feature_info.get_dicts())
    return ['features.conv_stem', 'features.bn1',
            *(f'features.blocks.{stage}' for stage in range(min(frozen, first)))]


_PREFIXES = {
    'mmdet.models.backbones.resnet.ResNet': _resnet,
    'mmskd.models.backbones.efficientnet_lite.EfficientNetLite': _efficientnet_lite,
}
"""By the class whose ``forward`` a backbone has."""


def _instead(value: Tensor, x: Tensor) -> Tensor:
    return value
