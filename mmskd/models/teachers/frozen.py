"""The one way to copy a model and to freeze it, for all teachers."""
import copy
from typing import List, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

RANDOM = 'dropout', 'droppath', 'dropblock', 'stochasticdepth'
"""What the names of classes have in them that draw random numbers in train mode."""


class _DetachingCopies(TorchFunctionMode):
    """Lets a deep copy copy the value of a tensor that is part of a graph.

    Some heads keep tensors of a forward pass on themselves (CondInst and YOLACT do); PyTorch
    refuses to deep-copy these.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))


def freeze(model: nn.Module) -> nn.Module:
    """Put a model into eval mode, without gradients; in place.

    Returns:
        nn.Module: The model itself (``eval()`` of some detectors returns None).
    """
    for module in model.modules():
        module.training = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in eval mode, without gradients. The model is not changed.

    A forward that was patched on an instance (activation checkpointing) is left out of the copy: it
    would run the original's layers. One that is a method of the module stays: it is the copy's.
    """
    with _DetachingCopies():
        duplicate = copy.deepcopy(model)
    for module in duplicate.modules():
        if getattr(vars(module).get('forward'), '__self__', None) is not module:
            vars(module).pop('forward', None)
    return freeze(duplicate)


class FollowedModes:
    """Lets a frozen copy see a batch in the way the model does that it is a copy of.

    Each module is in train mode exactly where its original is: a normalisation layer uses the
    statistics of the batch where that does, and a module that does something else in training
    (GA-RetinaNet's masked convolutions, TridentNet's branches, SOLO's maps) does the same thing.
    What is random stays in eval mode: dropout and drop path. Running statistics never move.

    Args:
        original (nn.Module): Whose modes are followed.
        duplicate (nn.Module): A copy of it, or of a part of it with the same modules.
    """

    def __init__(self, original: nn.Module, duplicate: nn.Module):
        self._pairs: List[Tuple[nn.Module, nn.Module]] = []
        for theirs, mine in zip(original.modules(), duplicate.modules()):
            if hasattr(mine, 'track_running_stats'):
                mine.track_running_stats = False
            if not is_random(mine):
                self._pairs.append((theirs, mine))

    def apply(self) -> None:
        """Follow the modes of this moment."""
        for theirs, mine in self._pairs:
            mine.training = theirs.training


class FixedModes:
    """Lets a teacher that does not change answer in the form in which the student is asked.

    Its norm layers use running statistics and what is random is off, always: nothing feeds back
    into it. But a module that returns something else in training (SOLO's head suppresses scores
    otherwise) is in train mode where the student is.

    Args:
        teacher (nn.Module): A frozen model.
    """

    def __init__(self, teacher: nn.Module):
        self._modules = [module for module in teacher.modules() if module is not teacher
                         and not hasattr(module, 'track_running_stats') and not is_random(module)]

    def apply(self, training: bool) -> None:
        """As the student is at this moment."""
        for module in self._modules:
            module.training = training


def is_random(module: nn.Module) -> bool:
    """Whether a module draws random numbers in train mode.

    Dropout, drop path (torchvision calls it stochastic depth) and attention with dropout.
    """
    kinds = [kind.__name__.lower() for kind in type(module).__mro__]
    return isinstance(module, (_DropoutNd, nn.MultiheadAttention, nn.RReLU)) or any(
        word in kind for kind in kinds for word in RANDOM)


def named_tensors(model: nn.Module):
    """Parameters and buffers (persistent or not) with their names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def device_of(model: nn.Module) -> torch.device:
    """Where a model's tensors are; the CPU if it has none."""
    return next((tensor.device for _, tensor in named_tensors(model)), torch.device('cpu'))
