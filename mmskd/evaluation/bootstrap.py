"""Intervals for values of one data set: what if other images like these had been drawn?"""
from typing import Callable, Dict, Tuple

import numpy as np


def bootstrap(statistic: Callable[[np.ndarray], Dict[str, float]],
              n_images: int,
              n: int = 1000,
              seed: int = 0,
              level: float = 0.95) -> Dict[str, Tuple[float, float]]:
    """Percentile bootstrap over images.

    Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979.

    Images are drawn with replacement, each with all that is on it, as many as there are; and again.
    The interval says how much a value depends on which images were in the data set; not how much
    another training would change it.

    Args:
        statistic (callable): Takes how often each image was drawn, shape (n_images,), int64, and
            returns values by name.
        n_images (int): Images of the data set.
        n (int): How often to draw. Defaults to 1000.
        seed (int): Of the draws. Defaults to 0.
        level (float): Confidence level. Defaults to 0.95.

    Returns:
        dict[str, tuple[float, float]]: Lower and upper end by name; nan where a value is undefined
        in all draws, or with less than two images.
    """
    rng = np.random.default_rng(seed)
    share = np.full(n_images, 1 / max(n_images, 1))
    draws = [statistic(rng.multinomial(n_images, share)) for _ in range(n if n_images > 1 else 0)]
    names = draws[0] if draws else statistic(np.ones(n_images, np.int64))
    return {name: _ends([draw[name] for draw in draws], level) for name in names}


def _ends(values, level: float) -> Tuple[float, float]:
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
