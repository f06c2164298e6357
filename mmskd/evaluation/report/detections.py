"""Judges detections; see :mod:`.judging`."""
from typing import Dict, Optional

import numpy as np

from ..average_precision import average_precision
from ..calibration import ece
from ..detection import (
    SIZES,
    DetectionCalibration,
    DetectionRule,
    Matched,
    lrp_optimal_thresholds,
    match,
    overlaps,
)
from .judging import Judged, Verdicts, best_threshold
from .predictions import Predictions


def judge(predictions: Predictions, rule: DetectionRule) -> Judged:
    """Which detections hit, by COCO's rules."""
    matched = match(predictions.detections, predictions.objects, rule.iou_thr, rule.max_dets)
    return _judged(predictions, matched)


def verdicts(predictions: Predictions, rule: DetectionRule, others: Optional[Predictions] = None,
             draws: int = 0) -> Verdicts:
    """All measures of a detector."""
    names, objects = predictions.names, predictions.objects
    calibration = DetectionCalibration(
        predictions.detections, objects, len(names), len(predictions.image_ids),
        None if others is None else thresholds_on(others, rule), rule)
    judged = _judged(predictions, calibration.matched)
    measured = judged.above(rule.score_thr)
    precision = average_precision(predictions.detections, objects, len(names),
                                  max_dets=rule.max_dets)
    by_class = calibration.by_class()
    threshold = best_threshold(judged)
    return Verdicts(
        judged, measured, threshold,
        dict(mAP=_mean(precision), AP50=_mean(precision[0]), AP75=_mean(precision[5]),
             **calibration.values),
        dict(AP=precision.mean(axis=0),
             **{key: values for key, values in by_class.items() if key.startswith('LaECE_0')},
             ECE=by_class['ECE']),
        _confusion(predictions, rule, threshold), _by_size(predictions, measured, rule),
        calibration.intervals(draws) if draws else {})


def thresholds_on(predictions: Predictions, rule: DetectionRule) -> np.ndarray:
    """The LRP-optimal score threshold of each class on the images of some predictions."""
    touching = match(predictions.detections, predictions.objects, 0., rule.max_dets)
    return lrp_optimal_thresholds(touching, len(predictions.names))


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _judged(predictions: Predictions, matched: Matched) -> Judged:
    counted = np.flatnonzero(matched.object_counts)
    place = np.full(len(matched.object_counts) + 1, -1)
    place[counted] = np.arange(len(counted))
    keep = matched.counts
    objects = place[matched.objects[keep]]
    hits, scores = matched.hits[keep], matched.scores[keep]
    found = np.full(len(counted), -np.inf)
    found[objects[hits]] = scores[hits]
    return Judged(
        predictions.names, scores, hits, matched.labels[keep], matched.images[keep],
        np.flatnonzero(keep), objects, found, matched.object_labels[counted],
        matched.object_images[counted], counted)


def _confusion(predictions: Predictions, rule: DetectionRule, threshold: float) -> np.ndarray:
    """Boxes meet objects of any class, from the highest score down."""
    detections, objects = predictions.detections, predictions.objects
    kept = detections.select(detections.scores >= threshold)
    matched = match(kept, objects, rule.iou_thr, rule.max_dets,
                    found=overlaps(kept, objects, across_classes=True))
    nothing = len(predictions.names)
    counts = np.zeros((nothing + 1, nothing + 1), int)
    hits, wrong = matched.hits, matched.counts & ~matched.hits
    np.add.at(counts, (objects.labels[matched.objects[hits]], kept.labels[hits]), 1)
    np.add.at(counts, (nothing, kept.labels[wrong]), 1)
    missed = matched.object_counts.copy()
    missed[matched.objects[hits]] = False
    np.add.at(counts, (objects.labels[missed], nothing), 1)
    return counts


def _by_size(predictions: Predictions, measured: Judged, rule: DetectionRule) -> Dict[str, tuple]:
    """A detection has the size of the object that it hit, else its own."""
    boxes = predictions.boxes[measured.rows].astype(np.float64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    real = predictions.gt_areas[measured.object_rows]
    area = np.where(measured.hits, np.append(real, 0)[measured.objects], area)
    found = {}
    for size, (low, high) in SIZES.items():
        mine = (low <= area) & (area < high)
        if ((low <= real) & (real < high)).any() and mine.any():
            scores, hits = measured.scores[mine], measured.hits[mine]
            found[size] = scores, hits, ece(scores, hits, rule.n_bins)
    return found
