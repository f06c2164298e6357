"""Calibration and reliability of scores against hits: the formulas, in plain NumPy.

A *score* is the probability a model gives to one prediction, a *hit* says whether the prediction
was right (for a detection: matched to an object, see :mod:`mmskd.evaluation.matching`). All
functions take them as arrays of shape (N,), scores in [0, 1], and return a float. They raise
``ValueError`` for arrays of different lengths, scores outside [0, 1] or less than one bin, and
return ``nan`` where the quantity is undefined, such as the error of no prediction at all.

Where there are ``weights``, they say how often each prediction counts, shape (N,); by default once.
Bootstrap samples of images are weights.

None of them depends on the order of the predictions, equal scores included, nor on how often the
whole data set is repeated.
"""
from typing import NamedTuple, Optional, Sequence, Tuple

import numpy as np


class ReliabilityBins(NamedTuple):
    """What a reliability diagram shows, one entry per bin of equal width on [0, 1].

    Attributes:
        confidence (ndarray): Mean score, shape (n_bins,), nan where the bin is empty.
        precision (ndarray): Mean hit, shape (n_bins,), nan where the bin is empty.
        count (ndarray): Number of predictions, shape (n_bins,), int64.
    """
    confidence: np.ndarray
    precision: np.ndarray
    count: np.ndarray


class LRP(NamedTuple):
    """Localisation-recall-precision error with its components, all in [0, 1], 0 is best.

    Attributes:
        total (float or ndarray): The error; 1 without detections, nan without objects.
        localisation (float or ndarray): Mean 1 - IoU of the hits; nan without hits.
        false_positives (float or ndarray): Share of misses among the detections, 1 - precision;
            nan without detections.
        false_negatives (float or ndarray): Share of the objects not found, 1 - recall; nan without
            objects.
    """
    total: np.ndarray
    localisation: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray


def reliability_bins(scores, hits, n_bins: int = 25) -> ReliabilityBins:
    """Sort predictions into score bins [k / n_bins, (k + 1) / n_bins); 1 joins the last bin.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): 1 for a hit and 0 for a miss, or any target in [0, 1], shape (N,).
        n_bins (int): Number of bins. Defaults to 25.

    Returns:
        ReliabilityBins: Mean score, mean hit and count of each bin.
    """
    scores, hits, _ = _as_arrays(scores, hits)
    bins = score_bins(scores, n_bins, 'right')
    count = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid='ignore'):  # 0 / 0 in an empty bin is nan, as documented
        return ReliabilityBins(
            confidence=np.bincount(bins, scores, n_bins) / count,
            precision=np.bincount(bins, hits, n_bins) / count,
            count=count)


def ece(scores, hits, n_bins: int = 25, weights=None) -> float:
    r"""Expected calibration error in score bins; of detections, the D-ECE.

    .. math:: \sum_j \frac{|D_j|}{|D|} \, |\bar p_j - \mathrm{precision}(j)|

    with the mean score :math:`\bar p_j` and the share of hits, precision(j), of the predictions
    :math:`D_j` in bin j. Kueppers et al., "Multivariate Confidence Calibration for Object
    Detection", CVPR Workshops 2020 (here in its confidence-only form); Naeini et al., "Obtaining
    Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015, for classification. The same
    number as netcal's ECE and torchmetrics' binary calibration error (norm l1), except that the
    latter gives scores of exactly 1 a bin of their own.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        n_bins (int): Number of bins; papers use 10 to 25. Defaults to 25.
        weights (array, optional): How often each counts, shape (N,). Defaults to None, once.

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.

    Example:
        >>> round(ece([0.9, 0.9, 0.6], [1, 0, 1], n_bins=10), 3)
        0.4
    """
    scores, hits, weights = _as_arrays(scores, hits, weights)
    labels = np.zeros(len(scores), np.int64)
    return float(_mean_gap(scores, hits, labels, 1, n_bins, weights, 'right')[0])


def overconfidence(scores, hits, weights=None) -> float:
    r"""Mean score minus mean hit: the sign that calibration errors do not have.

    .. math:: \frac{1}{N} \sum_i p_i - h_i

    The error of one bin over all scores, with its sign, and no larger than :func:`ece`. Softer
    targets lower scores, so they suit a model that is overconfident, and hardly one that is not.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, or any targets in [0, 1], shape (N,).
        weights (array, optional): How often each counts, shape (N,). Defaults to None, once.

    Returns:
        float: In [-1, 1]; above 0 the scores are too high, below too low; nan without predictions.

    Example:
        >>> round(overconfidence([0.9, 0.8], [1, 0]), 3)
        0.35
    """
    scores, hits, weights = _as_arrays(scores, hits, weights)
    return _mean(scores - hits, weights)


def laece(scores, hits, ious, n_bins: int = 25) -> float:
    r"""Localisation-aware expected calibration error (LaECE) of one class.

    .. math:: \sum_j \frac{|D_j|}{|D|} \,
        |\bar p_j - \mathrm{precision}(j) \times \overline{\mathrm{IoU}}(j)|

    with the mean IoU of the hits in bin j: a score should tell how well the box fits, not only that
    it does. Oksuz et al., "Towards Building Self-Aware Object Detectors via Reliable Uncertainty
    Quantification and Calibration", CVPR 2023, which averages it over the classes. Where any
    overlap is a hit, it is the LaECE_0 of Kuzucu et al., "On Calibration of Object Detectors:
    Pitfalls, Evaluation and Baselines", ECCV 2024. As in the code of both, a score on the edge of
    two bins is in the lower one.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        ious (array): IoU of each hit with its object, shape (N,); not read for misses.
        n_bins (int): Number of bins. Defaults to 25, the papers'.

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.

    Example:
        >>> round(laece([0.9, 0.9], [1, 0], [0.8, 0.], n_bins=10), 3)
        0.5
    """
    labels = np.zeros(len(scores), np.int64)
    return float(laece_by_class(scores, hits, ious, labels, 1, n_bins)[0])


def laece_by_class(scores, hits, ious, labels, n_classes: int, n_bins: int = 25) -> np.ndarray:
    """:func:`laece` of each class, shape (n_classes,), for predictions with labels, shape (N,)."""
    # precision times the mean IoU of the hits is the mean over all, where a miss counts as IoU 0
    scores, fits, weights = _as_arrays(scores, np.where(hits, ious, 0.))
    return _mean_gap(scores, fits, labels, n_classes, n_bins, weights, 'left')


def laace(scores, hits, ious) -> float:
    r"""Localisation-aware adaptive calibration error (LaACE) of one class.

    .. math:: \frac{1}{N} \sum_i |p_i - \mathrm{IoU}_i|

    where a miss has IoU 0: the LaECE with a bin for each prediction, so that no bin can balance
    scores that are too high by others that are too low. Kuzucu et al., ECCV 2024, which averages it
    over the classes; where any overlap is a hit, their LaACE_0.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        ious (array): IoU of each hit with its object, shape (N,); not read for misses.

    Returns:
        float: In [0, 1], 0 is best (and out of reach); nan without predictions.

    Example:
        >>> round(laace([0.9, 0.3], [1, 0], [0.8, 0.]), 3)
        0.2
    """
    scores, fits, _ = _as_arrays(scores, np.where(hits, ious, 0.))
    return _mean(np.abs(scores - fits))


def nll(scores, hits, weights=None) -> float:
    r"""Negative log-likelihood of the hits, in nats.

    .. math:: -\frac{1}{N} \sum_i h_i \log p_i + (1 - h_i) \log (1 - p_i)

    A proper scoring rule: lowest, in expectation, for the true probability of a hit (Gneiting &
    Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 2007). Models score
    in float32, where a score of exactly 0 or 1 means "nearer than float32 can tell"; scores are
    therefore kept float32's machine epsilon, 1.2e-7, away from both (at most 15.9 nats each).

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        weights (array, optional): How often each counts, shape (N,). Defaults to None, once.

    Returns:
        float: 0 is best; nan without predictions.

    Example:
        >>> round(nll([0.5, 0.5], [1, 0]), 3)
        0.693
    """
    scores, hits, weights = _as_arrays(scores, hits, weights)
    eps = np.finfo(np.float32).eps
    scores = np.clip(scores, eps, 1 - eps)
    return _mean(-np.log(np.where(hits, scores, 1 - scores)), weights)


def brier(scores, hits, weights=None) -> float:
    r"""Brier score, the mean squared error of the scores.

    .. math:: \frac{1}{N} \sum_i (p_i - h_i)^2

    Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review
    1950; in the form for one event.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        weights (array, optional): How often each counts, shape (N,). Defaults to None, once.

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.

    Example:
        >>> round(brier([0.9, 0.2], [1, 0]), 3)
        0.025
    """
    scores, hits, weights = _as_arrays(scores, hits, weights)
    return _mean((scores - hits) ** 2, weights)


def risk_coverage(scores, hits, weights=None) -> Tuple[np.ndarray, np.ndarray]:
    """Risk-coverage curve: what is wrong among the predictions kept above each score threshold.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        weights (array, optional): How often each counts, shape (N,). Defaults to None, once.

    Returns:
        tuple[ndarray, ndarray]: Coverage (share of predictions kept, ascending, ends at 1) and risk
        (share of misses among them), shape (T,) each, for the T distinct scores from the highest.
    """
    scores, hits, weights = _as_arrays(scores, hits, weights)
    present = weights > 0
    scores, hits, weights = scores[present], hits[present], weights[present]
    order, last = _thresholds(scores)
    kept = np.cumsum(weights[order])
    wrong = np.cumsum((weights * (1 - hits))[order])[last]
    return kept[last] / (kept[-1] if kept.size else 1.), wrong / kept[last]


def aurc(scores, hits, weights=None) -> float:
    r"""Area under the risk-coverage curve.

    .. math:: \frac{1}{N} \sum_i r(p_i)

    with the risk :math:`r(\theta)`, the share of misses among the predictions with a score of at
    least :math:`\theta`. Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep
    Neural Classifiers", ICLR 2019. It judges the order of the scores, not their values.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        weights (array, optional): How often each counts, shape (N,). Defaults to None, once.

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.

    Example:
        >>> round(aurc([0.9, 0.6], [1, 0]), 3)
        0.25
    """
    coverage, risk = risk_coverage(scores, hits, weights)
    if not coverage.size:
        return np.nan
    return float(np.sum(np.diff(coverage, prepend=0.) * risk))


def eaurc(scores, hits, weights=None) -> float:
    r"""Excess-AURC: the AURC above that of the best order of the same predictions.

    .. math:: \mathrm{AURC} - \left(r + (1 - r) \log (1 - r)\right)

    where r is the share of misses. The subtrahend is the paper's integral for the AURC of the order
    that puts every hit before every miss (Geifman, Uziel & El-Yaniv, ICLR 2019). It is a lower
    bound for finite N, so that even the best order keeps an excess of order 1 / N.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        weights (array, optional): How often each counts, shape (N,). Defaults to None, once.

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.
    """
    area = aurc(scores, hits, weights)
    if np.isnan(area):
        return np.nan
    right = float(np.average(hits, weights=weights))
    best = 1 - right + right * np.log(right) if right else 1.
    return float(area - best)


def lrp(hits, ious, n_objects: int, iou_thr: float) -> LRP:
    r"""Localisation-recall-precision error (LRP) of one class, with its components.

    .. math:: \frac{1}{N_{TP} + N_{FP} + N_{FN}} \left( \sum_{TP}
        \frac{1 - \mathrm{IoU}}{1 - \tau} + N_{FP} + N_{FN} \right)

    for hits at an IoU of at least :math:`\tau`. Oksuz et al., "One Metric to Measure Them All:
    Localisation Recall Precision (LRP) for Evaluating Visual Detection Tasks", TPAMI 2021, which
    averages over the classes.

    Args:
        hits (array): Hits among the detections that are kept, shape (N,).
        ious (array): IoU of each hit with its object, shape (N,); not read for misses.
        n_objects (int): Objects to be found.
        iou_thr (float): The IoU :math:`\tau` at which the hits were decided, below 1.

    Returns:
        LRP: The error and its components.
    """
    misfit = np.where(hits, 1 - np.asarray(ious, np.float64), 0.).sum()
    return LRP(*map(float, lrp_of_sums(np.sum(hits), len(hits), misfit, n_objects, iou_thr)))


def lrp_of_sums(n_hits, n_detections, misfit, n_objects, iou_thr: float) -> LRP:
    """:func:`lrp` of the numbers of hits, detections and objects, and the hits' sum of 1 - IoU.

    They are numbers, or arrays of the same shape.
    """
    wrong, missed = n_detections - n_hits, n_objects - n_hits
    total = ratio(misfit / (1 - iou_thr) + wrong + missed, n_detections + missed)
    return LRP(np.where(n_objects > 0, total, np.nan), ratio(misfit, n_hits),
               ratio(wrong, n_detections), ratio(missed, n_objects))


def olrp(scores, hits, ious, n_objects: int, iou_thr: float) -> float:
    r"""Optimal localisation-recall-precision error (oLRP) of one class.

    The :func:`lrp` at the score threshold where it is lowest (Oksuz et al., TPAMI 2021).

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        ious (array): IoU of each hit with its object, shape (N,); not read for misses.
        n_objects (int): Objects to be found.
        iou_thr (float): The IoU :math:`\tau` at which the hits were decided, below 1.

    Returns:
        float: In [0, 1], 0 is best; 1 without detections, nan without objects.
    """
    labels = np.zeros(len(scores), np.int64)
    return float(optimal_lrp_by_class(scores, hits, ious, labels, [n_objects], iou_thr)[0][0])


def lrp_optimal_threshold(scores, hits, ious, n_objects: int, iou_thr: float) -> float:
    """The score from which on detections of one class are kept for the lowest :func:`lrp`.

    It takes what :func:`olrp` takes.

    Returns:
        float: The score of a detection, the highest of those that are equally good; nan if none is
        better than to keep nothing, as where nothing hits.
    """
    labels = np.zeros(len(scores), np.int64)
    return float(optimal_lrp_by_class(scores, hits, ious, labels, [n_objects], iou_thr)[1][0])


def optimal_lrp_by_class(scores, hits, ious, labels, n_objects,
                         iou_thr: float) -> Tuple[np.ndarray, np.ndarray]:
    """:func:`olrp` and :func:`lrp_optimal_threshold` of each of C classes, shape (C,) each.

    It takes what :func:`olrp` takes, and the labels of the predictions (N,); ``n_objects`` is (C,).
    """
    scores, hits, _ = _as_arrays(scores, hits)
    labels, n_objects = np.asarray(labels, np.int64), np.asarray(n_objects, np.int64)
    lowest = np.where(n_objects > 0, 1., np.nan)  # of a threshold above all scores
    thresholds = np.full(len(n_objects), np.nan)
    order = np.lexsort((-scores, labels))
    scores, hits, labels = scores[order], hits[order], labels[order]
    misfit = np.where(hits, 1 - np.asarray(ious, np.float64)[order], 0.) / (1 - iou_thr)
    first = np.searchsorted(labels, labels, 'left')
    tp, misfit = (np.append(0., np.cumsum(of)) for of in (hits, misfit))
    rank = np.arange(1, len(labels) + 1)
    tp, misfit = tp[rank] - tp[first], misfit[rank] - misfit[first]
    fp = rank - first - tp
    errors = (misfit + fp + n_objects[labels] - tp) / np.maximum(fp + n_objects[labels], 1)
    # A threshold keeps equal scores together
    possible = (np.diff(labels, append=-1) != 0) | (np.diff(scores, append=-1.) != 0)
    possible = np.flatnonzero(possible & (n_objects[labels] > 0))
    best = possible[np.lexsort((possible, errors[possible], labels[possible]))]
    best = best[np.diff(labels[best], prepend=-1) != 0]
    best = best[errors[best] < 1]
    lowest[labels[best]], thresholds[labels[best]] = errors[best], scores[best]
    return lowest, thresholds


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of the values that are not nan, as of a metric over classes; nan if there are none."""
    values = np.asarray(values, np.float64)
    return _mean(values[~np.isnan(values)])


def score_bins(scores: np.ndarray, n_bins: int, side: str) -> np.ndarray:
    """The bin of each score; one on an edge is in the bin on that side of it."""
    if n_bins < 1 or n_bins != int(n_bins):
        raise ValueError(f'n_bins must be a positive whole number, got {n_bins}')
    return np.searchsorted(np.linspace(0, 1, int(n_bins) + 1)[1:-1], scores, side)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotients; nan where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _as_arrays(scores, hits, weights=None) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, hits = np.asarray(scores, np.float64), np.asarray(hits, np.float64)
    if scores.ndim != 1 or scores.shape != hits.shape:
        raise ValueError('scores and hits must be one-dimensional and of equal length, '
                         f'got {scores.shape} and {hits.shape}')
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError('scores must be probabilities in [0, 1], '
                         f'got {scores.min()} to {scores.max()}')
    weights = np.ones_like(scores) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != scores.shape:
        raise ValueError(f'weights must have the shape of the scores, {scores.shape}, '
                         f'got {weights.shape}')
    return scores, hits, weights


def _mean_gap(scores, targets, labels, n_classes: int, n_bins: int, weights, side) -> np.ndarray:
    """Of each class the gap between mean score and mean target of a bin, averaged by its weight."""
    bins = np.asarray(labels) * int(n_bins) + score_bins(scores, n_bins, side)
    gaps = np.abs(np.bincount(bins, weights * (scores - targets), n_classes * n_bins))
    return ratio(gaps.reshape(n_classes, n_bins).sum(1),
                  np.bincount(labels, weights, n_classes))


def _thresholds(scores) -> Tuple[np.ndarray, np.ndarray]:
    """Descending order of the scores, and in it the last position of each distinct score.

    A threshold keeps equal scores together, so only the ends of ties are points of a curve.
    """
    order = np.argsort(-scores, kind='stable')
    is_last = np.append(np.diff(scores[order]) != 0, True)[:len(scores)]
    return order, np.flatnonzero(is_last)


def _mean(values: np.ndarray, weights: Optional[np.ndarray] = None) -> float:
    total = len(values) if weights is None else weights.sum()
    return float(np.average(values, weights=weights)) if total else np.nan
