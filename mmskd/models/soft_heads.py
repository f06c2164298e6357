"""Which heads of a model have a target that can be softened, and by which loss."""
from typing import Callable, Dict, List, Optional, Sequence, Union

import torch.nn.functional as F
from torch import nn

from .losses import COUNTERPARTS, SoftTargetLoss
from .teachers.mirror import Mirror, members
from .teachers.pose_mirror import PoseMirror

# Where MMDetection keeps the heads that name an object's class, and MMPose the one that places keypoints.
HEADS = ('bbox_head', 'roi_head.bbox_head', 'head')

COORDINATES = ('it predicts coordinates, and a target between two places is a third place, not a softer '
               'target; SimCC and heatmap heads predict distributions')
ONE_STAGE = ('it finds the people and their keypoints in one stage, by regression from places that it '
             'assigns anew in each step; SimCC and heatmap heads of top-down models predict distributions')

# Heads, with those that derive from them, whose targets cannot be softened.
REFUSED = {
    'FreeAnchorRetinaHead': 'its loss is that of a bag of anchors, which has no target per anchor',
    **dict.fromkeys(('RegressionHead', 'RLEHead', 'IntegralRegressionHead', 'MotionRegressionHead',
                     'TemporalRegressionHead', 'TrajectoryRegressionHead'), COORDINATES),
    **dict.fromkeys(('YOLOXPoseHead', 'DEKRHead', 'CIDHead', 'EDPoseHead'), ONE_STAGE),
}


class SoftHead:
    """A head whose losses accept a soft target while this object holds on to it.

    Stock losses change their class to the drop-in counterpart in place (and back in :meth:`undo`), so that
    the head, its hooks and its state dict stay as they are.

    Args:
        name (str): The head's name in the model, e.g. 'roi_head.bbox_head.0'.
        head (nn.Module): The head.
        weight (float): What the model multiplies its losses by. Defaults to 1.

    Attributes:
        losses (list[SoftTargetLoss]): Its losses with a soft target: those of the classes, or those
            of the keypoints.
        overrides (dict): Torch functions that this head calls in place of a loss module, and what to
            call instead.

    Raises:
        ValueError: If the head or its loss cannot take a soft target; names both and says what to do.
    """

    def __init__(self, name: str, head: nn.Module, weight: float = 1.):
        self.name = name
        self.head = head
        self.weight = weight
        self.kind = type(head).__name__
        self.overrides: Dict[Callable, Callable] = {}
        self._stock_classes: Dict[nn.Module, type] = {}
        self._refuse_known()
        found = _target_losses(head)
        if found:
            self._require_counterparts(found)
            self.losses = [self._soften(loss) for loss in found.values()]
        elif 'SSDHead' in _class_names(head):
            from .losses import PSKDCrossEntropyLoss
            self.losses = [PSKDCrossEntropyLoss()]
            self.overrides[F.cross_entropy] = _as_function(self.losses[0])
        else:
            raise ValueError(f'{self}: it has no loss_cls or loss_module whose target could be '
                             'softened. Name the heads that have one in the option `heads`.')

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
        for name in _class_names(self.head):
            if name in REFUSED:
                raise ValueError(f'{self} cannot take soft targets: {REFUSED[name]}. Train it without '
                                 'a teacher, or leave it out with the option `heads`.')

    def _loss_names(self) -> str:
        return ' or '.join(sorted({type(loss).__name__ for loss in self.losses}))


def soften_heads(model: nn.Module, names: Optional[Sequence[str]] = None) -> List[SoftHead]:
    """Make the heads of a detector or pose estimator accept soft targets.

    Args:
        model (nn.Module): An mmdet detector or a top-down mmpose estimator.
        names (sequence[str], optional): The heads by name; that of a cascade stands for all its stages.
            Defaults to None: ``bbox_head``, ``roi_head.bbox_head`` and ``head``, that is, not the RPN.

    Returns:
        list[SoftHead]: To be given back with ``undo()``.

    Raises:
        ValueError: If there is no such head, or one cannot take a soft target. The model is then as
            it was before.
    """
    modules = dict(model.named_modules())
    wanted = HEADS if names is None else names
    found = {name: members(modules, name) for name in wanted}
    missing = [name for name in (names or ()) if not found[name]]
    chosen = [name for group in found.values() for name in group]
    if missing or not chosen:
        candidates = sorted({name.rpartition('.')[0] for name in modules
                             if name.endswith(('loss_cls', 'loss_module'))})
        raise ValueError(f'{type(model).__name__} has no head '
                         f'{" or ".join(missing or wanted)}; those with a loss_cls or loss_module '
                         f'are: {", ".join(candidates) or "none"}. Choose with the option `heads`.')
    softened: List[SoftHead] = []
    try:
        for name in chosen:
            softened.append(SoftHead(name, modules[name], stage_weight(model, name)))
    except ValueError:
        for head in softened:
            head.undo()
        raise
    return softened


def stage_weight(model: nn.Module, name: str) -> float:
    """What a cascade multiplies the losses of a head by, e.g. of 'roi_head.bbox_head.1'; 1 for others."""
    stage = name.rpartition('.')[2]
    return model.roi_head.stage_loss_weights[int(stage)] if stage.isdigit() else 1.


def is_pose_estimator(model: nn.Module) -> bool:
    """Whether it is a model of MMPose, with one ``head``, and not a detector."""
    return hasattr(model, 'head') and not hasattr(model, 'bbox_head')


def mirror_of(model: nn.Module, heads: Sequence[SoftHead]) -> Union[Mirror, PoseMirror]:
    """What brings a teacher's predictions to the losses of these heads of a model.

    Without heads it only takes the teacher as far as the features.
    """
    if is_pose_estimator(model):
        return PoseMirror(model, {head.name: head.losses for head in heads})
    return Mirror(model, {head.name: head.overrides for head in heads})


def _target_losses(head: nn.Module) -> Dict[str, nn.Module]:
    """The losses of a head by their config key: ``loss_cls`` and the like, or MMPose's ``loss_module``."""
    found = {key: loss for key, loss in head.named_children() if key.endswith('loss_cls')}
    modules = dict(head.named_modules())
    return found or {key: modules[key] for key in members(modules, 'loss_module')}


def _class_names(module: nn.Module) -> List[str]:
    return [cls.__name__ for cls in type(module).__mro__]


def _as_function(loss: SoftTargetLoss) -> Callable:
    """A loss module in place of ``torch.nn.functional.cross_entropy``, as SSD's head calls it."""

    def cross_entropy(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None,
                      reduction='mean', label_smoothing=0.0):
        if reduction != 'none' or label_smoothing or not weight is size_average is reduce is None:
            raise ValueError("a soft target for torch.nn.functional.cross_entropy: only reduction='none' is "
                             'supported, without weight and label_smoothing')
        return loss(input, target, reduction_override='none', ignore_index=ignore_index)

    return cross_entropy
