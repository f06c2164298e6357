"""Which charts a report has, section by section."""
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from ..calibration import ece, risk_coverage
from ..measures import measure_of
from .charts.chart import TOGETHER, Chart, short_names
from .charts.confusion import confusion
from .charts.curves import Line, curves
from .charts.intervals import intervals
from .charts.reliability import reliability, reliability_by_size
from .charts.shares import Curve, shares, shares_by_class
from .directions import lower_is_better
from .judging import Judged
from .members import Member
from .results import label_of, overall
from .rules import Rule
from .statistics import mean_interval
from .thresholds import Best, Tradeoff, best_thresholds, mean_over_classes, mean_tradeoff, tradeoff

SIZES = ('_s', '_m', '_l', '(M)', '(L)')  # ends of the metrics of small, medium, large objects
NUM_CURVES = 12  # logged quantities that are drawn
NUM_CLASSES = 20  # classes or keypoints in a chart of all
NUM_SMALL = 6  # classes or keypoints with axes of their own


class Thresholds(NamedTuple):
    """The section on thresholds.

    Attributes:
        charts (list[Chart]): Precision over recall and F1 over threshold.
        best (dict[int, list[Best]]): The best threshold of each class, by group.
    """
    charts: List[Chart]
    best: Dict[int, List[Best]]


def noun_of(task: str) -> str:
    """What is predicted."""
    return 'keypoints' if task == 'pose' else 'detections'


def arrow(key: str, task: str) -> str:
    """Which direction is better, if that is known."""
    return {True: ' ↓', False: ' ↑', None: ''}[lower_is_better(key, task)]


def curve_charts(members: List[Member], names: Sequence[str], task: str) -> List[Chart]:
    """Loss, weight of the past self, and all metrics by which runs can be compared.

    Those of one class or size of objects are left out.
    """
    runs = [member.run for member in members]
    metrics = overall(list(dict.fromkeys(key for run in runs for key in run.metric_names())),
                      members)
    metrics = [key for key in metrics if not key.endswith(SIZES) and
               getattr(measure_of(key, task), 'comparable', True)]
    keys = ['loss', 'pskd_alpha', *metrics]
    unit = 'epoch' if all(run.by_epoch for run in runs) else 'iteration'
    drawn = []
    for key in keys:
        lines = [Line(m.group, *m.run.curve(key), not m.left_out) for m in members]
        lines = [line for line in lines if np.isfinite(line.y).any()]
        if lines:
            title = {'loss': 'training loss', 'pskd_alpha': 'weight of the past self'}.get(
                key, label_of(key))
            title += '' if key == 'pskd_alpha' else arrow(key, task)
            drawn.append(curves(f'curve_{file_name(key)}', title, lines, names, unit))
    return drawn[:NUM_CURVES]


def file_name(text: str) -> str:
    """A name that a file and an id may have."""
    return ''.join(c if c.isalnum() or c in '-_' else '_' for c in text)


def by_group(known: Sequence[Member]) -> Dict[int, List[Member]]:
    """The members of each group that has any."""
    return {group: [m for m in known if m.group == group]
            for group in sorted({m.group for m in known})}


def reliability_charts(known: Sequence[Member], names: Sequence[str], rule: Rule,
                       task: str) -> List[Chart]:
    """A diagram of each group, of what the calibration error of the table is of."""
    drawn = []
    for group, mine in by_group(known).items():
        measured = [m.verdicts.measured for m in mine]
        error = float(np.mean([ece(one.probabilities, one.hits, rule.n_bins)
                               for one in measured]))
        title = short_names(names, 32)[group] + (f', {len(mine)} runs' if len(mine) > 1 else '')
        drawn.append(reliability(
            f'reliability_{group}', title, np.concatenate([one.probabilities for one in measured]),
            np.concatenate([one.hits for one in measured]), group, rule.n_bins, error,
            noun_of(task)))
    return drawn


def size_charts(known: Sequence[Member], names: Sequence[str]) -> List[Chart]:
    """The same of each group by the size of the objects, where there are several sizes."""
    drawn = []
    for group, mine in by_group(known).items():
        sizes = {}
        for size in mine[0].verdicts.by_size:
            parts = [m.verdicts.by_size[size] for m in mine if size in m.verdicts.by_size]
            scores, hits, errors = zip(*parts)
            sizes[size] = np.concatenate(scores), np.concatenate(hits), float(np.mean(errors))
        if len(sizes) > 1:
            drawn.append(reliability_by_size(f'reliability_by_size_{group}',
                                             short_names(names, 40)[group], sizes))
    return drawn


def risk_charts(known: Sequence[Member], names: Sequence[str]) -> List[Chart]:
    """Risk over coverage, the mean of the runs of each group."""
    coverage, drawn = np.linspace(0, 1, 201)[1:], []
    for group, mine in by_group(known).items():
        risks = []
        for member in mine:
            one = member.verdicts.measured
            # Ranks have the order of the scores, and lie in [0, 1]
            ranks = np.unique(one.scores, return_inverse=True)[1].reshape(-1)
            if len(ranks):
                x, y = risk_coverage(ranks / len(ranks), one.hits)
                risks.append(np.interp(coverage, x, y))
        if risks:
            drawn.append(Curve(group, coverage, np.mean(risks, axis=0)))
    ends = [f'{names[curve.group]} at full coverage has risk {curve.y[-1]:.3f}, at half '
            f'{np.interp(0.5, curve.x, curve.y):.3f}' for curve in drawn]
    return [shares('risk_coverage', 'risk over coverage ↓', drawn, names, ('coverage', 'risk'),
                   '; '.join(ends) + '.', free_top=True)] if drawn else []


def threshold_section(known: Sequence[Member], names: Sequence[str]) -> Thresholds:
    """Precision over recall, and F1 over the score threshold."""
    if not known:
        return Thresholds([], {})
    highest = max(1., *(m.verdicts.judged.scores.max(initial=0) for m in known))
    groups = {group: mean_tradeoff([tradeoff(m.verdicts.judged, highest) for m in mine])
              for group, mine in by_group(known).items()}
    judged = known[0].verdicts.judged
    best = {group: best_thresholds(curves_of, judged) for group, curves_of in groups.items()}
    drawn = [_precision_chart(groups, names), _f1_chart(groups, names, highest)]
    labels = _that_differ_most(judged, groups)
    if len(groups) <= TOGETHER and len(judged.names) > 1:
        drawn += _small_charts(groups, labels, judged, names, highest)
    return Thresholds(drawn, best)


def _recall_axis(values: np.ndarray) -> np.ndarray:
    return np.linspace(0, 1, values.shape[-1])


def _precision_chart(groups: Dict[int, Tradeoff], names: Sequence[str]) -> Chart:
    means = {group: mean_over_classes(of.precision_at_recall) for group, of in groups.items()}
    drawn = [Curve(group, _recall_axis(y), y) for group, y in means.items()]
    words = '; '.join(f'{names[group]} has precision {y[50]:.3f} at recall 0.5'
                      for group, y in means.items())
    return shares('precision_recall', 'precision over recall, mean ↑', drawn, names,
                  ('recall', 'precision'), words + '.')


def _f1_chart(groups: Dict[int, Tradeoff], names: Sequence[str], highest: float) -> Chart:
    drawn, words = [], []
    for group, of in groups.items():
        y = mean_over_classes(of.f1)
        at = int(np.argmax(np.nan_to_num(y)))
        drawn.append(Curve(group, of.thresholds, y, (float(of.thresholds[at]), float(y[at]))))
        words.append(f'{names[group]} has the highest, {y[at]:.3f}, at {of.thresholds[at]:.2f}')
    return shares('f1', 'F1 by score threshold, mean ↑', drawn, names, ('score threshold', 'F1'),
                  '; '.join(words) + '.', right=highest)


def _small_charts(groups: Dict[int, Tradeoff], labels: Sequence[int], judged: Judged,
                  names: Sequence[str], highest: float) -> List[Chart]:
    precision: dict = {}
    f1: dict = {}
    for label in labels:
        precision[judged.names[label]] = [
            Curve(group, _recall_axis(of.precision_at_recall), of.precision_at_recall[label])
            for group, of in groups.items()]
        f1[judged.names[label]] = []
        for group, of in groups.items():
            y = of.f1[label]
            at = int(np.argmax(y))
            f1[judged.names[label]].append(Curve(
                group, of.thresholds, y, (float(of.thresholds[at]), float(y[at]))))
    shown = ', '.join(judged.names[label] for label in labels)
    return [shares_by_class('precision_recall_by_name', 'precision over recall ↑', precision, names,
                            ('recall', 'precision'), f'Small charts of {shown}.'),
            shares_by_class('f1_by_name', 'F1 by score threshold ↑', f1, names,
                            ('score threshold', 'F1'), f'Small charts of {shown}.', highest)]


def _that_differ_most(judged: Judged, groups: Dict[int, Tradeoff]) -> List[int]:
    """A few classes with objects, those in which the groups differ most."""
    area = np.array([of.precision_at_recall.mean(axis=1) for of in groups.values()])
    spread = np.ptp(area, axis=0)
    known = np.flatnonzero(~np.isnan(spread))
    return sorted(known[np.argsort(-spread[known], kind='stable')[:NUM_SMALL]].tolist())


def by_name_charts(known: Sequence[Member], names: Sequence[str],
                   task: str) -> Tuple[List[Chart], int]:
    """Measures of each class or keypoint; of many, those that differ most."""
    if not known:
        return [], 0
    drawn, left_out = [], 0
    groups, labels = by_group(known), known[0].verdicts.judged.names
    for key in known[0].verdicts.by_name:
        rows = [[mean_interval([m.verdicts.by_name[key][i] for m in mine])
                 for i in range(len(labels))] for mine in groups.values()]
        means, margins = (np.array([[getattr(one, part) for one in row] for row in rows])
                          for part in ('mean', 'margin'))
        spread = np.nan_to_num(np.ptp(means, axis=0), nan=-1)
        spread[np.isnan(means).all(axis=0)] = -2
        most = NUM_CLASSES if len(groups) <= TOGETHER else NUM_CLASSES // 2
        shown = np.sort(np.argsort(-spread, kind='stable')[:most])
        left_out = len(labels) - len(shown)
        drawn.append(intervals(
            f'by_name_{key}', label_of(key) + arrow(key, task), [labels[i] for i in shown],
            means[:, shown], margins[:, shown], list(groups), names))
    return drawn, left_out


def confusion_charts(known: Sequence[Member], names: Sequence[str], task: str) -> List[Chart]:
    """What is taken for what by each group, all of its runs together."""
    nothing = ('elsewhere', '') if task == 'pose' else ('missed', 'nothing there')
    return [confusion(f'confusion_{group}', short_names(names, 40)[group],
                      np.sum([m.verdicts.confusion for m in mine], axis=0),
                      mine[0].verdicts.judged.names, group, nothing)
            for group, mine in by_group(known).items()]
