"""Classifiers: any module that computes a classification loss from logits and labels."""
from typing import Dict, List

from torch import nn

from mmskd.errors import UsageError

from ..losses.softmax_call import is_softmax_loss
from .adapter import HeadAdapter, derives_from


class ClassifierAdapter(HeadAdapter):
    """Its logits go to the loss as they are, so the teacher's answer joins them there.

    Args:
        name (str): Of the module that has the loss.
        head (nn.Module): That module.
        key (str): The loss module's name in it.
    """

    way_out = 'name another loss in the option `loss_module`'

    def __init__(self, name: str, head: nn.Module, key: str):
        super().__init__(name, head)
        self._key = key
        if derives_from(head, 'ArcFaceClsHead'):
            self.refusal = (
                'what it compares with the labels has a margin of the right class, which '
                'what a teacher answers has not')

    def __str__(self) -> str:
        return f'model.{self.name}.{self._key}' if self.name else f'model.{self._key}'

    @property
    def config_key(self) -> str:
        return str(self)

    def advice(self, loss: nn.Module, counterparts: List[str]) -> str:
        return (
            f"Make {self} one of {', '.join(counterparts)} (with a softmax), register a soft form "
            'of it (mmskd.models.losses.register_soft_loss), or name another loss in `loss_module`.'
        )

    def target_losses(self) -> Dict[str, nn.Module]:
        return {self._key: self.head.get_submodule(self._key)}


def classifier_head(model: nn.Module, loss_module: str,
                    option: str = 'loss_module') -> ClassifierAdapter:
    """The part of a model that computes its classification loss, by the name of the loss.

    Args:
        model (nn.Module): Any model.
        loss_module (str): Name of a module.
        option (str): Where the name comes from. Defaults to 'loss_module'.

    Raises:
        UsageError: If there is none of this name, or it is a loss of sigmoids.
    """
    loss = find_module(model, loss_module, option)
    if not is_softmax_loss(loss):
        raise UsageError(
            f'model.{loss_module} ({type(loss).__name__}) is a sigmoid loss. NKD, USKD and '
            f'PS-KD take the classes of a softmax; name a softmax loss in `{option}`.')
    parent, _, key = loss_module.rpartition('.')
    return ClassifierAdapter(parent, model.get_submodule(parent), key)


def find_module(model: nn.Module, name: str, option: str) -> nn.Module:
    """A module of a model by the name that an option gives.

    Raises:
        UsageError: If there is none; says which there are.
    """
    modules = dict(model.named_modules())
    if not name or name not in modules:
        parent = name.rpartition('.')[0]
        parent = parent if parent in modules else ''
        known = ', '.join(child for child, _ in modules[parent].named_children())
        raise UsageError(
            f'{type(model).__name__} has no module {name!r}. Choose another `{option}`; '
            f'{"model." + parent if parent else "the model"} has: {known}')
    return modules[name]
