"""A chart, drawn for a light page, a dark page and paper, and what its kinds have in common.

On the page a chart is inline SVG whose colours are CSS variables, so that it follows the reader's
colour scheme; beside the page it is a PNG in either scheme.
"""
import contextlib
import html
import io
import os
import re
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .theme import DARK, LIGHT, Theme, css_variables, style_of

SIZE = (4.6, 3.0)  # inches, of a chart's axes and their labels
TOGETHER = 4  # groups in the same axes; of more, each has its own
ROW = 0.19  # inches, height of a line of a legend


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


@contextlib.contextmanager
def drawn(chart: Chart, theme: Theme = LIGHT, like: Optional[Figure] = None) -> Iterator[Figure]:
    """A chart in a theme, to be saved inside the ``with`` block: some settings are read then.

    Args:
        chart (Chart): What to draw.
        theme (Theme): Its colours. Defaults to ``LIGHT``.
        like (Figure, optional): The same chart in another theme, whose layout, which takes longer
            than all else, is taken over. Defaults to None.
    """
    with matplotlib.rc_context({**_settings(theme), 'svg.hashsalt': chart.name}):
        figure = Figure(figsize=chart.size, facecolor=theme.paper,
                        layout='none' if like else 'constrained')
        chart.draw(figure, theme)
        if like:
            for mine, other in zip(figure.axes + figure.texts, like.axes + like.texts):
                mine.set_position(other.get_position())
        else:
            figure.draw_without_rendering()
            figure.set_layout_engine('none')  # laid out once, saved more than once
        yield figure


def save(chart: Chart, folder: Path) -> str:
    """Write ``<name>.png`` and ``<name>_dark.png``.

    Returns:
        str: An ``<svg>`` element for an HTML page that sets the variables of
        :func:`~.theme.css_variables`.
    """
    buffer = io.StringIO()
    with drawn(chart, LIGHT) as light:
        light.savefig(folder / f'{chart.name}.png', dpi=150)
        light.savefig(buffer, format='svg', transparent=True)
    with drawn(chart, DARK, light) as dark:
        dark.savefig(folder / f'{chart.name}_dark.png', dpi=150)
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
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'),
        svg, count=1)


def to_array(figure: Figure) -> np.ndarray:
    """The figure's pixels, (H, W, 3) of uint8, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _settings(theme: Theme) -> dict:
    return {
        'font.size': 10, 'axes.titlesize': 10.5, 'legend.fontsize': 9, 'xtick.labelsize': 9,
        'ytick.labelsize': 9,
        'font.family': 'sans-serif', 'svg.fonttype': 'none',
        'text.parse_math': False,  # a $ in a name is a $
        'axes.formatter.use_mathtext': False, 'axes.formatter.limits': (-4, 6),
        'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
        'axes.axisbelow': True,
        'grid.alpha': 0.25, 'grid.color': theme.muted, 'grid.linewidth': 0.8,
        'axes.facecolor': 'none', 'axes.edgecolor': theme.muted, 'axes.labelcolor': theme.ink,
        'axes.titlecolor': theme.ink, 'text.color': theme.ink, 'xtick.color': theme.muted,
        'ytick.color': theme.muted, 'xtick.labelcolor': theme.ink, 'ytick.labelcolor': theme.ink,
        'legend.frameon': False, 'lines.linewidth': 1.8, 'lines.markersize': 4.5,
    }


# ------------------------------------------------------------------ what the kinds share


def line_style(group: int, theme: Theme) -> dict:
    """Matplotlib's settings for the lines of a group."""
    style = style_of(group)
    # Dashes lie on top of solid lines: where curves coincide, both are seen
    return dict(color=theme.series[style.colour], linestyle=(0, style.dash) if style.dash else '-',
                marker=style.marker, zorder=2.3 if style.dash else 2.2)


def short(name: str, length: int = 30) -> str:
    """A name with its middle left out where it is longer."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f'{name[:head]}…{name[len(name) - (length - 1 - head):]}'


def short_names(names: Sequence[str], length: int) -> List[str]:
    """Names of at most so many letters.

    They keep that in which they differ rather than what all of them begin and end with.
    """
    start = len(os.path.commonprefix(list(names)))
    end = len(os.path.commonprefix([name[start:][::-1] for name in names]))
    longest = max((len(name) - start - end for name in names), default=0)
    if len(names) < 2 or longest == 0 or all(len(name) <= length for name in names):
        return [short(name, length) for name in names]
    start = max(start - max(length - longest - 2, 0), 0)  # as much of it as there is room for
    return [short('…' * (start > 0) + name[start:len(name) - end] + '…' * (end > 0), length)
            for name in names]


def facets(figure: Figure, shown: Sequence[int], names: Sequence[str],
           theme: Theme) -> List[Tuple[Axes, List[int]]]:
    """Axes to draw groups in: one for all of a few.

    Of many, one for each but the first, which is drawn in all of them. With a legend outside of
    them.

    Args:
        figure (Figure): An empty one, of the size that :func:`faceted_size` says.
        shown (sequence[int]): The groups.
        names (sequence[str]): Names of all groups.
        theme (Theme): Where the colours are from.

    Returns:
        list[tuple[Axes, list[int]]]: Axes, and the groups to draw there.
    """
    if len(shown) <= TOGETHER:
        legend(figure, shown, names, theme)
        return [(figure.subplots(), list(shown))]
    legend(figure, shown[:1], names, theme)
    titles = short_names(names, 24)
    axes = small_axes(figure, [titles[group] for group in shown[1:]])
    return [(axis, [shown[0], group]) for axis, group in zip(axes, shown[1:])]


def small_axes(figure: Figure, titles: Sequence[str]) -> List[Axes]:
    """Axes in two columns that share their scales."""
    rows = -(-len(titles) // 2)
    axes = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    if len(titles) % 2:
        axes[-1, 1].set_axis_off()
        axes[-2, 1].tick_params(labelbottom=True)
    for axis, title in zip(axes.ravel(), titles):
        axis.set_title(title, fontsize=9.5)
    return list(axes.ravel()[:len(titles)])


def label_axes(figure: Figure, axes: Sequence[Axes], title: str, x: str = '', y: str = '') -> None:
    """Title and labels of one axes, or of several that share their scales."""
    figure.suptitle(title, fontsize=10.5)
    for axis in axes[-2:]:  # of two columns the last two are the lowest
        axis.set_xlabel(x)
    if len(axes) == 1:
        axes[0].set_ylabel(y)
    elif y:
        figure.supylabel(y, fontsize=10)


def faceted_size(shown: Sequence[int], names: Sequence[str], height: float = SIZE[1],
                 title_lines: int = 0) -> Tuple[float, float]:
    """Size in inches of a chart with :func:`facets`, ``height`` without the legend."""
    if len(shown) <= TOGETHER:
        return SIZE[0], height + ROW * (legend_rows(shown, names) + title_lines)
    return SIZE[0], 0.9 + 1.5 * _rows(shown)


def _rows(shown: Sequence[int]) -> int:
    return len(shown) // 2


def legend(figure: Figure, shown: Sequence[int], names: Sequence[str], theme: Theme) -> None:
    """A legend below all axes."""
    labels = short_names(names, 56)
    handles = [Line2D([], [], label=labels[group], **line_style(group, theme)) for group in shown]
    if handles and len(names) > 1:
        figure.legend(handles=handles, loc='outside lower center', handlelength=3.2,
                      ncols=_columns(shown, names))


def legend_rows(shown: Sequence[int], names: Sequence[str]) -> int:
    """How many lines the legend has."""
    return -(-len(shown) // _columns(shown, names)) if len(names) > 1 else 0


def _columns(shown: Sequence[int], names: Sequence[str]) -> int:
    longest = max((len(names[group]) for group in shown), default=0)
    return 1 if longest > 22 else 2 if longest > 11 else 3
