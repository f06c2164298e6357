"""Draw the pictures of the README and the documentation, for light and for dark pages.

    python tools/draw_pictures.py                          # from results/, without a training
    python tools/draw_pictures.py --detector RUN_DIR       # a run of retinanet_r18_bccd.py
    python tools/draw_pictures.py --demo DEMO_DIR          # what tools/demo.sh wrote, --work-dir
    python tools/draw_pictures.py --report report.html     # a page of tools/analysis/report.py

What is drawn of runs is kept in ``results/pictures.json``; the chart of gains is drawn from
``results/studies/``. The screenshot of a report is taken by Chromium or Chrome, without a window.
"""
import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmskd.datasets.stick_figures import LINKS
from mmskd.ending import add_traceback, end_in_a_line
from mmskd.errors import UsageError
from mmskd.evaluation.calibration import ReliabilityBins, ece, reliability_bins
from mmskd.evaluation.calibrators import fit_calibrator
from mmskd.evaluation.detection import DetectionCalibration, DetectionRule
from mmskd.evaluation.report.charts.chart import Chart, drawn
from mmskd.evaluation.report.charts.reliability import draw_reliability
from mmskd.evaluation.report.charts.theme import DARK, LIGHT, Theme
from mmskd.evaluation.report.judging import judge
from mmskd.evaluation.report.predictions import predictions_of
from mmskd.evaluation.report.runs import Run
from mmskd.evaluation.report.statistics import Interval

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'tools' / 'benchmarks'))

from study_report import StudyResults  # noqa: E402

STUDIES = ROOT / 'results' / 'studies'
NUMBERS = ROOT / 'results' / 'pictures.json'
OUT = ROOT / 'docs' / '_static' / 'pictures'
NUMBERS_KEY = 'numbers'
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
THEMES = {'light': LIGHT, 'dark': DARK}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--detector', type=Path, metavar='RUN_DIR', help='look at this run anew')
    parser.add_argument('--demo', type=Path, metavar='DEMO_DIR', help='look at this demo anew')
    parser.add_argument('--report', type=Path, metavar='PAGE',
                        help='take a screenshot of this page')
    parser.add_argument('--out', type=Path, default=OUT, help='default: docs/_static/pictures')
    add_traceback(parser)
    return parser.parse_args()


# A drawing: where a teacher's prediction rides along ------------------------------------------

def ride_along(theme: Theme) -> str:
    """The SVG of a head, its loss, and the teacher's scores on the way from one to the other."""
    mine, other = theme.series[:2]
    return '\n'.join([
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 262" role="img" '
        'font-family="Helvetica, Arial, sans-serif" text-anchor="middle">',
        '<title>The teacher\'s class scores ride along with the model\'s to its own loss</title>',
        *(f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" '
          f'markerHeight="5" orient="auto"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
          for name, colour in (('mine', mine), ('other', other))),
        box(8, 128, 82, 54, theme.muted, theme, 'batch'),
        box(140, 60, 180, 62, other, theme, 'teacher', 'frozen'),
        box(140, 186, 180, 62, mine, theme, 'your model', 'unchanged, trains'),
        box(618, 186, 134, 62, mine, theme, 'its own loss', 'with soft targets'),
        arrow('M90 148 L137 94', other, 'other'),
        arrow('M90 162 L137 214', mine, 'mine'),
        arrow('M320 223 L613 223', mine, 'mine'),
        arrow('M320 91 C372 91 316 207 372 207 L613 207', other, 'other', dash='9 5'),
        words(230, 44, theme.muted, 13, 'itself one epoch ago, or a larger model'),
        words(470, 196, other, 13, 'its class scores ride along'),
        words(470, 243, mine, 13, 'class scores'),
        words(532, 148, theme.ink, 14, 'permute, reshape, concatenate, split, select:'),
        words(532, 167, theme.ink, 14, 'each step is done to both'),
        words(560, 52, theme.ink, 14, 'Assignment, sampling, boxes and the'),
        words(560, 71, theme.ink, 14, 'checkpoint stay those of the stock model'),
        '</svg>', ''])


def box(x: int, y: int, width: int, height: int, colour: str, theme: Theme, title: str,
        below: str = '') -> str:
    """A rounded box with one or two lines in it."""
    middle, centre = x + width // 2, y + height // 2
    lines = [words(middle, centre + (-2 if below else 5), theme.ink, 16, title)]
    if below:
        lines.append(words(middle, centre + 18, theme.muted, 13, below))
    return (f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="9" fill="{theme.paper}" '
            f'stroke="{colour}" stroke-width="2.5"/>' + ''.join(lines))


def arrow(path: str, colour: str, marker: str, dash: str = '') -> str:
    """A line with a head, of the marker's colour."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ''
    return (f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dashes} '
            f'marker-end="url(#{marker})"/>')


def words(x: int, y: int, colour: str, size: int, text: str) -> str:
    """Text around a point of its base line."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


# A chart of what results/studies/ holds -----------------------------------------------------------

LEAST_SEEDS = 5
PANELS = {  # the metric that each study names first, and how well the scores fit
    'mAP gained': ('coco/bbox_mAP', 1), 'PCK gained': ('PCK', 1),
    'error taken away': ('softmax/error', -1),
    'ECE taken away': ('/ECE', -1)
}


class Gain(NamedTuple):
    """What a method gave over its baseline.

    Attributes:
        title (str): Study, config and method.
        differences (dict[str, Interval]): By the title of the panel; above 0 is better.
    """
    title: str
    differences: Dict[str, Interval]


def gains_of(studies: List[StudyResults]) -> List[Gain]:
    """Of each method with five seeds; of the test split, where that was looked at as often."""
    found = [_gain_of(study, config, method) for study in studies for config in study.configs()
             for method in study.trained(config) if method != study.baseline]
    return [gain for gain in found if gain.differences]


def _gain_of(study: StudyResults, config: str, method: str) -> Gain:
    value, differences = 'mean', {}
    if study.compare(config, method, study.metrics[0], 'test').difference.n >= LEAST_SEEDS:
        value = 'test'
    for panel, (ending, sign) in PANELS.items():
        for metric in (name for name in study.metrics if name.endswith(ending)):
            one = study.compare(config, method, metric, value).difference
            if one.n >= LEAST_SEEDS:
                differences[panel] = one._replace(mean=sign * one.mean)
    test = ' (test)' if value == 'test' else ''
    return Gain(f'{study.name}, {config}: {method}{test}', differences)


def gains(found: List[Gain]) -> Chart:
    """A row for each method, a panel for each kind of gain."""
    panels = [panel for panel in PANELS if any(panel in gain.differences for gain in found)]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels):
            for row, gain in enumerate(found):
                one = gain.differences.get(panel)
                if one is not None:
                    axis.errorbar(one.mean, row, xerr=one.margin, fmt='o', capsize=3, markersize=4,
                                  color=theme.series[0] if one.excludes_zero else theme.muted)
            axis.axvline(0, color=theme.ink, linewidth=0.8)
            axis.set_title(panel)
            axis.set_yticks(range(len(found)), [gain.title for gain in found])
            axis.set_ylim(len(found) - 0.5, -0.5)
            axis.locator_params(axis='x', nbins=4)

    return Chart('gains', 'What each method gave', '', draw, (10.5, 0.27 * len(found) + 0.7))


# Charts of what results/pictures.json holds ----------------------------------------------------

def reliability(content: Dict[str, Any]) -> Chart:
    """A detector's scores as trained, and after a temperature that was fitted on other images."""
    titles = {
        'before': 'as trained',
        'after': f'after one temperature, T = {1 / content["slope"]:.2f}'
    }

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for group, (axis, (name, title)) in enumerate(zip(axes, titles.items())):
            bins = ReliabilityBins(*(np.array(content[name][key], float)
                                     for key in ReliabilityBins._fields))
            draw_reliability(axis, bins, theme, group)
            axis.set(xlabel='score')
            axis.set_title(f'{title}\nECE {content[name]["ECE"]:.3f}')
        axes[0].set_ylabel('share that is right')

    return Chart('reliability', 'Are the scores to be believed?', '', draw, (7.6, 3.6))


def keypoints(content: Dict[str, Any]) -> Chart:
    """Figures of the demo as they are, and as each method's student sees them."""
    columns, rows = content['columns'], content['figures']

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots(len(columns), len(rows), squeeze=False)
        for line, name in zip(axes, columns):
            for axis, one in zip(line, rows):
                image, points = picture_in(one['image']), np.array(one['points'][name])
                axis.imshow(image)
                draw_skeleton(axis, points, np.array(one['points'][columns[0]]), one['reach'])
                axis.set(xticks=[], yticks=[], xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
                axis.grid(False)
            line[0].set_ylabel(name)

    return Chart('keypoints', 'The same figures, taught in different ways', '', draw,
                 (1.5 * len(rows) + 0.4, 1.55 * len(columns)))


def draw_skeleton(axes: Any, points: np.ndarray, truth: np.ndarray, reach: float) -> None:
    """Joints and limbs; red rings where a joint is further off than ``reach`` pixels."""
    near, far = LIGHT.series[:2]  # with white around them they are seen on any image
    for first, second in LINKS:
        axes.plot(*points[[first, second]].T, color='white', lw=2.6, solid_capstyle='round')
        axes.plot(*points[[first, second]].T, color=near, lw=1.4, solid_capstyle='round')
    off = np.linalg.norm(points - truth, axis=1) > reach
    axes.scatter(*points[~off].T, s=12, color=near, edgecolors='white', lw=0.6, zorder=3)
    axes.scatter(*points[off].T, s=26, color=far, edgecolors='white', lw=0.9, zorder=4,
                 marker='X')


def detections(content: Dict[str, Any]) -> Chart:
    """An image with a detector's boxes, and their scores before and after a temperature."""
    colours = ('#56b4e9', '#d55e00', '#f0e442')

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots(1, 2)
        for axis, key, title in zip(axes, ('before', 'after'), ('scores as trained',
                                                                'after one temperature')):
            image = picture_in(content['image'])
            axis.imshow(image)
            for (x1, y1, x2, y2), label, score in zip(content['boxes'], content['labels'],
                                                      content[key]):
                colour = colours[label]
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.4))
                axis.text(x1 + 1,
                          y1 + 2,
                          f'{score:.2f}'.lstrip('0'),
                          fontsize=7.5,
                          va='top',
                          color='black',
                          bbox=dict(facecolor=colour, edgecolor='none', pad=0.8, alpha=0.9))
            axis.set(xticks=[], yticks=[], xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
            axis.set_title(title)
            axis.grid(False)

    return Chart('detections', 'Boxes and their scores', '', draw, (7.6, 3.1))


def picture_in(text: str) -> np.ndarray:
    """The image of a string that :func:`as_text` made, (H, W, 3) of uint8."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert('RGB'))


def as_text(image: Image.Image, quality: int = 85) -> str:
    """An image as a JPEG in letters."""
    buffer = io.BytesIO()
    image.convert('RGB').save(buffer, 'JPEG', quality=quality)
    return base64.b64encode(buffer.getvalue()).decode()


def save(chart: Chart, out: Path, dpi: int = 150, numbers: str = '') -> None:
    """Write ``<name>_light.png`` and ``<name>_dark.png``, of 256 colours to be small.

    ``numbers``, what was drawn, is kept in the files.
    """
    for name, theme in THEMES.items():
        buffer = io.BytesIO()
        with drawn(chart, theme) as figure:
            figure.savefig(buffer, dpi=dpi)
        shrink(Image.open(buffer), out / f'{chart.name}_{name}.png', numbers)


def shrink(image: Image.Image, path: Path, numbers: str = '') -> None:
    """Write a png of 256 colours."""
    info = PngInfo()
    if numbers:
        info.add_text(NUMBERS_KEY, numbers)
    image.convert('RGB').quantize(256, dither=Image.Dither.NONE).save(path, optimize=True,
                                                                      pnginfo=info)


def as_numbers(found: List[Gain]) -> str:
    """What a picture of gains holds, to see whether it is of today."""
    return '\n'.join(
        f'{gain.title} {panel} {one.mean:.4f} {one.margin:.4f}'
        for gain in found for panel, one in gain.differences.items())


# Looking at runs --------------------------------------------------------------------------------

SCORE = 0.05  # of the detections that count, as in DetCalibrationMetric
SHOWN = 0.3  # and of those that are drawn
NUM_FIGURES = 5


def look_at_detector(folder: Path) -> Dict[str, Any]:
    """Reliability on the test split before and after a temperature, and one image with its boxes.

    The temperature is fitted to the detections of the val split.
    """
    run, rule = Run(folder), DetectionRule(score_thr=SCORE)
    val, test = (predictions_of(run, split) for split in ('val', 'test'))
    # Fitted as tools/analysis/calibrate.py does: to what is kept at the LRP-optimal thresholds
    found = DetectionCalibration(val.detections, val.objects, len(val.names), len(val.image_ids),
                                 rule=rule)
    kept = found.matched.above(found.thresholds)
    calibrator = fit_calibrator('temperature', kept.scores, kept.hits, kept.labels, val.names)
    measured = judge(test, rule).above(SCORE)
    mapped = calibrator(measured.probabilities, measured.labels)
    shown = int(np.bincount(test.gt_images).argsort()[len(test.image_ids) // 2])  # a crowd as usual
    chosen = (test.images == shown) & (test.scores > SHOWN)
    image = Image.open(test.image_paths[shown])
    return dict(
        run='configs/bccd/retinanet_r18_bccd.py, seed 0',
        reliability=dict(
            slope=calibrator.maps[0].slope,
            before=bins_of(measured.probabilities, measured.hits),
            after=bins_of(mapped, measured.hits)),
        detections=dict(
            image=as_text(image.resize((image.width // 2, image.height // 2))),
            boxes=np.round(test.boxes[chosen] / 2, 1).tolist(), labels=test.labels[chosen].tolist(),
            before=np.round(test.scores[chosen], 4).tolist(),
            after=np.round(calibrator(test.scores[chosen], test.labels[chosen]), 4).tolist()))


def bins_of(scores: np.ndarray, hits: np.ndarray) -> Dict[str, Any]:
    """What a reliability diagram shows; empty bins are left out."""
    bins = reliability_bins(scores, hits, 10)
    kept = bins.count > 0
    return {**{key: np.round(values[kept], 5).tolist() for key, values in bins._asdict().items()},
            'ECE': ece(scores, hits)}


def look_at_demo(folder: Path) -> Dict[str, Any]:
    """The demo's first validation figures, and where each method puts their joints."""
    content = json.loads((folder / 'demo.json').read_text())
    found = {
        arm: predictions_of(Run(folder / f'{arm}_s{content["seeds"][0]}'))
        for arm in content['arms']
    }
    first = next(iter(found.values()))
    figures = []
    for person in range(len(first.images)):
        if len(figures) == NUM_FIGURES:
            break
        x1, y1, x2, y2 = first.gt_boxes[person]
        if y2 - y1 < 60:  # too small to be seen in a picture
            continue
        left, top = int(x1) - 6, int(y1) - 6
        corner = np.array([left, top])
        crop = Image.open(first.image_paths[first.images[person]]).convert('RGB').crop(
            (left, top, int(x2) + 6, int(y2) + 6))
        points = {'labels': first.gt_keypoints[person], **{
            name: each.keypoints[person] for name, each in found.items()}}
        figures.append(dict(
            image=as_text(crop, 92), reach=0.05 * float(max(x2 - x1, y2 - y1)),
            points={name: np.round(each - corner, 1).tolist() for name, each in points.items()}))
    return dict(columns=['labels', *found], figures=figures)


def take_screenshot(page: Path, out: Path) -> None:
    """What a browser shows of a report, in both schemes."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UsageError(f'none of {", ".join(BROWSERS)} is there to take the screenshot with')
    for number, name in enumerate(reversed(THEMES)):
        with tempfile.TemporaryDirectory() as folder:
            shot = Path(folder) / 'shot.png'
            command = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
                       f'--user-data-dir={folder}/profile', '--window-size=1280,1000',
                       f'--blink-settings=preferredColorScheme={number}',
                       f'--screenshot={shot}', page.resolve().as_uri()]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            shrink(Image.open(shot), out / f'report_{name}.png')


def main() -> None:
    """Look, where asked to, and draw."""
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        content = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
        if args.detector:
            content['detector'] = look_at_detector(args.detector)
        if args.demo:
            content['demo'] = look_at_demo(args.demo)
        if args.report:
            take_screenshot(args.report, args.out)
    except UsageError as error:
        end_in_a_line('draw_pictures.py', error, args.traceback)
    NUMBERS.write_text(json.dumps(content, indent=1) + '\n')
    for name, theme in THEMES.items():
        (args.out / f'ride_along_{name}.svg').write_text(ride_along(theme))
    found = gains_of([StudyResults(path) for path in sorted(STUDIES.glob('*.json'))])
    save(gains(found), args.out, dpi=100, numbers=as_numbers(found))
    if 'detector' in content:
        save(reliability(content['detector']['reliability']), args.out)
        save(detections(content['detector']['detections']), args.out)
    if 'demo' in content:
        save(keypoints(content['demo']), args.out, dpi=90)


if __name__ == '__main__':
    main()
