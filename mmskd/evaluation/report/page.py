"""Puts the report together: one HTML file that needs nothing else, and PNGs beside it."""
import base64
import datetime
import io
import json
import math
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from mmskd.errors import UsageError
from mmskd.progress import track
from mmskd.version import __version__

from ..calibration import ece
from . import charts, pictures
from .judging import Judged, Rule, calibration_metrics, judge, metrics_by_name
from .predictions import Predictions, predictions_of
from .runs import Group, Run, config_differences, group_runs
from .statistics import Interval, mean_interval, paired_difference

LOWER_IS_BETTER = ('loss', 'NLL', 'ECE', 'LaECE', 'Brier', 'AURC', 'EAURC', 'oLRP', 'clipped',
                   'EPE', 'NME')
MEANINGS = {
    'mAP': 'mean average precision over the IoUs 0.5 to 0.95, in all classes',
    'AP': 'average precision over the thresholds 0.5 to 0.95',
    'PCK': 'share of keypoints that are near enough to where they should be',
    'EPE': 'mean distance of keypoints from where they should be, in pixels',
    'ECE': 'calibration error: how far score and share of right predictions are apart',
    'LaECE': 'calibration error against precision times mean IoU, mean over classes',
    'NLL': 'negative log-likelihood of right and wrong, in nats',
    'Brier': 'mean squared difference of score and right (1) or wrong (0)',
    'AURC': 'area under the risk-coverage curve: do wrong predictions score low?',
    'EAURC': 'the part of AURC that a better order of the same predictions would remove',
    'clipped': 'share of scores outside [0, 1], which are no probabilities',
    'oLRP': 'localisation, false alarms and misses in one error, at the best score threshold',
}
# What a run whose data, checkpoint or code is gone may end in; the others are still reported
CANNOT_PREDICT = (UsageError, OSError, ImportError, KeyError, RuntimeError, UnpicklingError)
SIZES = ('_s', '_m', '_l', '(M)', '(L)')  # ends of the metrics of small, medium, large objects
SCORE_THR = 0.3  # of predictions that are drawn and compared image by image
NUM_PICTURES = 6
NUM_BARS = 30


class Member(NamedTuple):
    """A run of a group, its metrics, and what its checkpoint predicts, where that could be had."""
    group: int
    run: Run
    metrics: Dict[str, float]
    predictions: Optional[Predictions] = None
    judged: Optional[Judged] = None
    by_name: Optional[Dict[str, np.ndarray]] = None


class Row(NamedTuple):
    """A metric in the table: an interval for each group, a difference for each but the first."""
    label: str
    key: str
    lower: bool
    means: List[Interval]
    differences: List[Interval]


def write_report(folders: Sequence[Any], out_dir: Any, baseline: Optional[str] = None,
                 split: str = 'val', which: str = 'last', quiet: bool = False) -> Path:
    """Compare training runs.

    Args:
        folders (sequence[str or Path]): Work dirs of ``tools/train.py``. Runs whose configs differ
            in the seed only are one group.
        out_dir (str or Path): Where ``report.html`` and the PNGs go; made if it does not exist.
        baseline (str, optional): Folder of a run of the group that the others are compared with.
            Defaults to None: the first.
        split (str): ``'val'`` or ``'test'``: whose images are predicted. Defaults to ``'val'``.
        which (str): ``'last'`` or ``'best'`` checkpoint. Defaults to ``'last'``.
        quiet (bool): Show no progress bars. Defaults to False.

    Returns:
        Path: The page.

    Raises:
        UsageError: If a folder is no run, or the runs cannot be compared.
    """
    groups = group_runs([Run(folder) for folder in folders], baseline)
    notes: List[str] = []
    rule = Rule.of(groups[0].runs[0].cfg, split)
    members = _members(groups, split, which, rule, notes, quiet)
    names = [group.name for group in groups]
    rows = _rows(members, groups)
    known = [member for member in members if member.judged]
    task = known[0].predictions.task if known else None
    noun = 'keypoints' if task == 'pose' else 'detections'

    curve_charts = _curve_charts(members, names)
    reliability_charts = _reliability_charts(known, names, rule, noun)
    risk_charts = [charts.risk_coverages('risk_coverage', [
        (m.group, m.judged.scores, m.judged.hits) for m in known], names, noun)] if known else []
    bar_charts, bars_left_out = _bar_charts(known, names)
    drawn = curve_charts + reliability_charts + risk_charts + bar_charts

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    svgs = {}
    for chart in track(drawn, 'charts', quiet):
        svgs[chart.name] = Markup(charts.save(chart, out_dir))
    page = _template().render(
        version=__version__, made=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
        names=names, members=members, number=number, split=split, which=which, rule=rule,
        task=task, noun=noun, notes=notes, rows=rows, summary=_summary(rows, names),
        meanings=_meanings(rows), svgs=svgs, curve_charts=curve_charts,
        reliability_charts=reliability_charts, risk_charts=risk_charts, bar_charts=bar_charts,
        bars_left_out=bars_left_out, scenes=_scenes(known, names, out_dir, notes, quiet),
        score_thr=SCORE_THR, differences=[
            (key, [_code(value) for value in values]) for key, values in
            config_differences([group.runs[0].essence() for group in groups])],
        light=charts.css_variables(charts.LIGHT), dark=charts.css_variables(charts.DARK),
        marks=dict(right=pictures.RIGHT['color'], wrong=pictures.WRONG['color'],
                   missed=pictures.MISSED['color']))
    path = out_dir / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


def _members(groups: List[Group], split: str, which: str, rule: Rule, notes: List[str],
             quiet: bool) -> List[Member]:
    """Predict and judge; what cannot be had is noted, and the first that can be sets the images."""
    members, first = [], None
    for index, group in enumerate(groups):
        for run in group.runs:
            if not run.train and not run.val:
                notes.append(f'{run.folder}: no vis_data/scalars.json, so no curves of this run.')
            member = Member(index, run, run.last_metrics())
            try:
                predictions = predictions_of(run, split, which, quiet)
                first = first or (run, predictions)
                _check_comparable(run, predictions, *first)
                judged = judge(predictions, rule)
                # The run's own evaluators have the last word
                metrics = {**predictions.metrics, **calibration_metrics(predictions, judged, rule),
                           **predictions.metrics}
                member = Member(index, run, metrics, predictions, judged,
                                metrics_by_name(predictions, judged, rule))
                if run.cfg[f'{split}_dataloader'].dataset.get('bbox_file'):
                    notes.append(f'{run.folder}: measured on the annotated boxes, not on the '
                                 'detected ones that its config names (bbox_file).')
            except CANNOT_PREDICT as error:
                notes.append(f'{run.folder}: no predictions ({error}); its metrics are those of '
                             'its last logged validation.')
            members.append(member)
    return members


def _check_comparable(run: Run, predictions: Predictions, other: Run, theirs: Predictions) -> None:
    same = predictions.names == theirs.names and \
        np.array_equal(predictions.image_ids, theirs.image_ids) and \
        predictions.gt_boxes.shape == theirs.gt_boxes.shape
    if not same:
        raise UsageError(f'its images, classes or objects are not those of {other.folder}')


# ------------------------------------------------------------------ numbers


def _rows(members: List[Member], groups: List[Group]) -> List[Row]:
    """The table of metrics, those of single classes left out."""
    rows = []
    for key in _overall([key for member in members for key in member.metrics], members):
        by_group: List[Dict[Any, float]] = [{} for _ in groups]
        for i, member in enumerate(members):
            if key in member.metrics:
                seed = f'run {i}' if member.run.seed is None else member.run.seed
                by_group[member.group][seed] = member.metrics[key]
        rows.append(Row(_label(key), key, _lower(key),
                        [mean_interval(list(of.values())) for of in by_group],
                        [paired_difference(of, by_group[0]) for of in by_group[1:]]))
    return rows


def _overall(keys: Sequence[str], members: List[Member]) -> List[str]:
    """Each of the keys once, without those that are of a single class or keypoint."""
    names = tuple({f'{name}_' for m in members if m.judged for name in m.judged.names})
    tails = tuple({f'_{key.rpartition("/")[2]}' for key in keys})
    return [key for key in dict.fromkeys(keys) if key.rpartition('/')[2].startswith('mean_') or
            not (key.rpartition('/')[2].startswith(names) or key.endswith(tails))]


def _label(key: str) -> str:
    return key.rpartition('/')[2].replace('bbox_', '')


def _lower(key: str) -> bool:
    return _label(key).rpartition('_')[2] in LOWER_IS_BETTER


def _summary(rows: List[Row], names: List[str]) -> List[str]:
    """For each group against the baseline: the first metric and the ECE, and what to make of it."""
    chosen = rows[:1] + [row for row in rows[1:] if row.label == 'ECE']
    sentences = []
    for i, name in enumerate(names[1:]):
        known = [row for row in chosen if row.differences[i].n]
        if known:
            parts = [f'{row.label} {number(row.means[i + 1].mean)} against '
                     f'{number(row.means[0].mean)}{_verdict(row, i)}' for row in known]
            end = '' if known[0].differences[i].n > 1 else \
                ' One seed: the difference may be chance.'
            sentences.append(f'{name} and {names[0]}: {", ".join(parts)}.{end}')
    return sentences


def _verdict(row: Row, i: int) -> str:
    difference = row.differences[i]
    if difference.n < 2:
        return ''
    if not difference.excludes_zero:
        return f' (within chance over {difference.n} seeds)'
    better = (difference.mean < 0) == row.lower
    return f' ({"better" if better else "worse"} beyond chance over {difference.n} seeds)'


def _meanings(rows: List[Row]) -> Dict[str, str]:
    return {row.label: MEANINGS[row.label] for row in rows if row.label in MEANINGS}


def number(value: float, signed: bool = False) -> str:
    """A number with three decimals, fewer for large ones; a dash for nan."""
    if value is None or math.isnan(value):
        return '–'
    size = abs(value)
    digits = 3 if size < 10 else 2 if size < 100 else 1
    text = f'{value:+.{digits}f}' if signed else f'{value:.{digits}f}'
    return text.replace('-', '\N{MINUS SIGN}')


def _code(value: Any) -> str:
    """A config value as one would write it."""
    return value if value == '(not set)' else json.dumps(value, default=str, ensure_ascii=False)


# ------------------------------------------------------------------ figures


def _curve_charts(members: List[Member], names: List[str]) -> List[charts.Chart]:
    """Loss, weight of the past self, and all metrics but those of one class or size of objects."""
    runs = [(member.group, member.run) for member in members]
    metrics = _overall([key for _, run in runs for key in run.metric_names()], members)
    keys = ['loss', 'pskd_alpha', *(key for key in metrics if not key.endswith(SIZES))]
    unit = 'epoch' if all(run.by_epoch for _, run in runs) else 'iteration'
    drawn = []
    for key in keys:
        lines = [charts.Line(i, *run.curve(key)) for i, run in runs]
        lines = [line for line in lines if len(line.x)]
        if lines:
            arrow = '' if key == 'pskd_alpha' else ' ↓' if _lower(key) else ' ↑'
            title = {'loss': 'training loss', 'pskd_alpha': 'weight of the past self'}.get(
                key, _label(key))
            drawn.append(charts.curves(f'curve_{_file_name(key)}', title + arrow, lines, names,
                                       unit))
    return drawn


def _file_name(text: str) -> str:
    return ''.join(c if c.isalnum() or c in '-_' else '_' for c in text)


def _reliability_charts(known: List[Member], names: List[str], rule: Rule,
                        noun: str) -> List[charts.Chart]:
    drawn = []
    for group, name in enumerate(names):
        mine = [member for member in known if member.group == group]
        if mine:
            error = np.mean([ece(m.judged.scores, m.judged.hits, rule.n_bins) for m in mine])
            title = name + (f', {len(mine)} seeds' if len(mine) > 1 else '')
            drawn.append(charts.reliability(
                f'reliability_{group}', title, np.concatenate([m.judged.scores for m in mine]),
                np.concatenate([m.judged.hits for m in mine]), group, rule.n_bins, error, noun))
    return drawn


def _bar_charts(known: List[Member], names: List[str]) -> Tuple[List[charts.Chart], int]:
    """Quality and calibration error by class; of many classes, those that differ most."""
    if not known:
        return [], 0
    drawn, left_out = [], 0
    present = sorted({member.group for member in known})
    for key in known[0].by_name:
        intervals = [[mean_interval([member.by_name[key][i] for member in known
                                     if member.group == group])
                      for i in range(len(known[0].judged.names))] for group in present]
        means = np.array([[interval.mean for interval in row] for row in intervals])
        margins = np.array([[interval.margin for interval in row] for row in intervals])
        spread = np.nan_to_num(np.ptp(means, axis=0), nan=-1)
        shown = np.sort(np.argsort(-spread, kind='stable')[:NUM_BARS])
        left_out = means.shape[1] - len(shown)
        title = key + (' ↓' if key == 'ECE' else ' ↑')
        drawn.append(charts.bars(
            f'by_name_{key}', title, [known[0].judged.names[i] for i in shown], means[:, shown],
            margins[:, shown], [names[group] for group in present]))
    return drawn, left_out


def _scenes(known: List[Member], names: List[str], out_dir: Path, notes: List[str],
            quiet: bool) -> List[dict]:
    """The images on which the groups' first runs disagree most."""
    firsts = [next(m for m in known if m.group == group)
              for group in sorted({m.group for m in known})]
    if len(firsts) < 2:
        return []
    predictions, task = firsts[0].predictions, firsts[0].predictions.task
    chosen, differ = pictures.disagreements(
        [member.judged for member in firsts], len(predictions.image_ids), SCORE_THR, NUM_PICTURES,
        count_alarms=task == 'detection')
    scenes = []
    for rank, one in enumerate(track(chosen, 'pictures', quiet), 1):
        path = str(predictions.image_paths[one.image])
        image = pictures.load_image(path)
        if image is None:
            notes.append(f'{path} cannot be read, so it is not shown.')
            continue
        columns = [('ground truth', pictures.Scene(predictions, None, one.image, SCORE_THR))] + [
            (names[m.group],
             pictures.Scene(m.predictions, m.judged, one.image, SCORE_THR, differ)) for m in firsts]
        pictures.montage([(image, columns)]).savefig(out_dir / f'disagreement_{rank}.png')
        scenes.append(dict(
            id=f'disagreement_{rank}', file=Path(path).name, objects=one.objects,
            alarms=one.alarms, panels=[dict(
                title=title, src=_data_uri(pictures.picture(image, scene)),
                text=pictures.counts(scene.judged, one.image, SCORE_THR, task)
                if scene.judged else '') for title, scene in columns]))
    return scenes


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='jpeg', dpi=200, pil_kwargs=dict(quality=82, optimize=True))
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters['number'] = number
    return environment.get_template('page.html')
