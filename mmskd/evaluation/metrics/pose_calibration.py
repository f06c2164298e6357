"""How far the keypoint scores of a pose estimator can be trusted."""
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from mmskd.errors import UsageError
from mmskd.options import Options
from mmskd.registry import METRICS

from ..calibration import mean_of_defined
from ..calibrators import Calibrator, fit_calibrator
from ..ground_truth import image_files
from ..held_out import image_keys
from ..pose import (
    THRESHOLDS,
    Keypoints,
    PoseRule,
    clipped_share,
    judge_keypoints,
    mapped_nll,
    pose_intervals,
    pose_measures,
)
from .samples import check_same_calibrator


class GatheredKeypoints(NamedTuple):
    """The keypoints of N instances, and whose they are.

    Attributes:
        keypoints (Keypoints): N instances of K keypoints.
        names (list[str]): Of the keypoints.
        files (list[str]): Image of each instance, N names.
    """
    keypoints: Keypoints
    names: List[str]
    files: List[str]

    def select(self, keep: np.ndarray) -> 'GatheredKeypoints':
        """Only the instances of a mask."""
        kept = Keypoints(*(values[keep] for values in self.keypoints))
        images = np.unique(kept.images, return_inverse=True)[1].reshape(-1)
        return GatheredKeypoints(kept._replace(images=images), self.names,
                                 [file for file, one in zip(self.files, keep) if one])


@METRICS.register_module()
class PoseCalibrationMetric(BaseMetric):
    """Calibration of a top-down pose estimator: does a keypoint with score p hit with chance p?

    Every annotated keypoint of every instance is one prediction, which hits or misses. Annotated is
    what mmpose's data sets mark visible: seen or occluded, COCO's v > 0. All other keypoints are
    left out, however high they score, as they are in mmpose's metrics.

    What mmpose calls a score is the maximum of a heatmap, or for SimCC the lower of the two axes'
    maxima. Nothing keeps either in [0, 1]: a heatmap is regressed, so that its maximum strays a
    little below 0 or above 1 (MegviiHeatmap: from about 0.5 to 1.5), and SimCC's outputs go into a
    softmax, to which only their differences matter. (Regression heads: 1 minus the deviation that
    RLE predicts, else always 1.) So there is no true probability to go back to. Without a
    ``calibrator`` this takes the score for one as every user of a threshold does, clipped to
    [0, 1], and tells as ``clipped`` which share of the scores that changed; where it is large, the
    scores say little more than yes. With one, the scores are what it makes of them, and nothing is
    clipped. ``AURC``, ``EAURC`` and ``NLL_mapped`` see the scores unclipped anyway. A score or a
    keypoint that is not finite is an error.

    The formulas, with their papers, are in :mod:`mmskd.evaluation.calibration`; lower is better for
    all errors. Keys, under the prefix ``calibration``:

    - over all keypoints together: ``NLL`` (nats), ``ECE``, ``overconfidence``, ``Brier``, ``AURC``,
      ``EAURC``;
      ``NLL_mapped``, which needs no clipping: each half of the images under Platt's map of the
      scores, fitted on the other half; ``clipped``, and the number of ``keypoints``;
    - the mean over the keypoints of a body, of those that are annotated anywhere: ``mean_{key}``;
    - with ``per_keypoint``, each of these per keypoint as ``{keypoint name}_{key}``; with
      ``bootstrap`` the ends of intervals over images as ``{key}_low`` and ``{key}_high``.

    An undefined value is nan: the ECE of a keypoint that is annotated nowhere.

    Use it beside mmpose's own metric, or on a file that ``tools/test.py --dump`` wrote::

        val_evaluator = [
            dict(type='PCKAccuracy', thr=0.05),
            dict(type='mmskd.PoseCalibrationMetric', thr=0.05)]

    Args:
        hit (str): ``'pck'``: a hit is nearer than ``thr`` times a reference size, as in mmpose's
            PCKAccuracy. ``'oks'``: a hit has a term exp(-d^2 / (2 s^2 k^2)) of the OKS of at least
            ``thr``, with the deviations (``sigmas``) of the data set and the area of the
            annotation (without one, 0.53 times that of its box, as in mmpose). An instance whose
            size or area is 0 does not count. Defaults to 'pck'.
        thr (float, optional): Where a hit begins. Defaults to None, for 0.05 (PCK) or 0.5 (OKS).
        norm_item (str): The reference size of PCK: ``'bbox'``, the longer side of the box;
            ``'head'``, the data set's ``head_size`` (PCKh); ``'torso'``, the distance between
            keypoints 4 and 5, which is JHMDB's (tPCK). Not read for OKS. Defaults to 'bbox'.
        n_bins (int): Score bins of ``ECE``. Defaults to 25.
        per_keypoint (bool): Whether to report each keypoint as well. Defaults to False.
        bootstrap (int): How often images are drawn for the intervals. Defaults to 0, no intervals.
        calibrator (str, optional): A json file of ``tools/analysis/calibrate.py``: measure the
            scores as it maps them. (``mmskd.CalibratedScores`` changes the predictions themselves.)
            Defaults to None.
        collect_device (str): Where results of several processes are collected, 'cpu' or 'gpu'.
            Defaults to 'cpu'.
        prefix (str, optional): Prefix of the keys. Defaults to None, for ``calibration``.

    Raises:
        ValueError: If ``hit`` or ``norm_item`` is none of the above; if ``thr`` is not above 0 (for
            OKS: and at most 1), or another number is out of range; if a sample lacks what is
            needed, or does not hold one prediction and one annotation of the same keypoints, as of
            a bottom-up model; if a score or keypoint is not finite; if a data set read with
            ``bbox_file`` has no annotations; if the calibrator is of other keypoints, or scores
            were mapped already.
    """
    default_prefix = 'calibration'

    def __init__(self,
                 hit: str = 'pck',
                 thr: Optional[float] = None,
                 norm_item: str = 'bbox',
                 n_bins: int = 25,
                 per_keypoint: bool = False,
                 bootstrap: int = 0,
                 calibrator: Optional[str] = None,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        options = Options('PoseCalibrationMetric')
        thr = THRESHOLDS['oks' if hit == 'oks' else 'pck'] if thr is None else thr
        self.rule = PoseRule(hit, thr, norm_item, n_bins).checked('PoseCalibrationMetric')
        self.per_keypoint = options.flag('per_keypoint', per_keypoint)
        self.bootstrap = options.whole('bootstrap', bootstrap, least=0)
        options.text('calibrator', calibrator, optional=True)
        self.calibrator = None if calibrator is None else Calibrator.load(calibrator)
        _require(self.calibrator is None or self.calibrator.task == 'pose',
                 'calibrator is of a detector')

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep of each instance, per keypoint, its score, whether it hits, and whether it counts.

        Each is an array of shape (K,).
        """
        for sample in data_samples:
            predicted, scores, annotated, visible = _keypoints(sample)
            if self.rule.hit == 'oks':
                size, sigmas = _area(sample), self._sigmas(len(scores))
            else:
                size, sigmas = _reference_size(
                    self.rule.norm_item, sample, predicted, annotated), None
            try:
                hits, counts = judge_keypoints(predicted[None], annotated[None], visible[None],
                                               [size], self.rule, sigmas)
            except ValueError as error:
                raise UsageError(f'PoseCalibrationMetric: image {sample.get("img_id")}: '
                                 f'{error}') from error
            self.results.append(dict(
                scores=scores, hits=hits[0], counts=counts[0],
                image=str(sample.get('img_path') or sample.get('img_id')),
                calibrator=sample.get('calibrator')))

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Apply the formulas to all keypoints together and to each."""
        return self.values(self.gather(results),
                           check_same_calibrator(results, type(self).__name__))

    def values(self, gathered: GatheredKeypoints, mapped_by: Optional[str] = None
               ) -> Dict[str, float]:
        """All values, without their prefix.

        Args:
            gathered (GatheredKeypoints): What :meth:`gather` returned.
            mapped_by (str, optional): Digest of the calibrator that mapped the scores. Defaults to
                None: they are the model's.
        """
        _require(mapped_by is None or self.calibrator is None, 'calibrator: the scores were mapped '
                 'already, by mmskd.CalibratedScores; take one of them away')
        keypoints = self._calibrated(gathered)
        each = [pose_measures(keypoints.of_keypoint(k), self.rule.n_bins)
                for k in range(keypoints.scores.shape[1])]
        overall = pose_measures(keypoints, self.rule.n_bins)
        metrics = dict(
            overall, NLL_mapped=mapped_nll(keypoints), clipped=clipped_share(keypoints),
            keypoints=float(keypoints.counts.sum()),
            **{f'mean_{key}': mean_of_defined([values[key] for values in each])
               for key in overall})
        if self.per_keypoint:
            metrics.update({f'{name}_{key}': value
                            for name, values in zip(gathered.names, each)
                            for key, value in values.items()})
        if self.bootstrap:
            metrics.update({f'{key}_{end}': value
                            for key, ends in pose_intervals(
                                keypoints, self.rule.n_bins, self.bootstrap).items()
                            for end, value in zip(('low', 'high'), ends)})
        return metrics

    def gather(self, results: List[dict]) -> GatheredKeypoints:
        """What :meth:`process` kept, in arrays."""
        n_keypoints = len(results[0]['scores']) if results else (
            self.dataset_meta or {}).get('num_keypoints', 0)
        _require(all(len(result['scores']) == n_keypoints for result in results),
                 'the samples have different numbers of keypoints')
        files = [result['image'] for result in results]
        shape = len(results), n_keypoints
        scores, hits, counts = (
            np.array([result[key] for result in results], kind).reshape(shape)
            for key, kind in (('scores', float), ('hits', bool), ('counts', bool)))
        keypoints = Keypoints(
            scores, hits, counts,
            np.unique(np.asarray(files, str), return_inverse=True)[1].reshape(-1))
        return GatheredKeypoints(keypoints, self._names(n_keypoints), files)

    def gather_from(self, dataset, samples: Sequence[dict]) -> GatheredKeypoints:
        """Arrays of the predictions on a whole data set, in its order."""
        self.dataset_meta = dataset.metainfo
        self.results: List[dict] = []
        self.process(None, samples)
        return self.gather(self.results)._replace(files=image_files(dataset))

    def fit(self, gathered: GatheredKeypoints, kind: str, target: str,
            classwise: bool) -> Calibrator:
        """A calibrator for images on which nothing is measured.

        Args:
            gathered (GatheredKeypoints): What :meth:`gather` returned.
            kind (str): As in :func:`~mmskd.evaluation.calibrators.fit_calibrator`; no temperature.
            target (str): ``'hit'``.
            classwise (bool): A map for each keypoint, else one for all.

        Raises:
            UsageError: If it cannot be fitted so.
        """
        if target != 'hit':
            raise UsageError('keypoints have no IoU that a score could tell: target=hit')
        scores, hits, counts, _ = gathered.keypoints
        calibrator = fit_calibrator(
            kind, scores[counts], hits[counts], np.nonzero(counts)[1], gathered.names, classwise,
            target, 'pose')
        calibrator.images = image_keys(gathered.files)
        calibrator.fitted_on = dict(predictions=int(counts.sum()), images=len(set(gathered.files)))
        return calibrator

    def _calibrated(self, gathered: GatheredKeypoints) -> Keypoints:
        """With the scores that the calibrator makes of them, if there is one."""
        if self.calibrator is None:
            return gathered.keypoints
        scores, names = gathered.keypoints.scores, gathered.names
        n, k = scores.shape
        _require(self.calibrator.classes == names or names == [str(i) for i in range(k)] and
                 len(self.calibrator.classes) == k, 'the calibrator is of the keypoints '
                 f'{self.calibrator.classes}, the data set has {names}')
        mapped = self.calibrator(scores.reshape(-1), np.tile(np.arange(k), n))
        return gathered.keypoints._replace(scores=mapped.reshape(n, k))

    def _names(self, n_keypoints: int) -> List[str]:
        """The keypoints' names; their numbers if the data set is not known."""
        names = (self.dataset_meta or {}).get('keypoint_id2name', {})
        return [names.get(k, str(k)) for k in range(n_keypoints)]

    def _sigmas(self, n_keypoints: int) -> np.ndarray:
        sigmas: Any = (self.dataset_meta or {}).get('sigmas')
        _require(sigmas is not None, "hit='oks' needs the data set's meta information (sigmas)")
        _require(len(sigmas) == n_keypoints, f'the data set has {len(sigmas)} sigmas, but '
                 f'{n_keypoints} keypoints are predicted')
        return np.asarray(sigmas)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(f'PoseCalibrationMetric: {message}')


def _array(sample: dict, instances: str, key: str) -> np.ndarray:
    given = sample.get(instances)
    values = given.get(key) if isinstance(given, dict) else None
    _require(values is not None, f'a sample has no {key} in its {instances}')
    array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    _require(array.dtype.kind in 'biuf', f'the {key} of a sample in its {instances} are no numbers')
    return array


def _keypoints(sample: dict) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Predicted keypoints (K, 2) and scores (K,); annotated keypoints (K, 2), or not (K,)."""
    predicted = _array(sample, 'pred_instances', 'keypoints')
    annotated = _array(sample, 'gt_instances', 'keypoints')
    _require(len(predicted) == len(annotated) == 1 and predicted.shape == annotated.shape,
             'a sample must hold one prediction and one annotation of the same keypoints, got '
             f'shapes {predicted.shape} and {annotated.shape}; bottom-up models, which find '
             'the instances themselves, cannot be measured')
    scores = _array(sample, 'pred_instances', 'keypoint_scores').astype(np.float64).reshape(-1)
    _require(len(scores) == predicted.shape[1] and np.isfinite(scores).all(),
             f'keypoint_scores must be {predicted.shape[1]} finite numbers, got {scores}')
    visible = _array(sample, 'gt_instances', 'keypoints_visible')
    if visible.ndim == 3:  # beside the visibility, its weight in the loss
        visible = visible[..., 0]
    visible = visible.reshape(-1).astype(bool)
    # Else every keypoint would be measured against the corner of the image
    _require(annotated.any() or not visible.all() or visible.size < 2,
             'all annotated keypoints of a sample lie at (0, 0): the data set was read with '
             "bbox_file, and has boxes but no annotations; set bbox_file='' in the data set")
    return predicted[0], scores, annotated[0], visible


def _reference_size(norm_item: str, sample: dict, predicted, annotated) -> float:
    """The size in pixels by which mmpose's PCKAccuracy divides distances."""
    if norm_item == 'bbox':
        box = _array(sample, 'gt_instances', 'bboxes')[0]
        return np.max(box[2:] - box[:2])
    if norm_item == 'head':
        return _array(sample, 'gt_instances', 'head_size').reshape(-1)[0]
    _require(len(annotated) > 5, "norm_item='torso' needs JHMDB's keypoints, of which 4 and 5 span "
             f'the torso, but there are {len(annotated)}')
    size = np.linalg.norm(annotated[4] - annotated[5])
    return size if size >= 1 else np.linalg.norm(predicted[4] - predicted[5])


def _area(sample: dict) -> float:
    """Area of the annotated instance in square pixels."""
    area = (sample.get('raw_ann_info') or {}).get('area')
    if not area:
        width, height = np.diff(_array(sample, 'gt_instances', 'bboxes').reshape(2, 2), axis=0)[0]
        area = 0.53 * width * height
    return float(area)
