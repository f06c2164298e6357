"""Can scores be taken at their word? Measures, calibrators, metrics and the report."""
from .calibrated_samples import calibrate_sample
from .calibrators import Calibrator, fit_calibrator
from .detection import DetectionCalibration, DetectionRule, detection_calibration
from .metrics import *  # noqa: F401,F403

__all__ = ['Calibrator', 'DetectionCalibration', 'DetectionRule', 'calibrate_sample',
           'detection_calibration', 'fit_calibrator']
