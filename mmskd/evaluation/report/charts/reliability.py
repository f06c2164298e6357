"""Reliability diagrams: can a score be taken at its word?"""
from typing import Dict, Optional, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from ...calibration import ReliabilityBins, reliability_bins
from .chart import SIZE, Chart, line_style, short
from .theme import DASHES, MARKERS, Theme

Z = 1.959964  # of a two-sided 95 % interval of the normal distribution
LEAST = 5  # predictions in a bin that a line of several goes through


def reliability(name: str, title: str, scores: np.ndarray, hits: np.ndarray, group: int = 0,
                n_bins: int = 25, error: Optional[float] = None, noun: str = 'detections') -> Chart:
    """The share of right predictions over their score, and how many there are.

    Args:
        name (str): Name of the chart.
        title (str): Whose predictions these are.
        scores (ndarray): Scores in [0, 1], shape (N,).
        hits (ndarray): Whether right, shape (N,).
        group (int): Decides the colour. Defaults to 0.
        n_bins (int): Score bins. Defaults to 25.
        error (float, optional): Calibration error to write above it. Defaults to None.
        noun (str): What is predicted. Defaults to 'detections'.
    """
    bins = reliability_bins(scores, hits, n_bins)

    def draw(figure: Figure, theme: Theme) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        draw_reliability(top, bins, theme, group)
        figure.suptitle(short(title, 44) + ('' if error is None else f'\nECE {error:.3f}'),
                        fontsize=10.5)
        top.set_ylabel('share that is right')
        width = 1 / n_bins
        bottom.bar((np.arange(n_bins) + 0.5) * width, bins.count, width * 0.85,
                   color=line_style(group, theme)['color'], alpha=0.6)
        bottom.set(xlabel='score', ylabel='number', xlim=(0, 1))
        if bins.count.max(initial=0) > 20 * max(np.median(bins.count), 1):
            bottom.set(yscale='log', ylabel='number (log)', ylim=(0.7, None))
        # Matplotlib's own would write mathematics
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        bottom.yaxis.set_minor_formatter(NullFormatter())

    filled = bins.count > 0
    gap = np.average((bins.precision - bins.confidence)[filled], weights=bins.count[filled]) \
        if filled.any() else 0
    tends = 'more often right than the scores say' if gap > 0 else \
        'less often right than the scores say'
    text = (f'Reliability diagram of {len(scores)} {noun}. '
            + (f'Calibration error {error:.3f}. ' if error is not None else '')
            + (f'On average {noun} are {tends}, by {abs(gap):.3f}.' if filled.any() else ''))
    return Chart(name, title, text, draw, (SIZE[0], 4.3))


def _number(value: float) -> str:
    """1200000 as 1.2M."""
    for power, letter in ((6, 'M'), (3, 'k')):
        if value >= 10**power:
            return f'{value / 10**power:g}{letter}'
    return f'{value:g}'


def draw_reliability(axes: Axes, bins: ReliabilityBins, theme: Theme, group: int = 0) -> None:
    """Precision over score with 95 % intervals, beside the diagonal that it should follow.

    The intervals are Wilson's, "Probable Inference, the Law of Succession, and Statistical
    Inference", JASA 1927, which hold for few predictions and for shares near 0 and 1.
    """
    filled = bins.count > 0
    p, n, x = bins.precision[filled], bins.count[filled], bins.confidence[filled]
    style = line_style(group, theme)
    _draw_diagonal(axes, theme)
    axes.fill_between(x, x, p, color=style['color'], alpha=0.18, lw=0)
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    axes.vlines(x, centre - half, centre + half, color=style['color'], lw=1, alpha=0.7)
    axes.plot(x, p, color=style['color'], marker=style['marker'], lw=1.5)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))


def _draw_diagonal(axes: Axes, theme: Theme) -> None:
    axes.plot([0, 1], [0, 1], color=theme.muted, lw=1.2, ls=(0, (4, 3)), zorder=1)


def reliability_by_size(name: str, title: str,
                        by_size: Dict[str, Tuple[np.ndarray, np.ndarray, float]],
                        n_bins: int = 10) -> Chart:
    """The share of right detections over their score, a line for each size of objects.

    Args:
        name (str): Name of the chart.
        title (str): Whose detections these are.
        by_size (dict): Scores (N,), hits (N,) and calibration error of each size.
        n_bins (int): Score bins; fewer than of all sizes together. Defaults to 10.
    """
    lines = {size: reliability_bins(scores, hits, n_bins)
             for size, (scores, hits, _) in by_size.items()}
    labels = [f'{size}: {len(scores)} detections, ECE {error:.3f}'
              for size, (scores, _, error) in by_size.items()]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        _draw_diagonal(axes, theme)
        handles = []
        for i, (bins, label) in enumerate(zip(lines.values(), labels)):
            shown = bins.count >= LEAST
            style = dict(color=theme.series[i], ls=(0, DASHES[i]) if DASHES[i] else '-',
                         marker=MARKERS[i], lw=1.6)
            axes.plot(bins.confidence[shown], bins.precision[shown], **style)
            handles.append(Line2D([], [], label=label, **style))
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel='score', ylabel='share that is right')
        figure.suptitle(short(title, 44), fontsize=10.5)
        figure.legend(handles=handles, loc='outside lower center', ncols=1, handlelength=3.2)

    return Chart(name, title, 'Reliability by size of object. ' + '; '.join(labels) + '.', draw,
                 (SIZE[0], 3.6))
