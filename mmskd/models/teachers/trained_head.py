"""A trained head that teaches another on the same frozen features: DWPose's second stage."""
from contextlib import ExitStack
from functools import partial
from typing import Any, Dict, List, Sequence

import torch
from torch import Tensor, nn

from mmskd.checkpoint import load_weights
from mmskd.errors import UsageError

from ..finite import require_finite
from ..heads.adapter import derives_from
from ..low_precision import FEATURE_PARTS, as_plain, feature_parts
from ..pairing import map_leaves
from ..taps import stand_ins
from .compiled import CompiledTeacher
from .frozen import frozen_copy
from .metainfo import metainfo_of_checkpoint

ONE_IMAGE_AT_A_TIME = 'GuidedAnchorHead'
"""Heads of this class run masked convolutions in eval mode, and these take one image.

Frozen, they stay in train mode.
"""


def trained_copy(model: nn.Module, checkpoint: str) -> nn.Module:
    """A frozen copy of a model with the weights of a checkpoint; the model is not changed.

    What the checkpoint calls the classes or keypoints is in its attribute ``dataset_meta``.

    Raises:
        FileNotFoundError, ValueError: If the checkpoint is not there, or not that of such a model.
    """
    trained = frozen_copy(model)
    trained.dataset_meta = metainfo_of_checkpoint(load_weights(trained, checkpoint))
    require_finite(trained, checkpoint)
    return trained


def feature_weights(model: nn.Module, trained: nn.Module,
                    learning: Sequence[str]) -> Dict[str, Tensor]:
    """The weights of a model's frozen parts, of a trained model with other heads.

    Args:
        model (nn.Module): Whose parts they are to become.
        trained (nn.Module): The trained model.
        learning (sequence[str]): Names of the heads, which are left out.

    Raises:
        UsageError: If the parts differ; names the first weight that does.
    """
    theirs = trained.state_dict()
    prefixes = tuple(f'{name}.' for name in learning)
    found = {}
    for key, value in model.state_dict().items():
        if key.startswith(prefixes):
            continue
        other = theirs.get(key)
        if other is None or other.shape != value.shape:
            there = 'not there' if other is None else f'of shape {tuple(other.shape)}'
            raise UsageError(
                f'backbone and neck of the teacher are not the student\'s: {key} is of shape '
                f'{tuple(value.shape)} in the student and {there} in the teacher. They are frozen '
                'and shared here, so the two configs must agree in them')
        found[key] = other
    return found


def without_features(trained: nn.Module) -> nn.Module:
    """What teaches on given features: the model without its backbone and neck."""
    for name in FEATURE_PARTS:
        if hasattr(trained, name):
            delattr(trained, name)
    return trained


class FastFeatures:
    """Lets a model with frozen backbone and neck compute its features in the fastest form.

    Its own modules stay as they are: their ``forward`` is replaced between :meth:`start` and
    :meth:`stop`. The features come out in float32.

    Args:
        model (nn.Module): The model.
        precision (str): See :class:`~mmskd.models.teachers.compiled.CompiledTeacher`.

    Attributes:
        dtype (torch.dtype, optional): In which they run; None for the student's.
    """

    def __init__(self, model: nn.Module, precision: str):
        self._parts = {part: CompiledTeacher(part, precision) for part in feature_parts(model)}
        self.dtype = next((fast.dtype for fast in self._parts.values()), None)
        self._replaced = ExitStack()

    def start(self) -> None:
        """A forward pass begins in which they are frozen."""
        self.stop()
        for fast in self._parts.values():
            fast.follow()
        self._replaced.enter_context(stand_ins(
            {part: partial(_features, fast) for part, fast in self._parts.items()}))

    def stop(self) -> None:
        """From here on the modules compute what they computed before."""
        self._replaced.close()


def _features(fast: CompiledTeacher, *args, **kwargs) -> Any:
    with torch.no_grad():
        return map_leaves(as_plain, fast.ask(fast.model, *args, **kwargs))


class FrozenParts:
    """Everything of a model but some heads, without gradients and in eval mode.

    Args:
        model (nn.Module): The model.
        heads (sequence[str]): Names of the heads that go on learning.
    """

    def __init__(self, model: nn.Module, heads: Sequence[str]):
        learning = {id(module) for name in heads for module in model.get_submodule(name).modules()}
        above = {'.'.join(name.split('.')[:depth]) for name in heads
                 for depth in range(name.count('.') + 1)}
        self._modules: List[nn.Module] = [
            module for name, module in model.named_modules() if id(module) not in learning
            and name not in above and not derives_from(module, ONE_IMAGE_AT_A_TIME)
        ]
        learns = {id(parameter) for name in heads
                  for parameter in model.get_submodule(name).parameters()}
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()
                       if id(parameter) not in learns]
        for parameter, _ in self._flags:
            parameter.requires_grad_(False)

    def keep_eval(self) -> None:
        """Again: ``model.train()`` has put them in train mode."""
        for module in self._modules:
            module.training = False

    def release(self) -> None:
        """Let the parameters learn that learned before."""
        for parameter, requires_grad in self._flags:
            parameter.requires_grad_(requires_grad)
