"""Applies a calibrator to what a model predicts."""
import logging
from typing import Any, Optional

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from mmskd.errors import UsageError
from mmskd.evaluation.calibrated_samples import calibrate_sample
from mmskd.evaluation.calibrators import Calibrator
from mmskd.evaluation.ground_truth import image_files, label_names
from mmskd.evaluation.held_out import image_keys
from mmskd.registry import HOOKS


@HOOKS.register_module()
class CalibratedScores(Hook):
    """Maps the scores of a detector or a top-down pose estimator, in tests and at inference.

    The checkpoint stays the stock model's.

    In a config, for ``tools/test.py`` (of mmskd, MMDetection and MMPose; metrics and dumps see the
    mapped scores; training and its validations, whose model is another, do not)::

        custom_hooks = [dict(type='mmskd.CalibratedScores', calibrator='calibrator.json')]

    and with a model at hand::

        model = init_detector(config, checkpoint)
        CalibratedScores('calibrator.json').attach(model)
        inference_detector(model, image)

    Maps rise with the score: the detections of a class keep their order, and AP stays. Detections
    below the model's ``score_thr`` are gone before. With test-time augmentation each view is mapped
    before they are merged. A keypoint score counts into the instance's score in MMPose's
    ``CocoMetric``, so that AP of poses may change.

    Args:
        calibrator (str): A json file that ``tools/analysis/calibrate.py`` wrote.

    Raises:
        UsageError: If there is no such file, or it is no calibrator; before the test, if it is of
            other classes (keypoints) than the data set has.
    """

    def __init__(self, calibrator: str) -> None:
        try:
            self.calibrator = Calibrator.load(calibrator)
        except FileNotFoundError:
            raise UsageError(f'CalibratedScores: there is no calibrator {calibrator}') from None
        self._path = calibrator
        self._handle: Optional[Any] = None

    def attach(self, model: nn.Module) -> None:
        """Map the scores of all that the model predicts from now on."""
        self.detach()
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        self._handle = model.register_forward_hook(self._map, with_kwargs=True)

    def detach(self) -> None:
        """Leave the scores alone again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def before_test(self, runner) -> None:
        """Check that the calibrator is for these classes, and attach it."""
        self._check(runner.test_dataloader.dataset)
        self.attach(runner.model)

    def after_test(self, runner) -> None:
        """Detach it."""
        self.detach()

    def _check(self, dataset) -> None:
        if self.calibrator.task == 'pose':
            names = [name for _, name in sorted(dataset.metainfo.get(
                'keypoint_id2name', {}).items())]
        else:
            names = label_names(dataset)
        if names != self.calibrator.classes:
            raise UsageError(f'CalibratedScores: {self._path} is of the '
                             f'{"keypoints" if self.calibrator.task == "pose" else "classes"} '
                             f'{self.calibrator.classes}, but the test data set has {names}')
        shared = set(self.calibrator.images) & set(image_keys(image_files(dataset)))
        if shared:
            print_log(f'CalibratedScores: {self._path} was fitted on {len(shared)} of the images '
                      'that are tested; what is measured of its scores flatters it', 'current',
                      logging.WARNING)

    def _map(self, model, args, kwargs, outputs) -> None:
        mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
        if mode == 'predict':
            for sample in outputs:
                calibrate_sample(sample, self.calibrator)
