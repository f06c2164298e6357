"""DWPose's second stage: what a trained head teaches a head of its kind on the same features.

One file per kind of model: ``pose`` for pose estimators, ``detector`` for detectors, whose terms
are in ``dense`` (one-stage heads) and ``roi`` (box and mask heads of two-stage models).
"""
from typing import List, Optional, Sequence, Union

from torch import nn

from mmskd.errors import UsageError

from ..heads import HeadAdapter, TaughtHead, choose_heads, is_pose_estimator
from .detector import DetectorDistiller, detector_heads
from .pose import PoseDistiller

Distiller = Union[PoseDistiller, DetectorDistiller]


def heads_to_distill(model: nn.Module, names: Optional[Sequence[str]] = None) -> List[HeadAdapter]:
    """The heads that a trained model of the same config can teach.

    Args:
        model (nn.Module): A top-down pose estimator of mmpose, or a detector of mmdet. Not changed.
        names (sequence[str], optional): Those to choose; the name of a cascade's heads stands for
            all its stages. Defaults to None: all that there are, that is, not the RPN.

    Raises:
        UsageError: If a head is not there or not supported; names it and the reason.
    """
    pose = is_pose_estimator(model)
    heads = choose_heads(model, names) if pose else detector_heads(model, names)
    for head in heads:
        if pose:
            TaughtHead(head).remove()  # refuses a head that cannot be taught
        if head.untaught:
            raise UsageError(f'{head} cannot start anew: nothing would teach {head.untaught}')
        if not any(True for _ in head.head.parameters()):
            raise UsageError(
                f'{head} has no parameters that could start anew: the predictions are made by '
                'the backbone, which this stage freezes. Teach it with DistillHook.')
    return heads


def distil(model: nn.Module, trained: nn.Module, heads: Sequence[HeadAdapter], gamma: float,
           gt_weight: float, precision: Optional[str] = None) -> Distiller:
    """Let heads of a model learn from those of a trained one.

    Args:
        model (nn.Module): The student.
        trained (nn.Module): The teacher, frozen; only what comes after its backbone and neck is
            used.
        heads (sequence[HeadAdapter]): As :func:`heads_to_distill` returned.
        gamma (float): Factor of the distillation.
        gt_weight (float): Factor of the heads' own losses.
        precision (str, optional): In which trained heads of a detector are asked, see
            :class:`~mmskd.models.teachers.compiled.CompiledTeacher`. Defaults to None: that of the
            model, in which those of a pose estimator, which cost next to nothing, are asked anyway.
    """
    if is_pose_estimator(model):
        return PoseDistiller(model, trained, heads, gamma, gt_weight)
    return DetectorDistiller(model, trained, heads, gamma, gt_weight, precision)
