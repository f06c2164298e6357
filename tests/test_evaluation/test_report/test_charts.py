import re
from itertools import combinations
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mmskd.evaluation.report import charts

RNG = np.random.default_rng(0)
SCORES = RNG.random(300)
HITS = RNG.random(300) < SCORES
EPOCHS = np.arange(1, 6)


@pytest.fixture(scope='module', params=['curves', 'reliability', 'risk', 'bars'])
def chart(request):
    groups = ['a <b> & "c"', 'costs $x_ and $y_']
    return dict(
        curves=charts.curves('loss', 'loss', [charts.Line(0, EPOCHS, EPOCHS * .1),
                                              charts.Line(0, EPOCHS[:3], EPOCHS[:3] * .3),
                                              charts.Line(1, EPOCHS, EPOCHS * .2)], groups,
                             'epoch'),
        reliability=charts.reliability('reliability', groups[0], SCORES, HITS, 1, error=.1),
        risk=charts.risk_coverages('risk', [(0, SCORES, HITS), (1, SCORES[:0], HITS[:0])], groups,
                                   'detections'),
        bars=charts.bars('bars', 'AP', ['x_y', 'z'], np.array([[.1, np.nan], [.2, .3]]),
                         np.array([[.02, np.nan], [np.nan, np.nan]]), groups))[request.param]


@pytest.fixture(scope='module')
def folder(chart, tmp_path_factory):
    """Where the chart is saved as PNGs, and as <name>.svg what goes into a page."""
    folder = tmp_path_factory.mktemp('charts')
    (folder / f'{chart.name}.svg').write_text(charts.save(chart, folder))
    return folder


@pytest.fixture(scope='module')
def svg(chart, folder):
    return (folder / f'{chart.name}.svg').read_text()


def test_svg_takes_its_colours_from_the_page(chart, svg):
    root = ElementTree.fromstring(svg)
    assert root.get('role') == 'img' and chart.alt in root.get('aria-label')
    assert 'width' not in root.attrib and root.get('viewBox')
    used = set(re.findall(r'var\(--([\w-]+)\)', svg))
    assert {'ink', 'muted', 'series-0'} & used and used <= set(charts.css_variables(charts.LIGHT))
    assert not [c for c in charts.css_variables(charts.LIGHT).values() if f': {c}' in svg]
    assert '<script' not in svg and '<image' not in svg


def test_references_of_an_svg_stay_inside(chart, svg):
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) and all(name.startswith(f'{chart.name}-') for name in ids)
    assert set(re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', svg)) <= {
        pair for name in ids for pair in ((name, ''), ('', name))}


def test_pngs_in_two_schemes(chart, folder):
    from PIL import Image
    light, dark = (np.asarray(Image.open(folder / f'{chart.name}{suffix}.png').convert('L'))
                   for suffix in ('', '_dark'))
    assert light.mean() > 200 > 80 > dark.mean()
    assert light.std() > 5 and dark.std() > 5


def test_saving_again_changes_nothing(chart, svg, tmp_path):
    before = dict(matplotlib.rcParams)
    assert charts.save(chart, tmp_path) == svg
    assert dict(matplotlib.rcParams) == before


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= .04045 else ((c + .055) / 1.055)**2.4 for c in to_rgb(colour)]
    return np.dot([.2126, .7152, .0722], linear)


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + .05) / (low + .05)


@pytest.mark.parametrize('theme', [charts.LIGHT, charts.DARK])
def test_colours_can_be_read_and_told_apart(theme):
    assert contrast(theme.ink, theme.paper) >= 7 and contrast(theme.muted, theme.paper) >= 4.5
    assert all(contrast(colour, theme.paper) >= 3 for colour in theme.series[:3])
    assert all(contrast(colour, theme.paper) >= 2 for colour in theme.series)
    assert len(set(theme)) == 4 and len(set(theme.series)) == len(charts.MARKERS)
    for a, b in combinations(theme.series, 2):
        assert np.abs(np.subtract(to_rgb(a), to_rgb(b))).max() > .15


def test_the_mean_line_is_of_epochs_that_all_have():
    x, y, n = charts._mean_line([charts.Line(0, EPOCHS, EPOCHS * 1.), charts.Line(
        0, EPOCHS[1:], EPOCHS[1:] * 3.)])
    assert (x.tolist(), y.tolist(), n) == ([2, 3, 4, 5], [4, 6, 8, 10], 2)


def test_the_intervals_are_wilsons():
    from matplotlib.figure import Figure
    from scipy.stats import binomtest
    axes = Figure().subplots()
    bins = charts.reliability_bins(SCORES, HITS, 5)
    charts.draw_reliability(axes, bins, charts.LIGHT)
    segments = axes.collections[1].get_segments()
    assert len(segments) == 5
    for (low, high), precision, count in zip(segments, bins.precision, bins.count):
        interval = binomtest(round(precision * count), count).proportion_ci(method='wilson')
        assert (low[1], high[1]) == pytest.approx(tuple(interval), abs=1e-6)


def test_numbers_on_a_logarithmic_axis_are_numbers(tmp_path):
    """Most detections score next to nothing: their number is drawn on a logarithmic axis."""
    scores = np.concatenate([RNG.random(50), np.full(5000, 0.01)])
    chart = charts.reliability('reliability', 'many', scores, scores > RNG.random(len(scores)))
    svg = charts.save(chart, tmp_path)
    assert 'number (log)' in svg and '$' not in svg and 'math' not in svg
