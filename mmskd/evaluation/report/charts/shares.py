"""Curves of one share over another: risk over coverage, precision over recall, F1 over score."""
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

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
    legend,
    legend_rows,
    line_style,
    short,
    small_axes,
)
from .theme import Theme

POINTS = 300  # of a curve; the eye sees no more


class Curve(NamedTuple):
    """The curve of a group.

    Attributes:
        group (int): Whose it is.
        x (ndarray): Shape (N,).
        y (ndarray): Shape (N,).
        point (tuple[float, float], optional): One to mark. Defaults to None.
    """
    group: int
    x: np.ndarray
    y: np.ndarray
    point: Optional[Tuple[float, float]] = None


def shares(name: str, title: str, curves: Sequence[Curve], names: Sequence[str],
           axis_labels: Tuple[str, str], alt: str, free_top: bool = False,
           right: float = 1.) -> Chart:
    """Curves of all groups, in axes from 0 to 1.

    Args:
        name (str): Name of the chart.
        title (str): What is shown.
        curves (sequence[Curve]): One for each group.
        names (sequence[str]): Names of all groups.
        axis_labels (tuple[str, str]): Of x and y.
        alt (str): What the chart shows, for those who cannot see it.
        free_top (bool): Whether the y axis may end below 1. Defaults to False.
        right (float): Where the x axis ends. Defaults to 1.
    """
    shown = sorted({curve.group for curve in curves})
    top = max((curve.y.max() for curve in curves if len(curve.y)), default=1.)

    def draw(figure: Figure, theme: Theme) -> None:
        panels = facets(figure, shown, names, theme)
        for axes, groups in panels:
            _draw_curves(axes, [curve for curve in curves if curve.group in groups], theme)
            axes.set(xlim=(0, right), ylim=(0, max(1.06 * top, 0.02) if free_top else 1.02))
        label_axes(figure, [axes for axes, _ in panels], title, *axis_labels)

    return Chart(name, title, alt, draw, faceted_size(shown, names))


def shares_by_class(name: str, title: str, curves: Dict[str, List[Curve]], names: Sequence[str],
                    axis_labels: Tuple[str, str], alt: str, right: float = 1.) -> Chart:
    """The same in small axes of their own for each class or keypoint, for a few groups.

    Args:
        name (str): Name of the chart.
        title (str): What is shown.
        curves (dict[str, list[Curve]]): Those of each class.
        names (sequence[str]): Names of all groups.
        axis_labels (tuple[str, str]): Of x and y.
        alt (str): What the chart shows, for those who cannot see it.
        right (float): Where the x axes end. Defaults to 1.
    """
    shown = sorted({curve.group for of in curves.values() for curve in of})
    rows = -(-len(curves) // 2)
    if len(shown) > TOGETHER:
        raise ValueError(f'{len(shown)} groups are too many for one axes')

    def draw(figure: Figure, theme: Theme) -> None:
        legend(figure, shown, names, theme)
        panels = small_axes(figure, [short(label, 26) for label in curves])
        for axes, of in zip(panels, curves.values()):
            axes.set(xlim=(0, right), ylim=(0, 1.02))
            _draw_curves(axes, of, theme)
        label_axes(figure, panels, title, *axis_labels)

    return Chart(name, title, alt, draw,
                 (SIZE[0], 0.9 + 1.45 * rows + ROW * legend_rows(shown, names)))


def _draw_curves(axes, curves: Sequence[Curve], theme: Theme) -> None:
    for curve in curves:
        style = line_style(curve.group, theme)
        marker = style.pop('marker')
        axes.plot(*thinned(curve.x, curve.y), lw=1.7, **style)
        if curve.point:
            axes.plot(*curve.point, marker=marker, color=style['color'], ms=6, mec=theme.paper,
                      zorder=3, clip_on=False)


def thinned(x: np.ndarray, y: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """So many points of a curve that the eye sees no difference."""
    keep = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int)) if len(x) else []
    return x[keep], y[keep]
