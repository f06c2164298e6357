"""Where a teacher's prediction comes from, and how it gets to the student's losses."""
from typing import Sequence, Union

from torch import nn

from ..heads import TaughtHead, is_detector, is_pose_estimator
from .frozen import FixedModes, FollowedModes, freeze, frozen_copy
from .hf_pose import HFPoseTeacher
from .mirror import Mirror
from .onnx_pose import OnnxPoseTeacher
from .output_mirror import OutputMirror, classifier_mirror, pose_mirror, shared_features_mirror
from .past_self import PastSelf
from .pose_teacher import PoseTeacher
from .rtmo_mirror import RTMOMirror

__all__ = [
    'FixedModes', 'FollowedModes', 'HFPoseTeacher', 'Mirror', 'OnnxPoseTeacher', 'OutputMirror',
    'PastSelf', 'PoseTeacher', 'RTMOMirror', 'classifier_mirror', 'freeze', 'frozen_copy',
    'mirror_of', 'pose_mirror', 'shared_features_mirror'
]


def mirror_of(model: nn.Module, heads: Sequence[TaughtHead]) -> Union[Mirror, OutputMirror]:
    """What brings a teacher's predictions to the losses of these heads of a model."""
    if is_detector(model):
        return Mirror(model, heads)
    if any(head.adapter.at_places for head in heads):
        return RTMOMirror(model, heads)
    return (pose_mirror if is_pose_estimator(model) else classifier_mirror)(model, heads)
