"""Which heads of a model are taught."""
from typing import Dict, List, Optional, Sequence

from torch import nn

from mmskd.errors import UsageError

from .adapter import HeadAdapter, adapter_of, derives_from, require_teachable_model

# Where MMDetection keeps the heads that name an object's class, and MMPose the one that places
# keypoints (first the one within a head that also predicts their visibility).
PLACES = ('bbox_head', 'roi_head.bbox_head', 'mask_head', 'panoptic_head', 'head.pose_head', 'head')


def choose_heads(model: nn.Module, names: Optional[Sequence[str]] = None) -> List[HeadAdapter]:
    """The heads of a model that a teacher can teach.

    Args:
        model (nn.Module): An mmdet detector, a top-down mmpose estimator, or a classifier with a
            ``head``.
        names (sequence[str], optional): The heads by name; that of a cascade stands for all its
            stages. Defaults to None: those that name the class of an object (not the RPN), or place
            keypoints.

    Raises:
        UsageError: If there is no such head, or the model cannot be taught.
    """
    require_teachable_model(model)
    modules = dict(model.named_modules())
    groups = [[adapter_of(name, modules[name])
               for name in members(modules, place)]
              for place in names or PLACES]
    if names is None:
        found = sum(groups, [])
        chosen = [head for head in found if _has_target(head)] or found[:1]
    else:
        missing = [name for name, group in zip(names, groups) if not group]
        if missing:
            raise UsageError(_no_head(model, missing))
        chosen = sum(groups, [])
    if not chosen:
        raise UsageError(_no_head(model, PLACES))
    for head in chosen:
        obstacle = head.obstacle(model)
        if obstacle:
            raise UsageError(f'{head} cannot be taught: {obstacle}')
    return chosen


def members(modules: Dict[str, nn.Module], name: str) -> List[str]:
    """The module of this name, or the items if it is a list of modules (a cascade's stages)."""
    module = modules.get(name)
    if isinstance(module, nn.ModuleList):
        return [f'{name}.{index}' for index in range(len(module))]
    return [] if module is None else [name]


def stage_weight(model: nn.Module, name: str) -> float:
    """What a cascade multiplies the losses of a head by, e.g. of 'roi_head.bbox_head.1'.

    1 for others.
    """
    place, _, stage = name.rpartition('.')
    in_cascade = place.startswith('roi_head.') and stage.isdigit()
    return model.roi_head.stage_loss_weights[int(stage)] if in_cascade else 1.


def is_pose_estimator(model: nn.Module) -> bool:
    """Whether it is a model of MMPose."""
    return derives_from(model, 'BasePoseEstimator')


def is_detector(model: nn.Module) -> bool:
    """Whether it is a model of MMDetection."""
    return derives_from(model, 'BaseDetector')


def _has_target(head: HeadAdapter) -> bool:
    return bool(head.refusal or head.target_losses() or head.loss_functions())


def _no_head(model: nn.Module, missing: Sequence[str]) -> str:
    heads = [adapter_of(name, module) for name, module in model.named_modules() if name]
    there = ', '.join(sorted(head.name for head in heads if _has_target(head) and not head.refusal
                             and not head.obstacle(model))) or 'none'
    return (
        f'{type(model).__name__} has no head {" or ".join(missing)}; those with a loss_cls or '
        f'loss_module are: {there}. Choose with the option `heads`; a classifier that computes its '
        'loss itself is taught by PSKDHook and NKDHook, with their option `loss_module`.')
