"""Temperature scaling: one number, fitted after training, that makes scores more or less sure."""
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

EPS = float(np.finfo(np.float32).eps)


def apply_temperature(scores, temperature: float) -> np.ndarray:
    r"""Divide the logits of scores by a temperature.

    .. math:: q = \sigma(\mathrm{logit}(p) / T)

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, for one event. Of a sigmoid
    score, and of a softmax over two classes, p is all there is to know and this is the paper's
    method. Of a softmax over more classes, and of a product of scores (class times centerness or
    objectness), the paper's divides logits that the prediction no longer shows; this one treats the
    final score as the probability of a hit, which is Platt's scaling with the offset held at 0.

    The map rises with p, so that it changes no order of predictions, and keeps 0.5 where it is.

    Args:
        scores (array): Scores in [0, 1], any shape. They are kept float32's machine epsilon away
            from 0 and 1, as :func:`~mmskd.evaluation.calibration.nll` does.
        temperature (float): T, above 0; above 1 it makes scores less sure. With 1 the scores come
            back as they are.

    Returns:
        ndarray: Scores in [0, 1], of the same shape, float64.

    Raises:
        ValueError: If a score is outside [0, 1].
    """
    scores = np.asarray(scores, np.float64)
    return scores if temperature == 1 else expit(_logits(scores) / temperature)


def fit_temperature(scores, hits) -> float:
    r"""The temperature with the lowest negative log-likelihood of the hits.

    With z the logit of a score and s = 1 for a hit and -1 for a miss, the likelihood is a convex
    function of 1 / T, and its derivative is zero in one place:

    .. math:: \sum_i s_i z_i \, \sigma(-s_i z_i / T) = 0

    Args:
        scores (array): Scores in [0, 1], shape (N,).
        hits (array): 1 for a hit and 0 for a miss, shape (N,).

    Returns:
        float: T, above 0.

    Raises:
        ValueError: If a score is outside [0, 1].
        ValueError: If there is no such temperature: without predictions; if every score is on the
            right side of 0.5, so that surer is always better (T = 0); or if a score of 0.5 for all
            fits better than theirs at any T, as of a model that is right more often than its low
            scores say. One number that keeps 0.5 in place cannot mend that.
    """
    margins = np.where(hits, 1, -1) * _logits(np.asarray(scores, np.float64))  # s z
    if not margins.size:
        raise ValueError('no temperature can be fitted: there are no predictions')
    if margins.mean() <= 0:
        raise ValueError('no temperature fits: a score of 0.5 for all would fit better than these '
                         'at any temperature')
    if margins.min() >= 0:
        raise ValueError('no temperature fits: every score is on the right side of 0.5, so the '
                         'best temperature is 0')

    def slope(inverse: float) -> float:
        return float(-np.mean(margins * expit(-inverse * margins)))

    above = 1.
    while slope(above) < 0:
        above *= 2
    return 1 / brentq(slope, 0, above, xtol=1e-12)


def _logits(scores: np.ndarray) -> np.ndarray:
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError('scores must be probabilities in [0, 1], '
                         f'got {scores.min()} to {scores.max()}')
    return logit(np.clip(scores, EPS, 1 - EPS))
