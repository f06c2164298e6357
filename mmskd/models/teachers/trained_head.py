"""A trained head that teaches another on the same frozen features: DWPose's second stage."""
from typing import List, Sequence

from torch import nn

from mmskd.checkpoint import load_weights
from ..finite import require_finite
from ..heads.adapter import derives_from
from .frozen import frozen_copy
from .metainfo import metainfo_of_checkpoint

FEATURE_PARTS = ('backbone', 'neck')
ONE_IMAGE_AT_A_TIME = 'GuidedAnchorHead'
"""Heads of this class run masked convolutions in eval mode, and these take one image: frozen, they stay in train mode."""


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


def without_features(trained: nn.Module) -> nn.Module:
    """What teaches on given features: the model without its backbone and neck."""
    for name in FEATURE_PARTS:
        if hasattr(trained, name):
            delattr(trained, name)
    return trained


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
            module for name, module in model.named_modules()
            if id(module) not in learning and name not in above and not derives_from(module, ONE_IMAGE_AT_A_TIME)
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
