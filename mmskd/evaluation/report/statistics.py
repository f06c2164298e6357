"""Means with confidence intervals over seeds, and differences of two groups of runs."""
from typing import Dict, Hashable, NamedTuple, Sequence

import numpy as np
from scipy.stats import t

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and how far its confidence interval reaches to both sides.

    Attributes:
        mean (float): The mean; nan without values.
        margin (float): Half the width of the interval; nan with fewer than two values.
        n (int): Number of values; of a difference, of the smaller side.
        paired (bool): Of a difference: whether it is the mean of the differences of pairs. Defaults
            to False.
    """
    mean: float
    margin: float
    n: int
    paired: bool = False

    @property
    def excludes_zero(self) -> bool:
        """bool: Whether all of the interval is on one side of 0; False where there is none.

        Values without any spread, as rounded ones may be, have no interval to speak of.
        """
        return bool(abs(self.mean) > self.margin > 1e-12 * abs(self.mean))


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    r"""Mean and Student's t interval, for values that are about normally distributed.

    .. math:: \bar x \pm t_{(1 + level) / 2, \, n - 1} \; s / \sqrt n

    Args:
        values (sequence[float]): One value per seed; nan is left out.
        level (float): Confidence level. Defaults to 0.95.
    """
    known = _defined(values)
    n = len(known)
    if n < 2:
        return Interval(float(known[0]) if n else np.nan, np.nan, n)
    margin = t.ppf((1 + level) / 2, n - 1) * known.std(ddof=1) / np.sqrt(n)
    return Interval(float(known.mean()), float(margin), n)


def paired_difference(values: Dict[Hashable, float], baseline: Dict[Hashable, float],
                      level: float = LEVEL) -> Interval:
    """Mean of ``values[seed] - baseline[seed]`` over the seeds that both have.

    What the seed decides (initial weights, order of the images) is the same on both sides of a pair
    and cancels, so that the interval is narrower than that of the two means.

    Args:
        values (dict): Value of each seed.
        baseline (dict): The same of the baseline.
        level (float): Confidence level. Defaults to 0.95.
    """
    found = mean_interval([values[seed] - baseline[seed] for seed in values if seed in baseline],
                          level)
    return found._replace(paired=True)


def unpaired_difference(values: Sequence[float], baseline: Sequence[float],
                        level: float = LEVEL) -> Interval:
    """Difference of the means of two groups whose spreads may differ.

    Welch, "The Generalization of 'Student's' Problem when Several Different Population Variances
    are Involved", Biometrika 1947.

    Args:
        values (sequence[float]): One value per run; nan is left out.
        baseline (sequence[float]): The same of the baseline.
        level (float): Confidence level. Defaults to 0.95.
    """
    ours, theirs = _defined(values), _defined(baseline)
    n = min(len(ours), len(theirs))
    mean = float(ours.mean() - theirs.mean()) if n else np.nan
    if n < 2:
        return Interval(mean, np.nan, n)
    a, b = (x.var(ddof=1) / len(x) for x in (ours, theirs))
    if a + b == 0:
        return Interval(mean, 0., n)
    freedom = (a + b)**2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
    return Interval(mean, float(t.ppf((1 + level) / 2, freedom) * np.sqrt(a + b)), n)


def difference(values: Dict[Hashable, float], baseline: Dict[Hashable, float]) -> Interval:
    """Paired where at least two seeds have both, else unpaired; of single runs, without interval.

    Args:
        values (dict): Value of each seed.
        baseline (dict): The same of the baseline.
    """
    paired = paired_difference(values, baseline)
    if paired.n >= 2 or paired.n == len(values) == len(baseline) == 1:
        return paired
    return unpaired_difference(list(values.values()), list(baseline.values()))


def _defined(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[~np.isnan(values)]
