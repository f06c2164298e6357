"""How far the scores of a detector can be trusted."""
import logging
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from mmskd.errors import UsageError
from mmskd.options import Options
from mmskd.registry import METRICS

from ..calibrators import Calibrator, fit_calibrator
from ..detection import DetectionCalibration, DetectionRule
from ..ground_truth import (
    image_files,
    label_names,
    labels_of,
    objects_from_annotations,
    objects_from_instances,
    objects_of,
    read_annotations,
)
from ..held_out import image_keys
from ..matching import Detections, Objects
from .samples import check_repeats, check_same_calibrator


class Gathered(NamedTuple):
    """What was found on some images, and what is there.

    Attributes:
        detections (Detections): ``images`` is the position in ``files``.
        objects (Objects): As well.
        names (list[str]): Of the labels.
        files (list[str]): Of the images; their ids, where samples do not name files.
    """
    detections: Detections
    objects: Objects
    names: List[str]
    files: List[str]

    def select(self, keep: np.ndarray) -> 'Gathered':
        """Only the images of a mask."""
        position = np.cumsum(keep) - 1
        detections = self.detections.select(keep[self.detections.images])
        objects = self.objects.select(keep[self.objects.images])
        return Gathered(
            detections._replace(images=position[detections.images]),
            objects._replace(images=position[objects.images]), self.names,
            [file for file, kept in zip(self.files, keep) if kept])


@METRICS.register_module()
class DetCalibrationMetric(BaseMetric):
    """Calibration of a box detector on any data set in COCO format.

    What each value says, which direction is better and whether two models can be compared by it is
    in :data:`mmskd.evaluation.measures.MEASURES`; the formulas, with their papers, in
    :mod:`mmskd.evaluation.calibration` and :mod:`mmskd.evaluation.detection`. Detections are
    matched by COCO's rules, crowds and ignored objects honoured. Keys, under the prefix
    ``calibration``:

    - of the detections that are kept at the LRP-optimal threshold of their class: ``LaECE_0``,
      ``LaACE_0``, ``overconfidence``, ``LRP`` with ``LRP_loc``, ``LRP_FP`` and ``LRP_FN`` (all
      means over the classes that have objects, any overlap a hit), ``OCE``, and the numbers of
      ``detections`` and ``objects``. The thresholds are to be found on other images:
      ``thresholds``. Without, they are found on those that are measured, and these keys end in
      ``_own_thr``;
    - ``oLRP``, at ``iou_thr`` and its own thresholds;
    - of all detections with a score of at least ``score_thr``, with hits at ``iou_thr``: ``NLL``
      (nats), ``ECE`` (the D-ECE), ``LaECE``, ``Brier``, ``AURC``, ``EAURC`` and their number
      ``emitted``. They depend on how much a model emits and do not compare models;
    - with ``classwise`` each of these per class as ``{class name}_{key}``, with ``by_size`` per
      size of the objects as ``small_{key}``, ``medium_{key}`` and ``large_{key}``, with
      ``bootstrap`` the ends of intervals over images as ``{key}_low`` and ``{key}_high``.

    An undefined value is nan: the ECE of no detections, the oLRP of a class without objects. Only
    images that were evaluated count, so a part of a data set can be measured too.

    Use it beside mmdet's own metric, or on a results file that ``tools/test.py --out`` wrote::

        val_evaluator = [
            dict(type='CocoMetric', ann_file=ann_file),
            dict(type='mmskd.DetCalibrationMetric', ann_file=ann_file)]

    Args:
        ann_file (str, optional): Annotations in COCO format. Without it the ground truth is taken
            from the data samples, which must then carry ``instances``; mmdet leaves objects marked
            ``ignore`` out of these, so that what is found on them counts as wrong. Defaults to
            None.
        thresholds (str, optional): A json file of ``tools/analysis/calibrate.py``, with the
            LRP-optimal thresholds that it found on other images. Defaults to None: those of
            ``calibrator``; without one, found on the measured images.
        iou_thr (float): IoU from which on a detection hits, between 0 and 1. Defaults to 0.5.
        score_thr (float): Detections below it are not among the ``emitted``. With 0, the thousands
            of boxes that score next to nothing, and are rightly nothing, outweigh all others and
            every detector looks calibrated. Defaults to 0.05.
        n_bins (int): Score bins of ``LaECE_0``, ``LaECE`` and ``ECE``. Defaults to 25, as in the
            papers of LaECE; for the D-ECE, 10 and 20 are common as well.
        max_dets (int): Detections per image and class, the highest scores first. Defaults to 100.
        classwise (bool): Whether to report each class as well. Defaults to False.
        by_size (bool): Whether to report small, medium and large objects (COCO's areas) as well.
            Defaults to False.
        bootstrap (int): How often images are drawn for the intervals. Defaults to 0, no intervals.
        calibrator (str, optional): A json file of ``tools/analysis/calibrate.py``: measure the
            scores as it maps them. Thresholds are compared with the scores before, so that the same
            detections count. (``mmskd.CalibratedScores`` changes the predictions themselves.)
            Defaults to None.
        collect_device (str): Where results of several processes are collected, 'cpu' or 'gpu'.
            Defaults to 'cpu'.
        prefix (str, optional): Prefix of the keys. Defaults to None, for ``calibration``.

    Raises:
        ValueError: If an argument is out of range; if no source of ground truth is given; if an
            image is not in ``ann_file`` or was predicted twice; if a label is none of the data
            set's classes; if a box or score is not finite; if the calibrator is of other classes,
            or scores were mapped already.
    """
    default_prefix = 'calibration'

    def __init__(self,
                 ann_file: Optional[str] = None,
                 thresholds: Optional[str] = None,
                 iou_thr: float = 0.5,
                 score_thr: float = 0.05,
                 n_bins: int = 25,
                 max_dets: int = 100,
                 classwise: bool = False,
                 by_size: bool = False,
                 bootstrap: int = 0,
                 calibrator: Optional[str] = None,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        options = Options('DetCalibrationMetric')
        self.rule = DetectionRule(iou_thr, score_thr, n_bins, max_dets).checked(
            'DetCalibrationMetric')
        self.classwise = options.flag('classwise', classwise)
        self.by_size = options.flag('by_size', by_size)
        self.bootstrap = options.whole('bootstrap', bootstrap, least=0)
        for name, value in dict(ann_file=ann_file, thresholds=thresholds,
                                calibrator=calibrator).items():
            options.text(name, value, optional=True)
        self.calibrator = None if calibrator is None else Calibrator.load(calibrator)
        self.thresholds = self.calibrator if thresholds is None else Calibrator.load(thresholds)
        for name, file in (('calibrator', self.calibrator), ('thresholds', self.thresholds)):
            _require(file is None or file.task == 'detection', f'{name} is of a pose estimator')
        self._data = None if ann_file is None else read_annotations(ann_file)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep of each image what matching needs."""
        for sample in data_samples:
            result = _prediction(sample)
            if self._data is None:
                result['instances'] = self._instances(sample)
            self.results.append(result)

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Match, and apply the formulas to all classes together and to each."""
        return self.values(self.gather(results),
                           check_same_calibrator(results, type(self).__name__))

    def values(self, gathered: Gathered, mapped_by: Optional[str] = None) -> Dict[str, float]:
        """All values, without their prefix; arguments as of :meth:`measure`."""
        measured = self.measure(gathered, mapped_by)
        values = measured.values
        if self.classwise:
            by_class = measured.by_class()
            values.update({f'{name}_{key}': float(of_class[label])
                           for label, name in enumerate(gathered.names)
                           for key, of_class in by_class.items()})
        if self.by_size:
            values.update({f'{size}_{key}': value for size, of_size in measured.by_size().items()
                           for key, value in of_size.items()})
        if self.bootstrap:
            values.update({f'{key}_{end}': value
                           for key, ends in measured.intervals(self.bootstrap).items()
                           for end, value in zip(('low', 'high'), ends)})
        return values

    def gather(self, results: List[dict]) -> Gathered:
        """Arrays of what :meth:`process` kept, and of the ground truth."""
        ids = [result['img_id'] for result in results]
        # An id names an image of one file; data sets of several files repeat them
        check_repeats(ids if self._data else list(zip(ids, [r['img_path'] for r in results])),
                      type(self).__name__)
        classes = list((self.dataset_meta or {}).get('classes', []))
        if self._data is None:
            names, objects = classes, objects_from_instances([r['instances'] for r in results])
        else:
            known = {image['id'] for image in self._data['images']}
            for img_id in ids:
                _require(img_id in known, f'image {img_id} is not in ann_file')
            label_of, names = labels_of(self._data, classes)
            objects = objects_from_annotations(self._data, ids, label_of)
        return Gathered(_detections(results, names), objects, names,
                        [str(result['img_path'] or result['img_id']) for result in results])

    def gather_from(self, dataset, samples: Sequence[dict]) -> Gathered:
        """Arrays of the predictions on a whole data set, in its order, and of its ground truth."""
        names = label_names(dataset)
        return Gathered(_detections([_prediction(sample) for sample in samples], names),
                        objects_of(dataset), names, image_files(dataset))

    def measure(self, gathered: Gathered, mapped_by: Optional[str] = None) -> DetectionCalibration:
        """The measures of what :meth:`gather` returned.

        Args:
            gathered (Gathered): Predictions and ground truth.
            mapped_by (str, optional): Digest of the calibrator that mapped the scores. Defaults to
                None: they are the model's.
        """
        _require(mapped_by is None or self.calibrator is None, 'calibrator: the scores were mapped '
                 'already, by mmskd.CalibratedScores; take one of them away')
        for file in (self.calibrator, self.thresholds):
            _require(file is None or file.classes == gathered.names, 'the calibrator is of the '
                     f'classes {file and file.classes}, the data set has {gathered.names}')
        thresholds, held_out = None, True
        if self.thresholds is not None:
            _require(mapped_by in (None, self.thresholds.digest), 'thresholds: the scores were '
                     'mapped by another calibrator than the file that names the thresholds')
            thresholds = self.thresholds.lrp_thresholds(mapped=mapped_by is not None)
            shared = set(self.thresholds.images) & set(image_keys(gathered.files))
            held_out = not shared
            if shared:
                print_log(
                    f'DetCalibrationMetric: the thresholds were found on {len(shared)} of the '
                    f'{len(gathered.files)} images that are measured', 'current', logging.WARNING)
        return DetectionCalibration(
            gathered.detections, gathered.objects, len(gathered.names), len(gathered.files),
            thresholds, self.rule, calibrator=self.calibrator, held_out=held_out)

    def fit(self, gathered: Gathered, kind: str, target: str, classwise: bool) -> Calibrator:
        """A calibrator, and the LRP-optimal thresholds, for images on which nothing is measured.

        It is fitted to the detections that are kept at the thresholds, as in the paper.

        Args:
            gathered (Gathered): Predictions and ground truth.
            kind (str): As in :func:`~mmskd.evaluation.calibrators.fit_calibrator`.
            target (str): ``'iou'``, 0 for what touches no object; or ``'hit'``, at ``iou_thr``.
            classwise (bool): A map for each class, else one for all.
        """
        detections, objects, names, files = gathered
        found = DetectionCalibration(detections, objects, len(names), len(files), rule=self.rule)
        kept = found.kept if target == 'iou' else found.matched.above(found.thresholds)
        calibrator = fit_calibrator(
            kind, kept.scores, kept.ious if target == 'iou' else kept.hits, kept.labels, names,
            classwise, target)
        calibrator.thresholds = [None if np.isnan(thr) else float(thr) for thr in found.thresholds]
        calibrator.images = image_keys(files)
        calibrator.fitted_on = dict(predictions=len(kept.scores), images=len(files))
        calibrator.notes += [f'{name}: nothing is kept, no detection of it hits'
                             for name, thr in zip(names, calibrator.thresholds) if thr is None]
        return calibrator

    @staticmethod
    def _instances(sample: dict) -> List[dict]:
        """The objects of a data sample, without their masks."""
        _require('instances' in sample, "give ann_file, or samples with 'instances' (a meta key of "
                 'PackDetInputs)')
        return [dict(bbox=[float(x) for x in obj['bbox']], bbox_label=int(obj['bbox_label']),
                     ignore_flag=int(obj.get('ignore_flag', 0))) for obj in sample['instances']]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(f'DetCalibrationMetric: {message}')


def _prediction(sample: dict) -> dict:
    """What is needed of a data sample, but for its objects."""
    pred, img_id = sample.get('pred_instances'), sample.get('img_id')
    _require(isinstance(img_id, (int, str, np.integer)), f'a sample has no img_id, but {img_id!r}')
    known = {key: pred[key] for key in ('bboxes', 'scores', 'labels')
             if isinstance(pred, dict) and isinstance(pred.get(key), Tensor)}
    _require(len(known) == 3, f'image {img_id} has no bboxes, scores and labels in its '
             'pred_instances: a detector predicts them')
    bboxes, scores, labels = known.values()
    n = len(scores) if scores.dim() else 0
    _require(bboxes.shape == (n, 4) and scores.shape == labels.shape == (n, ),
             f'image {img_id} has boxes, scores and labels of the shapes {tuple(bboxes.shape)}, '
             f'{tuple(scores.shape)} and {tuple(labels.shape)}, not of one number of detections')
    _require(not labels.is_floating_point(),
             f'the labels predicted in image {img_id} are no whole numbers')
    for key, values in (('bboxes', bboxes), ('scores', scores)):
        _require(bool(values.isfinite().all()),
                 f'some {key} predicted in image {img_id} are not finite')
    return dict(
        img_id=img_id, img_path=sample.get('img_path'), calibrator=sample.get('calibrator'),
        bboxes=bboxes.float().cpu().numpy(), scores=scores.float().cpu().numpy(),
        labels=labels.cpu().numpy())


def _detections(results: List[dict], names: List[str]) -> Detections:
    for result in results:
        unknown = [i for i in np.unique(result['labels']) if not 0 <= i < len(names)]
        _require(not unknown, f'label {unknown[0] if unknown else None} predicted in image '
                 f'{result["img_id"]}, but the data set has {len(names)} classes: {names}')
    images = np.repeat(np.arange(len(results)), [len(result['scores']) for result in results])
    empty = dict(bboxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, np.int64))
    parts = [empty, *results]
    boxes, scores, labels = (np.concatenate([part[key] for part in parts])
                             for key in ('bboxes', 'scores', 'labels'))
    return Detections.of(boxes, scores, labels, images)
