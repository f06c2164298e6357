"""Calibration of a pose estimator's keypoint scores, on arrays, without a config.

Which keypoints are measured is decided by the annotations, never by the model, so that all values
compare models.
"""
from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np

from mmskd.options import Options

from .bootstrap import bootstrap
from .calibration import aurc, brier, eaurc, ece, nll, overconfidence
from .calibrators import fit_calibrator
from .held_out import random_half
from .keypoint_hits import normalized_distances, oks_terms

THRESHOLDS = dict(pck=0.05, oks=0.5)


class PoseRule(NamedTuple):
    """When a keypoint is right.

    Attributes:
        hit (str): ``'pck'``: nearer than ``thr`` times a reference size; ``'oks'``: a term of the
            OKS of at least ``thr``. Defaults to ``'pck'``.
        thr (float): Where a hit begins. Defaults to 0.05.
        norm_item (str): The reference size of PCK: ``'bbox'``, ``'head'`` or ``'torso'``. Defaults
            to ``'bbox'``.
        n_bins (int): Score bins. Defaults to 25.
    """
    hit: str = 'pck'
    thr: float = THRESHOLDS['pck']
    norm_item: str = 'bbox'
    n_bins: int = 25

    def checked(self, owner: str = 'PoseRule') -> 'PoseRule':
        """The same, or a UsageError that says which value of the ``owner`` is out of range."""
        options = Options(owner)
        return PoseRule(
            options.choice('hit', self.hit, list(THRESHOLDS)),
            options.number('thr', self.thr, above=0, most=1 if self.hit == 'oks' else None),
            options.choice('norm_item', self.norm_item, ['bbox', 'head', 'torso']),
            options.whole('n_bins', self.n_bins, least=1))


class Keypoints(NamedTuple):
    """The K keypoints of N instances.

    Attributes:
        scores (ndarray): Scores as the model gives them, shape (N, K), float64.
        hits (ndarray): Whether near enough to the annotation, shape (N, K), bool.
        counts (ndarray): Whether there is an annotation, shape (N, K), bool. What is not does not
            count.
        images (ndarray): Number of the image, shape (N,), int64.
    """
    scores: np.ndarray
    hits: np.ndarray
    counts: np.ndarray
    images: np.ndarray

    def of_keypoint(self, k: int) -> 'Keypoints':
        """Only one of the K keypoints, shape (N, 1)."""
        return Keypoints._make([*(values[:, k:k + 1] for values in self[:3]), self.images])


def judge_keypoints(predicted, annotated, visible, sizes, rule: PoseRule,
                    sigmas=None) -> Tuple[np.ndarray, np.ndarray]:
    """Which keypoints hit, and which count.

    Args:
        predicted (array): Keypoints in pixels, shape (N, K, 2).
        annotated (array): The same, annotated.
        visible (array): Which are annotated, shape (N, K).
        sizes (array): For PCK the reference size in pixels, for OKS the area in square pixels,
            shape (N,). An instance whose size is 0 does not count.
        rule (PoseRule): When a keypoint is right.
        sigmas (array, optional): The data set's per-keypoint deviations, for OKS, shape (K,).

    Returns:
        tuple[ndarray, ndarray]: Hits and what counts, shape (N, K) each, bool.

    Raises:
        ValueError: If a predicted keypoint, or an annotated one that is visible, is not finite.
    """
    predicted, annotated = np.asarray(predicted), np.asarray(annotated)
    visible, sizes = np.asarray(visible, bool), np.asarray(sizes)
    for name, points in (('predicted', predicted), ('annotated', annotated[visible])):
        if not np.isfinite(points).all():
            raise ValueError(f'some keypoints {name} are not finite')
    counts = visible & (sizes > 0)[:, None]
    sizes = np.where(sizes > 0, sizes, sizes.dtype.type(1))[:, None]
    if rule.hit == 'oks':
        near = oks_terms(predicted, annotated, sizes, sigmas) >= rule.thr
    else:
        near = normalized_distances(predicted, annotated, sizes[..., None]) < rule.thr
    return near & counts, counts


def pose_measures(keypoints: Keypoints, n_bins: int = 25,
                  weights: Optional[np.ndarray] = None) -> Dict[str, float]:
    """The measures that depend on the scores as probabilities (clipped to [0, 1]) and their order.

    Args:
        keypoints (Keypoints): All keypoints, or those of one kind.
        n_bins (int): Score bins. Defaults to 25.
        weights (array, optional): How often each image counts, shape (I,). Defaults to None, once.

    Returns:
        dict[str, float]: ``NLL``, ``ECE``, ``overconfidence``, ``Brier``, and of the unclipped
        scores ``AURC`` and ``EAURC``; nan where undefined.
    """
    counts = keypoints.counts
    scores, hits = keypoints.scores[counts], keypoints.hits[counts]
    if weights is not None:
        weights = np.broadcast_to(weights[keypoints.images][:, None], counts.shape)[counts]
    probs = scores.clip(0, 1)
    # Ranks have the order of the scores, equal ones included, and lie in [0, 1]
    ranks = np.unique(scores, return_inverse=True)[1].reshape(-1) / max(scores.size, 1)
    return dict(
        NLL=nll(probs, hits, weights),
        ECE=ece(probs, hits, n_bins, weights),
        overconfidence=overconfidence(probs, hits, weights),
        Brier=brier(probs, hits, weights),
        AURC=aurc(ranks, hits, weights),
        EAURC=eaurc(ranks, hits, weights))


def clipped_share(keypoints: Keypoints) -> float:
    """Share of the scores that lie outside [0, 1]; nan without any."""
    scores = keypoints.scores[keypoints.counts]
    return float(np.mean((scores < 0) | (scores > 1))) if scores.size else np.nan


def mapped_nll(keypoints: Keypoints, seed: int = 0) -> float:
    """What the scores tell, whatever their scale: nothing need be clipped.

    The negative log-likelihood of the hits under a map of the scores to probabilities, Platt's
    scaling of the scores as they are, that was fitted on the other half of the images. Two models
    whose scores rank alike and part hits from misses alike have the same, whether their scores are
    maxima of a heatmap, of SimCC's outputs or anything else.

    Args:
        keypoints (Keypoints): All keypoints.
        seed (int): Decides which images make a half. Defaults to 0.

    Returns:
        float: In nats, 0 is best; nan if a half has nothing to fit or to measure.
    """
    half = random_half(keypoints.images, seed)
    probs = np.full(keypoints.scores.shape, np.nan)
    for fitted in (half, ~half):
        part = fitted[:, None] & keypoints.counts
        rest = ~fitted[:, None] & keypoints.counts
        if not part.any() or not rest.any():
            return np.nan
        calibrator = fit_calibrator('platt', keypoints.scores[part], keypoints.hits[part],
                                    np.zeros(part.sum(), np.int64), ['all'], task='pose')
        probs[rest] = calibrator(keypoints.scores[rest])
    return nll(probs[keypoints.counts], keypoints.hits[keypoints.counts])


def pose_intervals(keypoints: Keypoints, n_bins: int = 25, n: int = 1000, seed: int = 0,
                   level: float = 0.95) -> Dict[str, Tuple[float, float]]:
    """Bootstrap intervals over images of :func:`pose_measures`.

    Args:
        keypoints (Keypoints): All keypoints.
        n_bins (int): Score bins. Defaults to 25.
        n (int): How often to draw. Defaults to 1000.
        seed (int): Of the draws. Defaults to 0.
        level (float): Confidence level. Defaults to 0.95.
    """
    n_images = int(keypoints.images.max(initial=-1)) + 1
    return bootstrap(lambda weights: pose_measures(keypoints, n_bins, weights), n_images, n, seed,
                     level)
