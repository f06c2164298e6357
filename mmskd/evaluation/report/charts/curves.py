"""What runs logged while they trained."""
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .chart import Chart, faceted_size, facets, label_axes, line_style
from .theme import Theme


class Line(NamedTuple):
    """A curve of one run.

    Attributes:
        group (int): Which group the run belongs to.
        x (ndarray): Shape (N,).
        y (ndarray): Shape (N,).
        counts (bool): Whether it is part of its group's mean. Defaults to True.
    """
    group: int
    x: np.ndarray
    y: np.ndarray
    counts: bool = True


def curves(name: str, title: str, lines: Sequence[Line], groups: Sequence[str],
           unit: str) -> Chart:
    """A logged quantity over the training: a thin line for each seed, a thick one for their mean.

    Args:
        name (str): Name of the chart.
        title (str): What is logged.
        lines (sequence[Line]): One for each run that logged it.
        groups (sequence[str]): Names of all groups.
        unit (str): Of the x axis: epoch or iteration.
    """
    lines = [line._replace(x=line.x[np.isfinite(line.y)], y=line.y[np.isfinite(line.y)])
             for line in lines]
    lines = [line for line in lines if len(line.x)]
    means = {group: mean_line([line for line in lines if line.group == group])
             for group in sorted({line.group for line in lines})}

    def draw(figure: Figure, theme: Theme) -> None:
        panels = facets(figure, list(means), groups, theme)
        for axes, shown in panels:
            for group in shown:
                _draw_group(axes, [line for line in lines if line.group == group], means[group],
                            line_style(group, theme))
            axes.xaxis.set_major_locator(MaxNLocator(6 if len(panels) == 1 else 4, integer=True,
                                                       min_n_ticks=1))
            axes.set(xlim=_span(np.concatenate([line.x for line in lines])),
                     ylim=limits(np.concatenate([line.y for line in lines])))
        label_axes(figure, [axes for axes, _ in panels], title, unit)

    last = [f'{groups[group]} ends at {y[-1]:.3g}' for group, (x, y) in means.items() if len(y)]
    return Chart(name, title, f'Line chart over {unit}s. ' + '; '.join(last) + '.', draw,
                 faceted_size(list(means), groups))


def _draw_group(axes, lines: List[Line], mean: Tuple[np.ndarray, np.ndarray], style: dict) -> None:
    if len(lines) > 1:
        for line in lines:
            axes.plot(line.x, line.y, color=style['color'], lw=0.7, alpha=0.55,
                      ls='-' if line.counts else ':')
    x, y = mean
    axes.plot(x, y, **dict(style, marker=style['marker'] if len(x) <= 40 else None))


def mean_line(lines: Sequence[Line]) -> Tuple[np.ndarray, np.ndarray]:
    """The mean of the lines that count, where all of them have a point.

    Where none counts, the mean of all.
    """
    lines = [line for line in lines if line.counts] or list(lines)
    shared = lines[0].x
    for line in lines[1:]:
        shared = np.intersect1d(shared, line.x)
    return shared, np.mean([line.y[np.isin(line.x, shared)] for line in lines], axis=0)


def limits(values: np.ndarray) -> Tuple[float, float]:
    """A range for an axis: around the values, and not narrower than what matters.

    It does not go beyond 0 and 1 (0 and 100) where all values lie within.
    """
    low, high = float(values.min()), float(values.max())
    least = 0.04 if 0 <= low and high <= 1 else 0.04 * max(abs(low), abs(high), 1e-6)
    pad = max(0.06 * (high - low), (least - (high - low)) / 2)
    floor = 0. if low >= 0 else -np.inf
    ceiling = 1. if 0 <= low and 0.5 <= high <= 1 else 100. if 0 <= low and 50 <= high <= 100 \
        else np.inf
    slack = 0.02 * (high - low + 2 * pad)  # a line along the edge is still seen
    return max(low - pad, floor - slack), min(high + pad, ceiling + slack)


def _span(steps: np.ndarray) -> Tuple[float, float]:
    low, high = float(steps.min()), float(steps.max())
    pad = 0.5 if low == high else 0.03 * (high - low)
    return low - pad, high + pad
