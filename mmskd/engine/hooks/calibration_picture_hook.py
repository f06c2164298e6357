"""Pictures of a model's calibration and predictions while it trains."""
from typing import List, Optional, Sequence, Tuple

import numpy as np
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from mmskd.config import project_of
from mmskd.errors import UsageError
from mmskd.evaluation.calibration import ece
from mmskd.evaluation.report import pictures
from mmskd.evaluation.report.charts import chart as charts
from mmskd.evaluation.report.charts.reliability import reliability
from mmskd.evaluation.report.judging import Judged, judge
from mmskd.evaluation.report.predictions import Predictions, check_finite, collate, describe
from mmskd.evaluation.report.rules import rule_of
from mmskd.options import Options
from mmskd.registry import HOOKS


@HOOKS.register_module()
class CalibrationPictureHook(Hook):
    """After each validation draws a reliability diagram and a few predictions.

    They go to the runner's visualizer under the names ``reliability`` and ``predictions``, and so
    to whatever backends that has: the work dir, TensorBoard, WandB. Detectors and top-down pose
    estimators. The training is not touched: the same weights come out with and without it. In a
    distributed run each rank collects what it predicts, and the first one draws. With EMAHook the
    averaged weights are validated, so theirs are the pictures.

    What is right is decided as in ``DetCalibrationMetric`` and ``PCKAccuracy``, with the settings
    of those among the config's ``val_evaluator``. A model that predicts what is not a number is not
    drawn; a warning says so.

    Args:
        num_images (int): Validation images to draw, the same each time: the first ones with
            objects. Defaults to 4.
        score_thr (float): Detections below it are not drawn into them. Defaults to 0.3.

    Raises:
        ValueError: If an argument is out of range; before the training, if a setting of an
            evaluator is, or if the validation images come in no fixed order.
    """

    priority = 'LOW'

    def __init__(self, num_images: int = 4, score_thr: float = 0.3):
        options = Options('CalibrationPictureHook')
        self.num_images = options.whole('num_images', num_images, least=1)
        self.score_thr = options.number('score_thr', score_thr, least=0, most=1)
        self._train_loop = None
        self._records: List[dict] = []

    def before_run(self, runner) -> None:
        """Read the config."""
        self._task = 'pose' if project_of(runner.cfg) == 'mmpose' else 'detection'
        self._rule = rule_of(runner.cfg)
        sampler = (runner.cfg.get('val_dataloader') or {}).get('sampler') or {}
        if sampler.get('shuffle'):
            raise UsageError('CalibrationPictureHook needs val_dataloader.sampler.shuffle=False: '
                             'it tells images apart by their order')

    def before_train(self, runner) -> None:
        """Remember what counts the steps; a validation alone is at step 0."""
        self._train_loop = runner.train_loop

    def before_val_epoch(self, runner) -> None:
        """Begin anew."""
        self._records = []

    def after_val_iter(self, runner, batch_idx: int, data_batch=None,
                       outputs: Optional[Sequence] = None) -> None:
        """Keep what was predicted."""
        self._records += [describe(self._task, sample) for sample in outputs]

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Draw."""
        dataset = runner.val_dataloader.dataset
        records = collect_results(self._records, len(dataset), 'cpu')
        self._records = []
        if not is_main_process() or not records:
            return
        predictions = collate(self._task, records, dataset)
        try:
            check_finite(predictions)
            judged = judge(predictions, self._rule)
        except UsageError as error:
            runner.logger.warning(f'CalibrationPictureHook draws nothing: {error}')
            return
        unit, step = self._step()
        for name, image in (('reliability', self._draw_reliability(f'{unit} {step}', judged)),
                            ('predictions', self._draw_predictions(predictions, judged))):
            if image is not None:
                runner.visualizer.add_image(name, image, step=step)

    def _step(self) -> Tuple[str, int]:
        """How long has been trained; counted as LoggerHook counts validations."""
        if isinstance(self._train_loop, IterBasedTrainLoop):
            return 'iteration', self._train_loop.iter
        return 'epoch', self._train_loop.epoch if self._train_loop else 0

    def _draw_predictions(self, predictions: Predictions, judged: Judged) -> Optional[np.ndarray]:
        """The first images with objects, and their ground truth; None if none can be shown."""
        rows = []
        if self._task == 'detection':
            judged = judged.above(self.score_thr)
        for i in np.unique(judged.object_images)[:self.num_images]:
            image = pictures.load_image(str(predictions.image_paths[i]))
            if image is not None:
                found = pictures.counts(judged, i, self._task)
                rows.append((image, [('ground truth', pictures.Scene(predictions, None, i)),
                                     (found, pictures.Scene(predictions, judged, i))]))
        return charts.to_array(pictures.montage(rows)) if rows else None

    def _draw_reliability(self, title: str, judged: Judged) -> np.ndarray:
        if self._task == 'detection':
            judged = judged.above(self._rule.score_thr)
        scores, hits, n_bins = judged.probabilities, judged.hits, self._rule.n_bins
        chart = reliability('reliability', title, scores, hits, n_bins=n_bins,
                            error=ece(scores, hits, n_bins))
        with charts.drawn(chart) as figure:
            return charts.to_array(figure)
