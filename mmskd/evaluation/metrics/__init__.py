"""The measures as metrics of MMEngine's evaluator."""
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

__all__ = []

if HAS_MMDET:
    from .det_calibration import DetCalibrationMetric
    __all__ += ['DetCalibrationMetric']
if HAS_MMPOSE:
    from .pose_calibration import PoseCalibrationMetric
    __all__ += ['PoseCalibrationMetric']
