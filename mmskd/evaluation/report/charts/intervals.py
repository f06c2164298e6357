"""A value of each class or keypoint as a point with its interval, group beside group."""
from typing import Sequence

import numpy as np
from matplotlib.figure import Figure

from .chart import (
    ROW,
    SIZE,
    TOGETHER,
    Chart,
    faceted_size,
    facets,
    label_axes,
    legend_rows,
    line_style,
    short,
)
from .curves import limits
from .theme import Theme


def intervals(name: str, title: str, labels: Sequence[str], means: np.ndarray, margins: np.ndarray,
              shown: Sequence[int], names: Sequence[str]) -> Chart:
    """Points in a row for each class, in each group's colour and marker, with whiskers.

    Args:
        name (str): Name of the chart.
        title (str): What is measured.
        labels (sequence[str]): C classes or keypoints.
        means (ndarray): Shape (groups, C), nan where undefined.
        margins (ndarray): Half the widths of the intervals, nan for none; shape (groups, C).
        shown (sequence[int]): The groups of the rows.
        names (sequence[str]): Names of all groups.
    """
    low, high = means - np.nan_to_num(margins), means + np.nan_to_num(margins)
    inside = np.clip([low, high], *((0, 1) if np.nanmin(means, initial=0) >= 0 and
                                    np.nanmax(means, initial=1) <= 1 else (-np.inf, np.inf)))
    ends = inside[np.isfinite(inside)]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = facets(figure, shown, names, theme)
        y = np.arange(len(labels))
        for axes, groups in panels:
            step = 0.7 / len(groups)
            for i, group in enumerate(groups):
                row, style = list(shown).index(group), line_style(group, theme)
                axes.errorbar(
                    means[row], y + (i - (len(groups) - 1) / 2) * step,
                    xerr=None if np.isnan(margins[row]).all() else np.nan_to_num(margins[row]),
                    fmt=style['marker'], color=style['color'], ms=5, lw=0, elinewidth=1.3)
            axes.set_yticks(y, [short(str(text).replace('_', ' '), 22) for text in labels])
            axes.set_ylim(len(labels) - 0.4, -0.6)
            axes.set_xlim(limits(ends) if len(ends) else (0, 1))
            axes.locator_params(axis='x', nbins=5)
            axes.grid(axis='y', visible=False)
            for edge in y[1:] - 0.5:
                axes.axhline(edge, color=theme.muted, lw=0.5, alpha=0.25)
        label_axes(figure, [axes for axes, _ in panels], title)

    rows = [f'{text}: ' + ', '.join(f'{names[group]} {means[i][k]:.2f}'
                                    for i, group in enumerate(shown))
            for k, text in enumerate(labels)]
    if len(shown) <= TOGETHER:
        size = SIZE[0], 0.9 + len(labels) * max(0.15 * len(shown), 0.26) + \
            ROW * legend_rows(shown, names)
    else:
        size = SIZE[0], faceted_size(shown, names)[1] * max(1, len(labels) * 0.26 / 1.5)
    return Chart(name, title, '; '.join(rows) + '.', draw, size)
