import re
from itertools import combinations
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mmskd.evaluation.calibration import reliability_bins
from mmskd.evaluation.report.charts import chart as charts
from mmskd.evaluation.report.charts import theme as themes
from mmskd.evaluation.report.charts.confusion import MOST, confusion
from mmskd.evaluation.report.charts.curves import Line, curves, limits, mean_line
from mmskd.evaluation.report.charts.intervals import intervals
from mmskd.evaluation.report.charts.reliability import (
    draw_reliability,
    reliability,
    reliability_by_size,
)
from mmskd.evaluation.report.charts.shares import Curve, shares, shares_by_class

RNG = np.random.default_rng(0)
SCORES = RNG.random(300)
HITS = RNG.random(300) < SCORES
EPOCHS = np.arange(1, 6)
GROUPS = ['a <b> & "c"', 'costs $x_ and $y_']
MANY = [f'one_of_many_runs_with_a_long_name_{i}_and_an_end' for i in range(10)]
LINE = np.linspace(0, 1, 50)


def some_curves(groups):
    return [Curve(i, LINE, LINE**(i + 1), (0.5, 0.5**(i + 1))) for i in range(len(groups))]


def of_each_kind(groups):
    n = len(groups)
    return dict(
        curves=curves('loss', 'loss', [Line(i, EPOCHS, EPOCHS * .1 * (i + 1)) for i in range(n)] +
                      [Line(0, EPOCHS[:3], EPOCHS[:3] * .3)], groups, 'epoch'),
        reliability=reliability('reliability', groups[0], SCORES, HITS, 1, error=.1),
        by_size=reliability_by_size('by_size', groups[0], dict(
            small=(SCORES, HITS, .1), large=(SCORES[:9], HITS[:9], .2))),
        shares=shares('shares', 'risk', some_curves(groups), groups, ('coverage', 'risk'), 'low'),
        intervals=intervals('intervals', 'AP', ['x_y', 'z'], np.tile([.1, np.nan], (n, 1)),
                            np.tile([.02, np.nan], (n, 1)), range(n), groups),
        confusion=confusion('confusion', groups[0], np.arange(9).reshape(3, 3), ['x', 'y']))


@pytest.fixture(scope='module', params=[*of_each_kind(GROUPS)])
def chart(request):
    return of_each_kind(GROUPS)[request.param]


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
    known = themes.css_variables(themes.LIGHT)
    assert {'ink', 'muted', 'series-0'} & used and used <= set(known)
    assert not [c for c in known.values() if f': {c}' in svg]
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


@pytest.mark.parametrize('kind', [*of_each_kind(GROUPS)])
def test_both_schemes_have_the_same_layout(kind):
    chart = of_each_kind(MANY)[kind]
    with charts.drawn(chart) as light, charts.drawn(chart, themes.DARK, light) as dark:
        for figure in (light, dark):
            figure.canvas.draw()
        for mine, other in zip(light.axes + light.texts + light.legends,
                               dark.axes + dark.texts + dark.legends):
            np.testing.assert_allclose(mine.get_window_extent().bounds,
                                       other.get_window_extent().bounds, atol=0.6)


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


@pytest.mark.parametrize('theme', [themes.LIGHT, themes.DARK])
def test_colours_can_be_read_and_told_apart(theme):
    assert contrast(theme.ink, theme.paper) >= 7 and contrast(theme.muted, theme.paper) >= 4.5
    assert all(contrast(colour, theme.paper) >= 3 for colour in theme.series[:3])
    assert all(contrast(colour, theme.paper) >= 2 for colour in theme.series)
    assert len(set(theme)) == 4 and len(set(theme.series)) == len(themes.MARKERS)
    for a, b in combinations(theme.series, 2):
        assert np.abs(np.subtract(to_rgb(a), to_rgb(b))).max() > .15


def test_no_two_groups_look_alike():
    styles = [themes.style_of(group) for group in range(49)]
    assert len(set(styles)) == 49
    for a, b in combinations(styles[:12], 2):
        assert sum(x != y for x, y in zip(a, b)) >= 2, 'not even without colour, or without dashes'
    assert set(themes.MARKERS) == set(themes.MARKER_PATHS)


def test_the_mean_line_is_of_epochs_that_all_have():
    x, y = mean_line([Line(0, EPOCHS, EPOCHS * 1.), Line(0, EPOCHS[1:], EPOCHS[1:] * 3.),
                      Line(0, EPOCHS[:2], EPOCHS[:2] * 50., counts=False)])
    assert (x.tolist(), y.tolist()) == ([2, 3, 4, 5], [4, 6, 8, 10])
    x, y = mean_line([Line(0, EPOCHS, EPOCHS * 2., counts=False)])
    assert y.tolist() == [2, 4, 6, 8, 10], 'better than nothing'


@pytest.mark.parametrize('values, low, high', [
    ([0.5, 0.5], 0.4, 0.6), ([0., 0.], -0.01, 0.1), ([1., 1.], 0.9, 1.01), ([0.2, 0.99], 0.1, 1.02),
    ([3., 40.], 0., 43.), ([55., 99.], 50., 101.), ([-5., 5.], -6., 6.)])
def test_ranges_of_axes(values, low, high):
    """None from -2 to 3 for a share."""
    found = limits(np.array(values))
    assert low <= found[0] <= min(values) and max(values) <= found[1] <= high
    assert found[1] - found[0] >= 0.02


def drawn_axes(chart):
    with charts.drawn(chart) as figure:
        return figure, figure.axes


@pytest.mark.parametrize('epochs, groups', [(1, GROUPS), (2, MANY), (9, GROUPS), (300, MANY)])
def test_epochs_are_whole_numbers(epochs, groups):
    x = np.arange(1, epochs + 1)
    chart = curves('c', 'c', [Line(i, x, x * 0. + i) for i in range(len(groups))], groups, 'epoch')
    _, axes = drawn_axes(chart)
    for axis in axes:
        ticks = axis.get_xticks()
        assert (ticks == ticks.round()).all()


@pytest.mark.parametrize('groups', [GROUPS * 2, MANY])
@pytest.mark.parametrize('kind', [*of_each_kind(GROUPS)])
def test_nothing_is_cut_off_and_no_legend_covers_an_axes(kind, groups):
    chart = of_each_kind([f'{name}{i}' for i, name in enumerate(groups)])[kind]
    with charts.drawn(chart) as figure:
        figure.canvas.draw()
        everything = figure.get_tightbbox()
        assert everything.x0 >= -0.02 and everything.y0 >= -0.02
        assert everything.x1 <= figure.get_figwidth() + 0.02
        assert everything.y1 <= figure.get_figheight() + 0.02
        for legend in figure.legends:
            box = legend.get_window_extent()
            for axes in figure.axes:
                assert not axes.axison or not box.overlaps(axes.get_tightbbox())
        assert not any(axes.get_legend() for axes in figure.axes)


def test_many_groups_are_drawn_apart():
    figure, axes = drawn_axes(of_each_kind(MANY)['shares'])
    shown = [axis for axis in axes if axis.axison]
    assert len(shown) == 9 and all(len(axis.lines) == 4 for axis in shown), 'curves and points'
    titles = [axis.get_title() for axis in shown]
    assert len(set(titles)) == 9 and all(len(title) <= 24 for title in titles)


def test_names_are_shortened_where_they_are_alike():
    assert charts.short('abcdefghij', 7) == 'abc…hij'
    names = charts.short_names(MANY, 20)
    assert names[3] == '…a_long_name_3…' or len(set(names)) == 10 and '3' in names[3]
    assert all(len(name) <= 20 for name in names)
    assert charts.short_names(['a', 'b'], 20) == ['a', 'b']
    base = 'x' * 40
    assert charts.short_names([base, base + '_more'], 20)[1].endswith('_more')
    assert charts.short_names([base, base], 9) == ['xxxx…xxxx'] * 2


def test_small_axes_of_classes():
    chart = shares_by_class('s', 't', {f'class {i}': some_curves(GROUPS) for i in range(5)}, GROUPS,
                            ('recall', 'precision'), 'words')
    _, axes = drawn_axes(chart)
    assert [axis.get_title() for axis in axes if axis.axison] == [f'class {i}' for i in range(5)]
    with pytest.raises(ValueError, match='10 groups are too many'):
        shares_by_class('s', 't', {'a': some_curves(MANY)}, MANY, ('x', 'y'), '')


def test_the_intervals_are_wilsons():
    from scipy.stats import binomtest
    axes = Figure().subplots()
    bins = reliability_bins(SCORES, HITS, 5)
    draw_reliability(axes, bins, themes.LIGHT)
    segments = axes.collections[1].get_segments()
    assert len(segments) == 5
    for (low, high), precision, count in zip(segments, bins.precision, bins.count):
        interval = binomtest(round(precision * count), count).proportion_ci(method='wilson')
        assert (low[1], high[1]) == pytest.approx(tuple(interval), abs=1e-6)


@pytest.mark.parametrize('many', [0, 300, 5000, 2_000_000])
def test_numbers_on_a_logarithmic_axis_are_numbers(tmp_path, many):
    """Most detections score next to nothing: their number is drawn on a logarithmic axis, whose
    small ticks Matplotlib would write as mathematics."""
    scores = np.concatenate([np.linspace(0, 1, 126), np.full(many, 0.01)])
    chart = reliability('reliability', 'many', scores, scores > 0.5)
    with charts.drawn(chart) as figure:
        figure.canvas.draw()
        words = [text.get_text() for axis in figure.axes
                 for which in ('major', 'minor') for text in axis.get_yticklabels(which=which)]
        assert figure.axes[1].get_yscale() == ('log' if many else 'linear')
    assert any(words) and not [text for text in words if '$' in text or '\\' in text]


def test_confusion_of_many_classes_is_that_of_a_few():
    counts = np.zeros((31, 31), int)
    np.fill_diagonal(counts, 10)
    counts[3, 17] = counts[22, 5] = 8
    labels = [f'class {i}' for i in range(30)]
    chart = confusion('c', 'c', counts, labels)
    _, (axes, ) = drawn_axes(chart)
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert len(rows) == MOST + 1 and rows[-1].startswith('nothing there')
    assert {'class 3 (18)', 'class 17 (10)', 'class 22 (18)', 'class 5 (10)'} <= set(rows)
    assert rows[MOST - 1] == '21 others (210)'
    assert 'class 3 as class 17 8 times' in chart.alt
    poses = confusion('c', 'c', counts, labels, nothing=('elsewhere', ''))
    assert len(drawn_axes(poses)[1][0].get_yticklabels()) == MOST
