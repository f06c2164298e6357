"""Calibration and reliability of scores against hits: the formulas, in plain NumPy.

A *score* is the probability a model gives to one prediction, a *hit* says whether the prediction
was right (for a detection: matched to an object, see :mod:`mmskd.evaluation.matching`). All
functions take them as arrays of shape (N,), scores in [0, 1], and return a float. They raise
``ValueError`` for arrays of different lengths or scores outside [0, 1], and return ``nan`` where
the quantity is undefined, such as the error of no prediction at all.

None of them depends on the order of the predictions, equal scores included, nor on how often the
whole data set is repeated.
"""
from typing import NamedTuple, Sequence, Tuple

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


def reliability_bins(scores, hits, n_bins: int = 25) -> ReliabilityBins:
    """Sort predictions into score bins [k / n_bins, (k + 1) / n_bins); 1 joins the last bin.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): 1 for a hit and 0 for a miss, or any target in [0, 1], shape (N,).
        n_bins (int): Number of bins. Defaults to 25.

    Returns:
        ReliabilityBins: Mean score, mean hit and count of each bin.
    """
    scores, hits = _as_arrays(scores, hits)
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.searchsorted(edges[1:-1], scores, side='right')
    count = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid='ignore'):  # 0 / 0 in an empty bin is nan, as documented
        return ReliabilityBins(
            confidence=np.bincount(bins, scores, n_bins) / count,
            precision=np.bincount(bins, hits, n_bins) / count,
            count=count)


def ece(scores, hits, n_bins: int = 25) -> float:
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

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.
    """
    bins = reliability_bins(scores, hits, n_bins)
    if not bins.count.any():
        return np.nan
    gaps = np.abs(bins.confidence - bins.precision)
    return float(np.nansum(bins.count * gaps) / bins.count.sum())


def laece(scores, hits, ious, n_bins: int = 25) -> float:
    r"""Localisation-aware expected calibration error (LaECE) of one class.

    .. math:: \sum_j \frac{|D_j|}{|D|} \,
        |\bar p_j - \mathrm{precision}(j) \times \overline{\mathrm{IoU}}(j)|

    with the mean IoU of the hits in bin j: a score should tell how well the box fits, not only that
    it does. Oksuz et al., "Towards Building Self-Aware Object Detectors via Reliable Uncertainty
    Quantification and Calibration", CVPR 2023, which averages it over the classes.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        ious (array): IoU of each hit with its object, shape (N,); not read for misses.
        n_bins (int): Number of bins. Defaults to 25, the paper's.

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.
    """
    # precision times the mean IoU of the hits is the mean over all, where a miss counts as IoU 0
    return ece(scores, np.where(hits, ious, 0.), n_bins)


def nll(scores, hits) -> float:
    r"""Negative log-likelihood of the hits, in nats.

    .. math:: -\frac{1}{N} \sum_i h_i \log p_i + (1 - h_i) \log (1 - p_i)

    A proper scoring rule: lowest, in expectation, for the true probability of a hit (Gneiting &
    Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 2007). Models score
    in float32, where a score of exactly 0 or 1 means "nearer than float32 can tell"; scores are
    therefore kept float32's machine epsilon, 1.2e-7, away from both (at most 15.9 nats each).

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).

    Returns:
        float: 0 is best; nan without predictions.
    """
    scores, hits = _as_arrays(scores, hits)
    eps = np.finfo(np.float32).eps
    scores = np.clip(scores, eps, 1 - eps)
    return _mean(-np.log(np.where(hits, scores, 1 - scores)))


def brier(scores, hits) -> float:
    r"""Brier score, the mean squared error of the scores.

    .. math:: \frac{1}{N} \sum_i (p_i - h_i)^2

    Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review
    1950; in the form for one event.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.
    """
    scores, hits = _as_arrays(scores, hits)
    return _mean((scores - hits) ** 2)


def risk_coverage(scores, hits) -> Tuple[np.ndarray, np.ndarray]:
    """Risk-coverage curve: what is wrong among the predictions kept above each score threshold.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).

    Returns:
        tuple[ndarray, ndarray]: Coverage (share of predictions kept, ascending, ends at 1) and risk
        (share of misses among them), shape (T,) each, for the T distinct scores from the highest.
    """
    scores, hits = _as_arrays(scores, hits)
    order, last = _thresholds(scores)
    kept = last + 1
    return kept / max(len(scores), 1), np.cumsum(1 - hits[order])[last] / kept


def aurc(scores, hits) -> float:
    r"""Area under the risk-coverage curve.

    .. math:: \frac{1}{N} \sum_i r(p_i)

    with the risk :math:`r(\theta)`, the share of misses among the predictions with a score of at
    least :math:`\theta`. Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep
    Neural Classifiers", ICLR 2019. It judges the order of the scores, not their values.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.
    """
    coverage, risk = risk_coverage(scores, hits)
    if not coverage.size:
        return np.nan
    return float(np.sum(np.diff(coverage, prepend=0.) * risk))


def eaurc(scores, hits) -> float:
    r"""Excess-AURC: the AURC above that of the best order of the same predictions.

    .. math:: \mathrm{AURC} - \left(r + (1 - r) \log (1 - r)\right)

    where r is the share of misses. The subtrahend is the paper's integral for the AURC of the order
    that puts every hit before every miss (Geifman, Uziel & El-Yaniv, ICLR 2019). It is a lower
    bound for finite N, so that even the best order keeps an excess of order 1 / N.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).

    Returns:
        float: In [0, 1], 0 is best; nan without predictions.
    """
    area = aurc(scores, hits)
    if np.isnan(area):
        return np.nan
    right = float(np.mean(hits, dtype=np.float64))
    best = 1 - right + right * np.log(right) if right else 1.
    return float(area - best)


def olrp(scores, hits, ious, n_objects: int, iou_thr: float) -> float:
    r"""Optimal localisation-recall-precision error (oLRP) of one class.

    .. math:: \min_s \frac{1}{N_{TP} + N_{FP} + N_{FN}} \left( \sum_{TP}
        \frac{1 - \mathrm{IoU}}{1 - \tau} + N_{FP} + N_{FN} \right)

    over the score threshold s, which decides what is a detection, for hits at an IoU of at least
    :math:`\tau`. Oksuz et al., "One Metric to Measure Them All: Localisation Recall Precision (LRP)
    for Evaluating Visual Detection Tasks", TPAMI 2021, which averages it over the classes.

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): Hits, shape (N,).
        ious (array): IoU of each hit with its object, shape (N,); not read for misses.
        n_objects (int): Objects to be found.
        iou_thr (float): The IoU :math:`\tau` at which the hits were decided, below 1.

    Returns:
        float: In [0, 1], 0 is best; 1 without detections, nan without objects.
    """
    scores, hits = _as_arrays(scores, hits)
    if not n_objects:
        return np.nan
    order, last = _thresholds(scores)
    misfit = np.where(hits, 1 - np.asarray(ious, np.float64), 0.) / (1 - iou_thr)
    tp = np.cumsum(hits[order])[last]
    fp = last + 1 - tp
    lrp = (np.cumsum(misfit[order])[last] + fp + n_objects - tp) / (fp + n_objects)
    return float(np.min(lrp, initial=1.))  # 1 is the error of a threshold above all scores


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of the values that are not nan, as of a metric over classes; nan if there are none."""
    return _mean([value for value in values if not np.isnan(value)])


def _as_arrays(scores, hits) -> Tuple[np.ndarray, np.ndarray]:
    scores, hits = np.asarray(scores, np.float64), np.asarray(hits, np.float64)
    if scores.ndim != 1 or scores.shape != hits.shape:
        raise ValueError('scores and hits must be one-dimensional and of equal length, '
                         f'got {scores.shape} and {hits.shape}')
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError('scores must be probabilities in [0, 1], '
                         f'got {scores.min()} to {scores.max()}')
    return scores, hits


def _thresholds(scores) -> Tuple[np.ndarray, np.ndarray]:
    """Descending order of the scores, and in it the last position of each distinct score.

    A threshold keeps equal scores together, so only the ends of ties are points of a curve.
    """
    order = np.argsort(-scores, kind='stable')
    is_last = np.append(np.diff(scores[order]) != 0, True)[:len(scores)]
    return order, np.flatnonzero(is_last)


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else np.nan
