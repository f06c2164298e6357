"""Judges keypoints; see :mod:`.judging`."""
from typing import Optional

import numpy as np

from mmskd.errors import UsageError

from ..calibration import ece
from ..keypoint_hits import normalized_distances, oks_terms
from ..pose import (
    Keypoints,
    PoseRule,
    clipped_share,
    judge_keypoints,
    mapped_nll,
    pose_intervals,
    pose_measures,
)
from .judging import Judged, Verdicts
from .predictions import Predictions

NAMES = {'bbox': 'PCK', 'head': 'PCKh', 'torso': 'tPCK'}


def judge(predictions: Predictions, rule: PoseRule) -> Judged:
    """Which keypoints hit; those count that are annotated, of people whose size is known."""
    return _judged(predictions, _keypoints(predictions, rule))


def verdicts(predictions: Predictions, rule: PoseRule, others: Optional[Predictions] = None,
             draws: int = 0) -> Verdicts:
    """All measures of a pose estimator. It has no thresholds to be found on other images."""
    keypoints = _keypoints(predictions, rule)
    judged = _judged(predictions, keypoints)
    apart = [judged.labels == k for k in range(len(judged.names))]
    share = np.array([judged.hits[mine].mean() if mine.any() else np.nan for mine in apart])
    quality = 'OKS hits' if rule.hit == 'oks' else NAMES[rule.norm_item]
    visible = predictions.gt_visible
    errors = np.linalg.norm(predictions.keypoints - predictions.gt_keypoints, axis=-1)[visible]
    values = {
        quality: float(np.nanmean(share)) if len(judged.hits) else np.nan,
        'EPE': float(errors.mean()) if len(errors) else np.nan,
        **pose_measures(keypoints, rule.n_bins), 'NLL_mapped': mapped_nll(keypoints),
        'clipped': clipped_share(keypoints), 'keypoints': float(len(judged.hits))}
    by_name = {quality: share, 'ECE': np.array([
        ece(judged.probabilities[mine], judged.hits[mine], rule.n_bins) for mine in apart])}
    return Verdicts(judged, judged, -np.inf, values, by_name,
                    _confusion(predictions, rule, keypoints), {},
                    pose_intervals(keypoints, rule.n_bins, draws) if draws else {})


def _keypoints(predictions: Predictions, rule: PoseRule) -> Keypoints:
    hits, counts = judge_keypoints(
        predictions.keypoints, predictions.gt_keypoints, predictions.gt_visible,
        reference_sizes(predictions, rule), rule, predictions.sigmas)
    return Keypoints(predictions.scores.astype(np.float64), hits, counts, predictions.images)


def _judged(predictions: Predictions, keypoints: Keypoints) -> Judged:
    counts = keypoints.counts
    scores, hits = keypoints.scores[counts], keypoints.hits[counts]
    images = np.broadcast_to(keypoints.images[:, None], counts.shape)[counts]
    rows, labels = np.flatnonzero(counts), np.nonzero(counts)[1]
    return Judged(predictions.names, scores, hits, labels, images, rows,
                  np.where(hits, np.arange(len(hits)), -1), np.where(hits, scores, -np.inf),
                  labels, images, rows)


def reference_sizes(predictions: Predictions, rule: PoseRule) -> np.ndarray:
    """What distances are measured by, in pixels (for the OKS areas, in square pixels), shape (P,).

    Raises:
        UsageError: If the data set does not have it.
    """
    boxes = predictions.gt_boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    if rule.hit == 'oks':
        if not len(predictions.sigmas):
            raise UsageError("its data set has no sigmas, which hit='oks' needs")
        areas = predictions.gt_areas
        return np.where(areas > 0, areas, 0.53 * sides.prod(axis=1))  # as mmpose
    if rule.norm_item == 'head':
        if np.isnan(predictions.gt_head_sizes).any():
            raise UsageError("its data set has no head sizes, which norm_item='head' needs")
        return predictions.gt_head_sizes
    if rule.norm_item == 'torso':
        if len(predictions.names) < 6:
            raise UsageError("norm_item='torso' needs JHMDB's keypoints, of which 4 and 5 span it")
        real, found = (np.linalg.norm(points[:, 4] - points[:, 5], axis=-1) for points in
                       (predictions.gt_keypoints, predictions.keypoints))
        return np.where(real >= 1, real, found)
    return sides.max(axis=1, initial=0)


def _confusion(predictions: Predictions, rule: PoseRule, keypoints: Keypoints) -> np.ndarray:
    """A keypoint that misses its own place may have hit another's of the same body."""
    sizes, n = reference_sizes(predictions, rule), len(predictions.names)
    counts = np.zeros((n + 1, n + 1), int)
    for person in np.flatnonzero(keypoints.counts.any(axis=1)):
        taken_for = np.where(keypoints.hits[person], np.arange(n),
                             other_keypoints(predictions, rule, person, sizes[person]))
        real = np.flatnonzero(keypoints.counts[person])
        np.add.at(counts, (real, taken_for[real]), 1)
    return counts


def other_keypoints(predictions: Predictions, rule: PoseRule, person: int,
                    size: float) -> np.ndarray:
    """On which other annotated keypoint of the same body each predicted keypoint is.

    Args:
        predictions (Predictions): Predictions.
        rule (PoseRule): What is near.
        person (int): Whose.
        size (float): One of :func:`reference_sizes`.

    Returns:
        ndarray: The nearest that is near enough, K where none is, shape (K,).
    """
    real, found = predictions.gt_keypoints[person], predictions.keypoints[person]
    if rule.hit == 'oks':
        closeness = oks_terms(found[:, None], real[None], size, predictions.sigmas)
        near = closeness >= rule.thr
    else:
        closeness = -normalized_distances(found[:, None], real[None], size)
        near = -closeness < rule.thr
    near &= predictions.gt_visible[person] & ~np.eye(len(real), dtype=bool)
    return np.where(near.any(axis=1), np.argmax(np.where(near, closeness, -np.inf), axis=1),
                    len(real))
