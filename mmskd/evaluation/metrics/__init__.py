from mmskd.optional import HAS_MMDET

__all__ = []

if HAS_MMDET:
    from .det_calibration import DetCalibrationMetric
    __all__ += ['DetCalibrationMetric']
