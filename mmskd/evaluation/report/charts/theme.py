"""Colours, dashes and markers of the report.

Colours are those of Okabe & Ito, "Color Universal Design", 2008, which remain distinct with any
colour vision; markers and dashes repeat what the colours say. No two of the first 49 groups have
the same three.
"""
from typing import Dict, NamedTuple, Tuple


class Theme(NamedTuple):
    """Colours of a scheme, each different from all others.

    Attributes:
        paper (str): Background.
        ink (str): Text.
        muted (str): Axes and what else should stay behind.
        series (tuple[str]): The baseline's first.
    """
    paper: str
    ink: str
    muted: str
    series: Tuple[str, ...]


class Style(NamedTuple):
    """How a group of runs looks, in every chart.

    Attributes:
        colour (int): Index into a theme's ``series``.
        dash (tuple[float]): Lengths drawn and left out, in widths of the line; empty for solid.
        marker (str): Matplotlib's letter.
    """
    colour: int
    dash: Tuple[float, ...]
    marker: str


LIGHT = Theme('#ffffff', '#1a1a1a', '#6b6b6b',
              ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000'))
# The dark blue is hard to see on black, the light one takes its place
DARK = Theme('#15181c', '#ececec', '#a0a4a8',
             ('#56b4e9', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#0072b2', '#f0e442'))
MARKERS = 'osD^vPX'
DASHES = ((4, 1.6), (), (6, 1.6, 1, 1.6), (1, 1.5), (5, 1, 1, 1, 1, 1), (9, 2), (2, 1))
# The markers as paths in a square of 8 x 8, for the legends that the page draws itself
MARKER_PATHS = {
    'o': 'M4 1a3 3 0 1 0 .01 0z', 's': 'M1.3 1.3h5.4v5.4H1.3z', 'D': 'M4 .6 7.4 4 4 7.4.6 4z',
    '^': 'M4 1 7.2 6.8H.8z', 'v': 'M4 7 .8 1.2h6.4z', 'P': 'M3 1h2v2h2v2H5v2H3V5H1V3h2z',
    'X': 'M1 2.4 2.4 1 4 2.6 5.6 1 7 2.4 5.4 4 7 5.6 5.6 7 4 5.4 2.4 7 1 5.6 2.6 4z'
}


def style_of(group: int) -> Style:
    """The style of the group with this number, the baseline's is 0."""
    number, turn = len(MARKERS), group // len(MARKERS)
    return Style(group % number, DASHES[(group + turn) % number],
                 MARKERS[(group + 2 * turn) % number])


def css_variables(theme: Theme) -> Dict[str, str]:
    """Names of the CSS variables that a page must set, and their values in this theme."""
    return {'paper': theme.paper, 'ink': theme.ink, 'muted': theme.muted,
            **{f'series-{i}': colour for i, colour in enumerate(theme.series)}}
