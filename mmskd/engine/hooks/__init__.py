"""Hooks: when a teacher is refreshed, saved and asked, what makes a resume exact, and pictures."""
from .calibrated_scores import CalibratedScores
from .calibration_picture_hook import CalibrationPictureHook
from .distill_hook import DistillHook
from .finite_weights_hook import FiniteWeightsHook
from .head_distill_hook import HeadDistillHook
from .nkd_hook import NKDHook
from .profile_hook import ProfileHook
from .pskd_hook import PSKDHook
from .random_streams_hook import RandomStreamsHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .teaching_hook import TeachingHook
from .uskd_hook import USKDHook

__all__ = [
    'CalibratedScores', 'CalibrationPictureHook', 'DistillHook', 'FiniteWeightsHook',
    'HeadDistillHook', 'NKDHook', 'ProfileHook', 'PSKDHook', 'RandomStreamsHook',
    'SafeCheckpointHook', 'TeachingHook', 'USKDHook'
]
