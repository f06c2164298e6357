"""Means with confidence intervals over seeds, and differences that are paired by seed."""
from typing import Dict, Hashable, NamedTuple, Sequence

import numpy as np
from scipy.stats import t


class Interval(NamedTuple):
    """A mean and how far its confidence interval reaches to both sides.

    Attributes:
        mean (float): The mean; nan without values.
        margin (float): Half the width of the interval; nan with fewer than two values.
        n (int): Number of values.
    """
    mean: float
    margin: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """bool: Whether all of the interval is on one side of 0; False where there is none."""
        return bool(abs(self.mean) > self.margin)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    r"""Mean and Student's t interval, for values that are about normally distributed.

    .. math:: \bar x \pm t_{(1 + level) / 2, \, n - 1} \; s / \sqrt n

    Args:
        values (sequence[float]): One value per seed; nan is left out.
        level (float): Confidence level. Defaults to 0.95.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n < 2:
        return Interval(float(values[0]) if n else np.nan, np.nan, n)
    margin = t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return Interval(float(values.mean()), float(margin), n)


def paired_difference(values: Dict[Hashable, float], baseline: Dict[Hashable, float],
                      level: float = 0.95) -> Interval:
    """Mean of ``values[seed] - baseline[seed]`` over the seeds that both have.

    What the seed decides (initial weights, order of the images) is the same on both sides of a pair
    and cancels, so that the interval is narrower than that of the two means.

    Args:
        values (dict): Value of each seed.
        baseline (dict): The same of the baseline.
        level (float): Confidence level. Defaults to 0.95.
    """
    return mean_interval([values[seed] - baseline[seed] for seed in values if seed in baseline],
                         level)
