"""DWPose's second stage: what a trained head teaches a head of its kind on the same features.

One file per kind of model: ``pose`` for pose estimators, ``detector`` for detectors, whose terms are in
``dense`` (one-stage heads) and ``roi`` (box and mask heads of two-stage models).
"""
from typing import List, Optional, Sequence, Union

from torch import nn

from ..soft_heads import is_pose_estimator
from .detector import DetectorDistiller, detector_heads
from .pose import PoseDistiller, pose_heads

Distiller = Union[PoseDistiller, DetectorDistiller]


def heads_to_distill(model: nn.Module, names: Optional[Sequence[str]] = None) -> List[str]:
    """The heads that a trained model of the same config can teach.

    Args:
        model (nn.Module): A top-down pose estimator of mmpose, or a detector of mmdet. Not changed.
        names (sequence[str], optional): Those to choose; the name of a cascade's heads stands for all its
            stages. Defaults to None: all that there are, that is, not the RPN.

    Raises:
        ValueError: If a head is not there or not supported; names it and the reason.
    """
    return (pose_heads if is_pose_estimator(model) else detector_heads)(model, names)


def distil(model: nn.Module, trained: nn.Module, heads: Sequence[str], gamma: float,
           gt_weight: float) -> Distiller:
    """Let heads of a model learn from those of a trained one.

    Args:
        model (nn.Module): The student.
        trained (nn.Module): The teacher, frozen; only what comes after its backbone and neck is used.
        heads (sequence[str]): As :func:`heads_to_distill` returned.
        gamma (float): Factor of the distillation.
        gt_weight (float): Factor of the heads' own losses.
    """
    distiller = PoseDistiller if is_pose_estimator(model) else DetectorDistiller
    return distiller(model, trained, heads, gamma, gt_weight)
