"""The report's charts, each drawn for a light page, a dark page and paper.

On the page a chart is inline SVG whose colours are CSS variables, so that it follows the reader's
colour scheme; beside the page it is a PNG in either scheme. Colours are those of Okabe & Ito,
"Color Universal Design", 2008, which remain distinct with any colour vision; markers and dashes
repeat what the colours say.
"""
import contextlib
import html
import io
import re
from pathlib import Path
from typing import Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..calibration import reliability_bins, risk_coverage


class Theme(NamedTuple):
    """Colours of a scheme, each different from all others.

    Attributes:
        paper (str): Background.
        ink (str): Text.
        muted (str): Axes and what else should stay behind.
        series (tuple[str]): One for each group of runs, the baseline's first.
    """
    paper: str
    ink: str
    muted: str
    series: Tuple[str, ...]


LIGHT = Theme('#ffffff', '#1a1a1a', '#6b6b6b',
              ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000'))
# The dark blue is hard to see on black, the light one takes its place
DARK = Theme('#15181c', '#ececec', '#a0a4a8',
             ('#56b4e9', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#0072b2', '#f0e442'))
MARKERS = 'osD^vPX'
DASHES = ('--', '-', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)))
SIZE = (4.6, 3.3)  # inches
Z = 1.959964  # of a two-sided 95 % interval of the normal distribution


class Chart(NamedTuple):
    """A chart and the words that go with it.

    Attributes:
        name (str): File name without ending, and id on the page.
        title (str): What is shown, in a few words.
        alt (str): What it shows, for those who cannot see it.
        draw (callable): Draws on (figure, theme).
        size (tuple[float, float]): Width and height in inches.
    """
    name: str
    title: str
    alt: str
    draw: Callable[[Figure, Theme], None]
    size: Tuple[float, float] = SIZE


class Line(NamedTuple):
    """A curve of one run.

    Attributes:
        group (int): Which group the run belongs to.
        x (ndarray): Shape (N,).
        y (ndarray): Shape (N,).
    """
    group: int
    x: np.ndarray
    y: np.ndarray


def css_variables(theme: Theme) -> Dict[str, str]:
    """Names of the CSS variables that a page must set, and their values in this theme."""
    return {'paper': theme.paper, 'ink': theme.ink, 'muted': theme.muted,
            **{f'series-{i}': colour for i, colour in enumerate(theme.series)}}


@contextlib.contextmanager
def drawn(chart: Chart, theme: Theme = LIGHT) -> Iterator[Figure]:
    """A chart in a theme, to be saved inside the ``with`` block: some settings are read then."""
    with matplotlib.rc_context({**_settings(theme), 'svg.hashsalt': chart.name}):
        figure = Figure(figsize=chart.size, layout='constrained', facecolor=theme.paper)
        chart.draw(figure, theme)
        figure.draw_without_rendering()
        figure.set_layout_engine('none')  # laid out once, saved more than once
        yield figure


def save(chart: Chart, folder: Path) -> str:
    """Write ``<name>.png`` and ``<name>_dark.png``.

    Returns:
        str: An ``<svg>`` element for an HTML page that sets the variables of :func:`css_variables`.
    """
    with drawn(chart, DARK) as figure:
        figure.savefig(folder / f'{chart.name}_dark.png', dpi=150)
    buffer = io.StringIO()
    with drawn(chart, LIGHT) as figure:
        figure.savefig(folder / f'{chart.name}.png', dpi=150)
        figure.savefig(buffer, format='svg', transparent=True)
    return _for_page(chart, buffer.getvalue())


def _for_page(chart: Chart, svg: str) -> str:
    """An SVG file in the light theme as an element that takes the page's width and colours."""
    svg = svg[svg.index('<svg'):]
    svg = re.sub(r'<metadata>.*?</metadata>|<!--.*?-->', '', svg, flags=re.S)
    # Ids are unique in a file, not on a page with many
    svg = re.sub(r'( id="|"#|url\(#)', rf'\g<1>{chart.name}-', svg)
    for name, colour in css_variables(LIGHT).items():
        svg = re.sub(rf'(?<=: ){colour}\b', f'var(--{name})', svg)
    label = html.escape(f'{chart.title}. {chart.alt}')
    width, height = (72 * side for side in chart.size)
    return re.sub(r'<svg [^>]*>', lambda _: (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'), svg, 1)


def to_array(figure: Figure) -> np.ndarray:
    """The figure's pixels, (H, W, 3) of uint8, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _settings(theme: Theme) -> dict:
    return {
        'font.size': 10.5, 'axes.titlesize': 11, 'legend.fontsize': 9.5,
        'font.family': 'sans-serif', 'svg.fonttype': 'none',
        'text.parse_math': False,  # a $ in a name is a $
        'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
        'axes.axisbelow': True,
        'grid.alpha': 0.25, 'grid.color': theme.muted, 'grid.linewidth': 0.8,
        'axes.facecolor': 'none', 'axes.edgecolor': theme.muted, 'axes.labelcolor': theme.ink,
        'axes.titlecolor': theme.ink, 'text.color': theme.ink, 'xtick.color': theme.muted,
        'ytick.color': theme.muted, 'xtick.labelcolor': theme.ink, 'ytick.labelcolor': theme.ink,
        'legend.frameon': False, 'lines.linewidth': 1.8, 'lines.markersize': 4.5,
    }


def _style(group: int, theme: Theme) -> dict:
    i = group % len(theme.series)
    # Dashes lie on top of solid lines: where curves coincide, both are seen
    return dict(color=theme.series[i], linestyle=DASHES[i], marker=MARKERS[i],
                zorder=2.2 if DASHES[i] == '-' else 2.3)


# ------------------------------------------------------------------ the charts


def curves(name: str, title: str, lines: Sequence[Line], groups: Sequence[str], unit: str) -> Chart:
    """A logged quantity over the training: a thin line for each seed, a thick one for their mean.

    Args:
        name (str): Name of the chart.
        title (str): What is logged.
        lines (sequence[Line]): One for each run that logged it.
        groups (sequence[str]): Names of all groups.
        unit (str): Of the x axis: epoch or iteration.
    """
    means = {group: _mean_line([line for line in lines if line.group == group])
             for group in sorted({line.group for line in lines})}

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.set(xlabel=unit, title=title)
        for group, (x, y, n) in means.items():
            style = _style(group, theme)
            if n > 1:
                for line in lines:
                    if line.group == group:
                        axes.plot(line.x, line.y, color=style['color'], lw=0.7, alpha=0.55)
            if len(x) > 40:
                style['marker'] = None
            label = groups[group] + (f' (mean of {n})' if n > 1 else '')
            axes.plot(x, y, label=label, **style)
        axes.legend(loc='best')

    last = [f'{groups[group]} ends at {y[-1]:.3g}' for group, (x, y, _) in means.items() if len(y)]
    return Chart(name, title, f'Line chart over {unit}s. ' + '; '.join(last) + '.', draw)


def _mean_line(lines: Sequence[Line]) -> Tuple[np.ndarray, np.ndarray, int]:
    """The mean where all lines have a point."""
    shared = lines[0].x
    for line in lines[1:]:
        shared = np.intersect1d(shared, line.x)
    y = [line.y[np.isin(line.x, shared)] for line in lines]
    return shared, np.mean(y, axis=0), len(lines)


def reliability(name: str, title: str, scores: np.ndarray, hits: np.ndarray, group: int = 0,
                n_bins: int = 25, error: Optional[float] = None, noun: str = 'detections') -> Chart:
    """Reliability diagram: the share of right predictions over their score, and how many there are.

    Args:
        name (str): Name of the chart.
        title (str): Whose predictions these are.
        scores (ndarray): Scores in [0, 1], shape (N,).
        hits (ndarray): Whether right, shape (N,).
        group (int): Decides the colour. Defaults to 0.
        n_bins (int): Score bins. Defaults to 25.
        error (float, optional): Calibration error to write beside it. Defaults to None.
        noun (str): What is predicted. Defaults to 'detections'.
    """
    bins = reliability_bins(scores, hits, n_bins)

    def draw(figure: Figure, theme: Theme) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        draw_reliability(top, bins, theme, group)
        top.set(title=title, ylabel='share that is right')
        if error is not None:
            top.text(0.04, 0.93, f'ECE {error:.3f}', transform=top.transAxes, va='top')
        width = 1 / n_bins
        bottom.bar((np.arange(n_bins) + 0.5) * width, bins.count, width * 0.85,
                   color=theme.series[group % len(theme.series)], alpha=0.6)
        bottom.set(xlabel='score', ylabel='number', xlim=(0, 1))
        if bins.count.max(initial=0) > 20 * max(np.median(bins.count), 1):
            bottom.set(yscale='log', ylabel='number (log)')
            bottom.yaxis.set_major_formatter('{x:g}')  # the default writes mathematics

    filled = bins.count > 0
    gap = np.average((bins.precision - bins.confidence)[filled], weights=bins.count[filled]) \
        if filled.any() else 0
    tends = 'more often right than the scores say' if gap > 0 else \
        'less often right than the scores say'
    text = (f'Reliability diagram of {len(scores)} {noun}. '
            + (f'Calibration error {error:.3f}. ' if error is not None else '')
            + (f'On average {noun} are {tends}, by {abs(gap):.3f}.' if filled.any() else ''))
    return Chart(name, title, text, draw, (SIZE[0], 4.6))


def draw_reliability(axes: Axes, bins, theme: Theme, group: int = 0) -> None:
    """Precision over score with 95 % intervals, beside the diagonal that it should follow.

    The intervals are Wilson's, "Probable Inference, the Law of Succession, and Statistical
    Inference", JASA 1927, which hold for few predictions and for shares near 0 and 1.
    """
    filled = bins.count > 0
    p, n, x = bins.precision[filled], bins.count[filled], bins.confidence[filled]
    colour = theme.series[group % len(theme.series)]
    axes.plot([0, 1], [0, 1], color=theme.muted, lw=1.2, ls=(0, (4, 3)), zorder=1)
    axes.fill_between(x, x, p, color=colour, alpha=0.18, lw=0)
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    axes.vlines(x, centre - half, centre + half, color=colour, lw=1, alpha=0.7)
    axes.plot(x, p, color=colour, marker=MARKERS[group % len(MARKERS)], lw=1.5)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))


def risk_coverages(name: str, judged: Sequence[Tuple[int, np.ndarray, np.ndarray]],
                   groups: Sequence[str], noun: str) -> Chart:
    """Risk-coverage curves, one line for each run.

    Args:
        name (str): Name of the chart.
        judged (sequence[tuple]): Group, scores (N,) and hits (N,) of each run.
        groups (sequence[str]): Names of all groups.
        noun (str): What is predicted.
    """
    lines = [(group, *risk_coverage(scores, hits)) for group, scores, hits in judged]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        named = set()
        for group, coverage, risk in lines:
            style = dict(_style(group, theme), marker=None,
                         lw=1.8 if len(lines) == len(groups) else 1.1)
            label = None if group in named else groups[group]
            named.add(group)
            axes.plot(*_thinned(coverage, risk), label=label, **style)
        axes.set(xlabel=f'coverage: share of {noun} kept', ylabel='risk: share of them wrong',
                 xlim=(0, 1), ylim=(0, None), title='risk over coverage')
        axes.legend(loc='upper left')

    ends = [f'{groups[group]} at full coverage has risk {risk[-1]:.3f}, at half '
            f'{np.interp(0.5, coverage, risk):.3f}' for group, coverage, risk in lines
            if len(risk)]
    return Chart(name, 'Risk over coverage', '; '.join(ends) + '.', draw, (SIZE[0], 3.9))


def _thinned(x: np.ndarray, y: np.ndarray, points: int = 800) -> Tuple[np.ndarray, np.ndarray]:
    """So many points of a curve that the eye sees no difference."""
    keep = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int)) if len(x) else []
    return x[keep], y[keep]


def bars(name: str, title: str, names: Sequence[str], means: np.ndarray, margins: np.ndarray,
         groups: Sequence[str]) -> Chart:
    """Horizontal bars for each class or keypoint, one in each group's colour.

    Args:
        name (str): Name of the chart.
        title (str): What is measured.
        names (sequence[str]): C classes or keypoints.
        means (ndarray): Shape (groups, C).
        margins (ndarray): Half the widths of the intervals, nan for none; shape (groups, C).
        groups (sequence[str]): Names of the groups.
    """
    n_groups = len(groups)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        y, height = np.arange(len(names)), 0.8 / n_groups
        for group in range(n_groups):
            offset = (group - (n_groups - 1) / 2) * height
            axes.barh(y + offset, means[group], height * 0.9, label=groups[group],
                      xerr=None if np.isnan(margins[group]).all() else margins[group],
                      color=theme.series[group % len(theme.series)], ecolor=theme.ink,
                      error_kw=dict(lw=1, capsize=2))
            for i, value in enumerate(means[group]):
                if not np.isnan(value):
                    edge = value + np.nan_to_num(margins[group][i])
                    axes.annotate(f'{value:.2f}', (edge, i + offset), (4, 0), va='center',
                                  textcoords='offset points', fontsize=8.5)
        axes.set_yticks(y, [str(text).replace('_', ' ') for text in names])
        axes.set(title=title, ylim=(len(names) - 0.4, -0.6))
        axes.margins(x=0.12)
        axes.grid(axis='y', visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc='outside lower center',
                      ncols=min(n_groups, 3))

    rows = [f'{text}: ' + ', '.join(f'{groups[g]} {means[g][i]:.2f}' for g in range(n_groups))
            for i, text in enumerate(names)]
    height = 1.3 + len(names) * max(0.22 * n_groups, 0.3)
    return Chart(name, title, '; '.join(rows) + '.', draw, (SIZE[0], height))
