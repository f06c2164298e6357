"""Which heads of a model classify, and by which loss: where a soft target can be put in."""
from typing import Callable, Dict, List, Optional, Sequence

import torch.nn.functional as F
from torch import nn

from .losses.pskd_detection import COUNTERPARTS, PSKDCrossEntropyLoss
from .losses.soft_target import SoftTargetLoss
from .teachers.mirror import members

# Where MMDetection keeps the heads that name an object's class.
CLASS_HEADS = ('bbox_head', 'roi_head.bbox_head')

# Heads that have a class loss which no soft target of single predictions can replace.
REFUSED = {
    'FreeAnchorRetinaHead': 'its loss is that of a bag of anchors, which has no target per anchor',
}


class SoftHead:
    """A classification head whose losses accept a soft target while this object holds on to it.

    Stock losses change their class to the drop-in counterpart in place (and back in :meth:`undo`), so that
    the head, its hooks and its state dict stay as they are.

    Args:
        name (str): The head's name in the model, e.g. 'roi_head.bbox_head.0'.
        head (nn.Module): The head.

    Attributes:
        losses (list[SoftTargetLoss]): Its classification losses.
        overrides (dict): Torch functions that this head calls in place of a loss module, and what to
            call instead.

    Raises:
        ValueError: If the head or its loss cannot take a soft target; names both and says what to do.
    """

    def __init__(self, name: str, head: nn.Module):
        self.name = name
        self.kind = type(head).__name__
        self.overrides: Dict[Callable, Callable] = {}
        self._stock_classes: Dict[nn.Module, type] = {}
        self._refuse_known()
        found = {key: loss for key, loss in head.named_children() if key.endswith('loss_cls')}
        if found:
            self._require_counterparts(found)
            self.losses = [self._soften(loss) for loss in found.values()]
        elif any(cls.__name__ == 'SSDHead' for cls in type(head).__mro__):
            self.losses = [PSKDCrossEntropyLoss()]
            self.overrides[F.cross_entropy] = self.losses[0].cross_entropy
        else:
            raise ValueError(f'{self}: it has no loss_cls whose target could be softened. '
                             'Name the heads that have one in the option `heads`.')

    def __str__(self) -> str:
        return f'model.{self.name} ({self.kind})'

    def check_pairing(self) -> bool:
        """Whether the losses were called in the last forward pass; raise if one saw no teacher.

        Returns:
            bool: False if no loss was called: because there was nothing to classify (YOLOX has no class
            loss for images without objects), or because the head computes it in another way.

        Raises:
            RuntimeError: Names the head and the loss.
        """
        for loss in self.losses:
            if loss.num_paired < loss.num_calls:
                raise RuntimeError(
                    f'{self}: only {loss.num_paired} of {loss.num_calls} calls of '
                    f'{type(loss).__name__} got the past prediction along with the present one. The '
                    'head computes something between its class scores and its loss; leave it out '
                    'with the option `heads`.')
        return any(loss.num_calls for loss in self.losses)

    def refuse_idle(self) -> None:
        """Give up on a head that has not called its losses for a while.

        Raises:
            RuntimeError: Names the head and the loss.
        """
        raise RuntimeError(
            f'{self} never called {self._loss_names()}: it computes its class loss in another way, '
            'which PS-KD cannot reach. Leave this head out with the option `heads`.')

    def undo(self) -> None:
        """Give the stock losses back."""
        for loss in self.losses:
            for key in vars(SoftTargetLoss)['__annotations__']:
                vars(loss).pop(key, None)
        for loss, stock_class in self._stock_classes.items():
            loss.__class__ = stock_class

    def describe(self) -> str:
        """One line for the log: which loss takes soft targets, and what it replaces."""
        swaps = [f'{stock.__name__} -> {type(loss).__name__}'
                 for loss, stock in self._stock_classes.items()]
        return f'{self}: {", ".join(swaps) or self._loss_names()}'

    def _require_counterparts(self, losses: Dict[str, nn.Module]) -> None:
        for key, loss in losses.items():
            known = isinstance(loss, SoftTargetLoss) or type(loss) in COUNTERPARTS
            if not known or getattr(loss, 'use_mask', False):
                raise ValueError(
                    f'{self}: there is no soft-target counterpart of its {key}, '
                    f'{type(loss).__name__}. Set model.{self.name}.{key} to one of '
                    f'{", ".join(cls.__name__ for cls in COUNTERPARTS)}, or leave the head out with '
                    'the option `heads`.')

    def _soften(self, loss: nn.Module) -> SoftTargetLoss:
        if not isinstance(loss, SoftTargetLoss):
            self._stock_classes[loss] = type(loss)
            loss.__class__ = COUNTERPARTS[type(loss)]
        return loss

    def _refuse_known(self) -> None:
        if self.kind in REFUSED:
            raise ValueError(f'{self} cannot take soft targets: {REFUSED[self.kind]}. Train it '
                             'without PS-KD, or leave it out with the option `heads`.')

    def _loss_names(self) -> str:
        return ' or '.join(sorted({type(loss).__name__ for loss in self.losses}))


def soften_heads(model: nn.Module, names: Optional[Sequence[str]] = None) -> List[SoftHead]:
    """Make the classification heads of a detector accept soft targets.

    Args:
        model (nn.Module): An mmdet detector.
        names (sequence[str], optional): The heads by name; that of a cascade stands for all its stages.
            Defaults to None: ``bbox_head`` and ``roi_head.bbox_head``, that is, not the RPN.

    Returns:
        list[SoftHead]: To be given back with ``undo()``.

    Raises:
        ValueError: If there is no such head, or one cannot take a soft target. The model is then as
            it was before.
    """
    modules = dict(model.named_modules())
    wanted = CLASS_HEADS if names is None else names
    found = {name: members(modules, name) for name in wanted}
    missing = [name for name in (names or ()) if not found[name]]
    chosen = [name for group in found.values() for name in group]
    if missing or not chosen:
        candidates = sorted({name.rpartition('.')[0] for name in modules
                             if name.rpartition('.')[2].endswith('loss_cls')})
        raise ValueError(f'{type(model).__name__} has no classification head '
                         f'{" or ".join(missing or wanted)}; those with a loss_cls are: '
                         f'{", ".join(candidates) or "none"}. Choose with the option `heads`.')
    softened: List[SoftHead] = []
    try:
        for name in chosen:
            softened.append(SoftHead(name, modules[name]))
    except ValueError:
        for head in softened:
            head.undo()
        raise
    return softened
