"""Calibration of a detector on a data set: all measures at once, on arrays, without a config.

The protocol is that of Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and
Baselines", ECCV 2024: of each class the detections that count are those at or above the score
threshold with the lowest LRP error, found on other images than are measured; any overlap is a hit,
and how well it fits is what the score should tell (LaECE_0, LaACE_0). Two detectors are compared as
they would be used, and neither gains by what it emits below its thresholds.
"""
from functools import cached_property
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from scipy.sparse import csr_matrix

from mmskd.options import Options

from .bootstrap import bootstrap
from .calibration import (
    aurc,
    brier,
    eaurc,
    ece,
    laece_by_class,
    lrp_of_sums,
    mean_of_defined,
    nll,
    optimal_lrp_by_class,
    ratio,
    score_bins,
)
from .matching import ANY_SIZE, Detections, Matched, Objects, match, overlaps
from .measures import OWN_THR

# COCO's, in square pixels (https://cocodataset.org/#detection-eval)
SIZES = dict(small=(0., 32.**2), medium=(32.**2, 96.**2), large=(96.**2, np.inf))


class DetectionRule(NamedTuple):
    """When a detection is right, and which count.

    Attributes:
        iou_thr (float): IoU from which on a detection hits, for the measures that do not take any
            overlap. Defaults to 0.5.
        score_thr (float): Detections below it are not among the emitted. Defaults to 0.05.
        n_bins (int): Score bins. Defaults to 25.
        max_dets (int): Detections per image and class, the highest scores first. Defaults to 100.
    """
    iou_thr: float = 0.5
    score_thr: float = 0.05
    n_bins: int = 25
    max_dets: int = 100

    def checked(self, owner: str = 'DetectionRule') -> 'DetectionRule':
        """The same, or a UsageError that says which value of the ``owner`` is out of range."""
        options = Options(owner)
        return DetectionRule(
            options.number('iou_thr', self.iou_thr, above=0, below=1),
            options.number('score_thr', self.score_thr, least=0, most=1),
            options.whole('n_bins', self.n_bins, least=1),
            options.whole('max_dets', self.max_dets, least=1))


class DetectionCalibration:
    """All measures (:data:`mmskd.evaluation.measures.MEASURES`) of the detections of a data set.

    Args:
        detections (Detections): What was found.
        objects (Objects): What there is.
        n_classes (int): C, the number of classes.
        n_images (int): I, the number of images.
        thresholds (array, optional): Score from which on the detections of a class are kept, shape
            (C,), nan for a class of which none are; found on other images. Defaults to None: found
            on these, and the names of what depends on them end in ``_own_thr``.
        rule (DetectionRule): When a detection is right, and which count.
        area_range (tuple[float, float]): Objects and detections of these areas only, in square
            pixels. Defaults to any size.
        calibrator (callable, optional): Maps scores (N,) and labels (N,) to the scores that are
            measured. All thresholds look at the scores before, so that the same detections count
            with and without it. Defaults to None.
        held_out (bool): Whether given thresholds were found on other images than these; else names
            are marked as well. Defaults to True.

    Attributes:
        thresholds (ndarray): As given or found, shape (C,).
        kept (Matched): The detections at or above them, any overlap a hit.
        matched (Matched): All detections with their scores before the map, hits at
            ``rule.iou_thr``.
        emitted (Matched): Those at or above ``rule.score_thr``.
        object_errors (ndarray): Of each object the error that OCE averages, shape (M,); nan for
            what is ignored.

    Raises:
        ValueError: If a label is none of the classes; if the thresholds are of another number, or
            no scores; if a value of the rule is out of range.
    """

    def __init__(self,
                 detections: Detections,
                 objects: Objects,
                 n_classes: int,
                 n_images: int,
                 thresholds: Optional[np.ndarray] = None,
                 rule: DetectionRule = DetectionRule(),
                 area_range: Tuple[float, float] = ANY_SIZE,
                 calibrator: Optional[Callable] = None,
                 held_out: bool = True) -> None:
        highest = max(detections.labels.max(initial=-1), objects.labels.max(initial=-1))
        if highest >= n_classes:
            raise ValueError(f'a label is {highest}, but there are {n_classes} classes')
        self.detections, self.objects = detections, objects
        self.n_classes, self.n_images = n_classes, n_images
        self.rule, self.calibrator = rule.checked(), calibrator

        pairs = overlaps(detections, objects)
        touching, self.matched = (
            match(detections, objects, iou_thr, rule.max_dets, area_range, pairs)
            for iou_thr in (0., rule.iou_thr))
        self.own_thresholds = thresholds is None or not held_out
        if thresholds is None:
            thresholds = lrp_optimal_thresholds(touching, n_classes)
        self.thresholds = np.asarray(thresholds, np.float64)
        if self.thresholds.shape != (n_classes, ):
            raise ValueError(f'there are {n_classes} classes, but the thresholds have the shape '
                             f'{self.thresholds.shape}')
        if (self.thresholds < 0).any() or (self.thresholds > 1).any():
            raise ValueError(f'thresholds are scores in [0, 1], or nan: {self.thresholds}')
        self.kept = self._calibrated(touching.above(self.thresholds))
        self.emitted = self._calibrated(self.matched.above(rule.score_thr))
        above = detections.select(detections.scores >= self.thresholds[detections.labels])
        self.object_errors = np.where(
            touching.object_counts, object_errors(self._calibrated(above), objects), np.nan)

    @property
    def values(self) -> Dict[str, float]:
        """dict[str, float]: Every measure by its name; nan where undefined."""
        return dict(self._marked(self.operating_point()), **self._of_emitted())

    def operating_point(self, weights: Optional[np.ndarray] = None) -> Dict[str, float]:
        """The measures of what is kept at the thresholds, by their names without a mark.

        Args:
            weights (array, optional): How often each image counts, shape (I,). Defaults to None,
                once.
        """
        by_class = self._kept_by_class(np.ones(self.n_images) if weights is None else weights)
        n_objects = by_class['objects']
        values = {name: mean_of_defined(value[n_objects > 0]) for name, value in by_class.items()}
        total = n_objects.sum()
        values.update(
            OCE=float(np.nansum(by_class['OCE'] * n_objects) / total) if total else np.nan,
            detections=float(by_class['detections'].sum()), objects=float(total))
        return values

    def by_class(self) -> Dict[str, np.ndarray]:
        """Every measure of each class, shape (C,); nan where undefined."""
        return dict(self._marked(self._kept_by_class(np.ones(self.n_images))),
                    **self._emitted_by_class())

    def of_size(self, size: str) -> 'DetectionCalibration':
        """The same for ``'small'``, ``'medium'`` or ``'large'`` objects, at the same thresholds.

        By COCO's rules: what is on an object of another size does not count, nor does a detection
        of another size that is on none.
        """
        return DetectionCalibration(
            self.detections, self.objects, self.n_classes, self.n_images, self.thresholds,
            self.rule, SIZES[size], self.calibrator)

    def by_size(self) -> Dict[str, Dict[str, float]]:
        """Every measure of each size of objects."""
        sized = {size: self.of_size(size) for size in SIZES}
        return {size: dict(self._marked(one.operating_point()), **one._of_emitted())
                for size, one in sized.items()}

    def intervals(self, n: int = 1000, seed: int = 0,
                  level: float = 0.95) -> Dict[str, Tuple[float, float]]:
        """Bootstrap intervals over images of what is measured at the thresholds.

        The thresholds stay as they are. See :func:`mmskd.evaluation.bootstrap.bootstrap`. An error
        in bins is larger in a small sample than in a large one, and in a draw larger than in the
        sample, so that the intervals of LaECE_0 reach further up than down.

        Args:
            n (int): How often to draw. Defaults to 1000.
            seed (int): Of the draws. Defaults to 0.
            level (float): Confidence level. Defaults to 0.95.
        """
        return self._marked(bootstrap(self.operating_point, self.n_images, n, seed, level))

    def _marked(self, values: dict) -> dict:
        if not self.own_thresholds:
            return values
        return {f'{name}{OWN_THR}': value for name, value in values.items()}

    def _calibrated(self, these):
        """Detections, matched or not, with the scores that are measured."""
        if self.calibrator is None:
            return these
        return these._replace(
            scores=np.asarray(self.calibrator(these.scores, these.labels), np.float64))

    def _kept_by_class(self, weights: np.ndarray) -> Dict[str, np.ndarray]:
        of = {name: matrix @ weights for name, matrix in self._sums.items()}
        error = lrp_of_sums(of['hits'], of['detections'], of['misfit'], of['objects'], 0.)
        gaps = of['gaps'].reshape(self.n_classes, self.rule.n_bins)
        return dict(
            LaECE_0=ratio(np.abs(gaps).sum(1), of['detections']),
            LaACE_0=ratio(of['distance'], of['detections']),
            overconfidence=ratio(gaps.sum(1), of['detections']),
            LRP=error.total, LRP_loc=error.localisation, LRP_FP=error.false_positives,
            LRP_FN=error.false_negatives, OCE=ratio(of['object_errors'], of['objects']),
            detections=of['detections'], objects=of['objects'])

    @cached_property
    def _sums(self) -> Dict[str, csr_matrix]:
        """All that the operating point is made of: sums for each class over the images.

        Matrices (C, I), of the gaps between score and IoU (C * n_bins, I): times how often each
        image counts they are the sums for such a sample.
        """
        kept, n_bins = self.kept, self.rule.n_bins
        bins = kept.labels * n_bins + score_bins(kept.scores, n_bins, 'left')
        gap, real = kept.scores - kept.ious, kept.object_counts
        of_detections = dict(hits=kept.hits, detections=np.ones(len(gap)), distance=np.abs(gap),
                             misfit=np.where(kept.hits, 1 - kept.ious, 0.))
        of_objects = dict(objects=np.ones(real.sum()), object_errors=self.object_errors[real])

        def matrix(values, rows, images, height=self.n_classes):
            return csr_matrix((values.astype(np.float64), (rows, images)), (height, self.n_images))

        return dict(
            gaps=matrix(gap, bins, kept.images, self.n_classes * n_bins),
            **{name: matrix(values, kept.labels, kept.images)
               for name, values in of_detections.items()},
            **{name: matrix(values, kept.object_labels[real], kept.object_images[real])
               for name, values in of_objects.items()})

    def _of_emitted(self) -> Dict[str, float]:
        scores, hits = self.emitted.scores, self.emitted.hits
        laeces, olrps = self._class_errors()
        # Both are means over classes by definition, and a class without objects is no part of them
        return dict(self._pooled(scores, hits), LaECE=mean_of_defined(laeces[~np.isnan(olrps)]),
                    oLRP=mean_of_defined(olrps))

    def _emitted_by_class(self) -> Dict[str, np.ndarray]:
        of_class = [self.emitted.labels == label for label in range(self.n_classes)]
        values = [self._pooled(self.emitted.scores[mine], self.emitted.hits[mine])
                  for mine in of_class]
        laeces, olrps = self._class_errors()
        return dict({name: np.array([value[name] for value in values])
                     for name in (values[0] if values else ())}, LaECE=laeces, oLRP=olrps)

    def _pooled(self, scores: np.ndarray, hits: np.ndarray) -> Dict[str, float]:
        return dict(NLL=nll(scores, hits), ECE=ece(scores, hits, self.rule.n_bins),
                    Brier=brier(scores, hits), AURC=aurc(scores, hits), EAURC=eaurc(scores, hits),
                    emitted=float(len(scores)))

    def _class_errors(self) -> Tuple[np.ndarray, np.ndarray]:
        """LaECE of what is emitted, and oLRP, which looks at every score, of each class."""
        emitted, every = self.emitted, self.matched.counted()
        n_objects = np.bincount(every.object_labels[every.object_counts], minlength=self.n_classes)
        return (laece_by_class(emitted.scores, emitted.hits, emitted.ious, emitted.labels,
                               self.n_classes, self.rule.n_bins),
                optimal_lrp_by_class(every.scores, every.hits, every.ious, every.labels, n_objects,
                                     self.rule.iou_thr)[0])


def lrp_optimal_thresholds(matched: Matched, n_classes: int, iou_thr: float = 0.) -> np.ndarray:
    """The LRP-optimal threshold of each class, shape (n_classes,).

    Args:
        matched (Matched): Detections and objects, matched at ``iou_thr``.
        n_classes (int): C, the number of classes.
        iou_thr (float): As they were matched. Defaults to 0, any overlap.

    Returns:
        ndarray: Scores; nan for a class that is better not detected at all, as one of which no
        detection hits.
    """
    every = matched.counted()
    n_objects = np.bincount(every.object_labels[every.object_counts], minlength=n_classes)
    return optimal_lrp_by_class(every.scores, every.hits, every.ious, every.labels, n_objects,
                                iou_thr)[1]


def object_errors(detections: Detections, objects: Objects,
                  iou_thrs: Sequence[float] = (0.5, 0.75)) -> np.ndarray:
    r"""Of each object the error whose mean is the object-level calibration error (OCE).

    .. math:: \sum_c (\bar p_c - [c = y])^2

    with the class y of the object and the mean :math:`\bar p` of the class probabilities of all
    detections that cover it with at least an IoU, of whichever class, averaged over some IoUs.
    Where none covers it, :math:`\bar p` is 0 and the error 1. Park et al., "Uncertainty
    Quantification in Detection Transformers: Object-Level Calibration and Image-Level Reliability",
    TPAMI 2026.

    A detection has a probability for its own class and 0 for all others. Finding an object under
    its name is then never worse than silence, however low the score. (The approximation for single
    scores in the authors' package uq-detr, :math:`2 (1 - p)^2`, says otherwise below a score of
    0.29; this equals what it says of whole distributions.)

    Args:
        detections (Detections): Those that are kept.
        objects (Objects): What there is; who is ignored makes no difference.
        iou_thrs (sequence[float]): The IoUs. Defaults to 0.5 and 0.75, the paper's.

    Returns:
        ndarray: Errors in [0, 2], 0 is best, shape (M,).
    """
    pairs = overlaps(detections, objects._replace(crowds=np.zeros_like(objects.crowds)),
                     across_classes=True)
    errors = [_brier_of_objects(pairs.detections[near], pairs.objects[near], detections, objects)
              for near in (pairs.ious >= iou_thr for iou_thr in iou_thrs)]
    return np.mean(errors, axis=0)


def _brier_of_objects(pair_detections, pair_objects, detections: Detections,
                      objects: Objects) -> np.ndarray:
    covering = np.bincount(pair_objects, minlength=len(objects.labels))
    n_classes = 1 + max(detections.labels.max(initial=0), objects.labels.max(initial=0))
    # The mean probability of each class that any detection names, for each object
    named, which = np.unique(pair_objects * n_classes + detections.labels[pair_detections],
                             return_inverse=True)
    of, label = np.divmod(named, n_classes)
    mean = np.bincount(which, detections.scores[pair_detections], len(named)) / covering[of]
    right = label == objects.labels[of]
    return 1 + np.bincount(of, mean**2 - 2 * mean * right, len(covering))


def detection_calibration(boxes: Sequence,
                          scores: Sequence,
                          labels: Sequence,
                          targets: Sequence[dict],
                          n_classes: Optional[int] = None,
                          thresholds: Optional[np.ndarray] = None,
                          rule: DetectionRule = DetectionRule(),
                          calibrator: Optional[Callable] = None) -> DetectionCalibration:
    """Measure the calibration of any detector: no config, no files, an entry for each image.

    Args:
        boxes (sequence): Boxes x1, y1, x2, y2 in pixels, an array of shape (N_i, 4) for each image.
        scores (sequence): Scores in [0, 1], (N_i,) each.
        labels (sequence): Classes, from 0, (N_i,) each.
        targets (sequence[dict]): What is on each image: ``boxes`` (M_i, 4) and ``labels`` (M_i,),
            and where there are such ``ignored``, ``crowds`` and ``areas``, (M_i,) each, as
            :class:`~mmskd.evaluation.matching.Objects` has them.
        n_classes (int, optional): Number of classes. Defaults to None, as many as the labels need.
        thresholds (array, optional): As in :class:`DetectionCalibration`; from
            ``detection_calibration(...).thresholds`` on other images. Defaults to None.
        rule (DetectionRule): When a detection is right, and which count.
        calibrator (callable, optional): As in :class:`DetectionCalibration`. Defaults to None.

    Returns:
        DetectionCalibration: ``values``, ``by_class()``, ``by_size()`` and ``intervals()``.

    Raises:
        ValueError: If there are not as many entries of each as images; if the corners of a box are
            not in order, as of x, y, width, height; or as :class:`Detections`, :class:`Objects` and
            :class:`DetectionCalibration` say.

    Example:
        >>> from mmskd.evaluation import detection_calibration
        >>> val, test = ([dict(boxes=[[0, 0, 10, 10]], labels=[0])] for _ in range(2))
        >>> found = detection_calibration([[[0, 0, 10, 9]]], [[0.7]], [[0]], val)
        >>> found.thresholds
        array([0.7])
        >>> two = [[[0, 0, 10, 8], [50, 50, 60, 60]]]
        >>> measured = detection_calibration(two, [[0.9, 0.2]], [[0, 0]], test,
        ...                                  thresholds=found.thresholds)
        >>> round(measured.values['LaECE_0'], 3), measured.values['detections']
        (0.1, 1.0)
    """
    n_images = len(targets)
    if not n_images == len(boxes) == len(scores) == len(labels):
        raise ValueError(f'there are {len(boxes)} entries of boxes, {len(scores)} of scores, '
                         f'{len(labels)} of labels and {n_images} of targets: one an image each')
    for i, target in enumerate(targets):
        missing = {'boxes', 'labels'} - target.keys()
        if missing:
            raise ValueError(f'target {i} has no {min(missing)}: it has {sorted(target)}')
    detections = Detections.of(
        _flat(boxes, (4, )), _flat(scores), _flat(labels),
        np.repeat(np.arange(n_images), [len(one) for one in scores]))
    objects = Objects.of(
        _flat([target['boxes'] for target in targets], (4, )),
        _flat([target['labels'] for target in targets]),
        np.repeat(np.arange(n_images), [len(target['labels']) for target in targets]),
        *(_flat_or_none(targets, key) for key in ('ignored', 'crowds', 'areas')))
    for what, these in (('detections', detections), ('targets', objects)):
        turned = (these.boxes[:, 2:] < these.boxes[:, :2]).any(1)
        if turned.any():
            raise ValueError(
                f'boxes of the {what} must be x1, y1, x2, y2, but x2 < x1 or y2 < y1 in '
                f'{these.boxes[turned][0]} on image {these.images[turned][0]} ({turned.sum()} of '
                f'{len(turned)} are so)')
    if n_classes is None:
        n_classes = 1 + max(detections.labels.max(initial=-1), objects.labels.max(initial=-1))
    return DetectionCalibration(detections, objects, int(n_classes), n_images, thresholds, rule,
                                calibrator=calibrator)


def _flat(parts: Sequence, shape: Tuple[int, ...] = ()) -> np.ndarray:
    """One array of the entries of all images."""
    empty = np.zeros((0, *shape))
    return np.concatenate([empty, *(np.asarray(part, np.float64).reshape(-1, *shape)
                                    for part in parts)])


def _flat_or_none(targets: Sequence[dict], key: str) -> Optional[np.ndarray]:
    if not any(key in target for target in targets):
        return None
    missing = [i for i, target in enumerate(targets) if key not in target]
    if missing:
        raise ValueError(f'target {missing[0]} has no {key}, and others have')
    return _flat([target[key] for target in targets])
