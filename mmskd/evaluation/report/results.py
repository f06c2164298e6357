"""The tables of a report, and what may be concluded from them."""
import math
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from ..measures import OWN_THR, measure_of
from .directions import lower_is_better
from .members import Member, evaluator_differences
from .statistics import Interval, difference, mean_interval

MEANINGS = {
    'mAP': 'average precision, mean over the IoUs 0.5 to 0.95 and all classes',
    'AP50': 'average precision at an IoU of 0.5, mean over all classes',
    'AP75': 'average precision at an IoU of 0.75, mean over all classes',
    'AP': 'average precision over the thresholds 0.5 to 0.95',
    'PCK': 'share of keypoints that are near enough to where they should be',
    'PCKh': 'share of keypoints that are near enough, by the size of the head',
    'tPCK': 'share of keypoints that are near enough, by the size of the torso',
    'OKS hits': 'share of keypoints whose term of the OKS is high enough',
    'EPE': 'mean distance of keypoints from where they should be, in pixels',
}
CLIPPED = ('ECE', 'NLL', 'Brier', 'overconfidence')  # take keypoint scores for probabilities
MOST_CLIPPED = 0.01  # share of scores outside [0, 1], above which they are none
SAID_FIRST = ('mAP', 'LaECE_0', 'LaECE_0' + OWN_THR, 'OCE', 'OCE' + OWN_THR)
SAID_FIRST_OF_POSES = ('PCK', 'PCKh', 'tPCK', 'OKS hits', 'ECE')


class Row(NamedTuple):
    """A metric in a table.

    Attributes:
        key (str): Its whole name.
        label (str): What to call it.
        says (str): What it says, in a line; may be empty.
        lower (bool or None): Whether less is better; None if that is not known, or neither is.
        means (list[Interval]): Of each group.
        values (list[list[float]]): Of each run of each group.
        differences (list[Interval]): Of each group to the first; the first's own is empty.
        why_not (str): Why there is no verdict; empty where there may be one.
        over_images (list[tuple]): Of each group of one run, the ends of an interval over images;
            of others, and where there is none, empty.
    """
    key: str
    label: str
    says: str
    lower: Any
    means: List[Interval]
    values: List[List[float]]
    differences: List[Interval]
    why_not: str
    over_images: List[Tuple[float, ...]]

    def verdict(self, group: int) -> str:
        """``'better'``, ``'worse'``, ``'within chance'``, or empty where nothing can be said."""
        found = self.differences[group]
        if self.why_not or found.n < 2:
            return ''
        if not found.excludes_zero:
            return 'within chance'
        return 'better' if (found.mean < 0) == self.lower else 'worse'


class Table(NamedTuple):
    """Rows that one rule, or the runs' own evaluators, has made.

    Attributes:
        rows (list[Row]): Those to compare by.
        others (list[Row]): Those without a verdict.
        why_not (str): Why no row has a verdict; empty where some have.
    """
    rows: List[Row]
    others: List[Row]
    why_not: str


def judged_table(members: Sequence[Member], n_groups: int, task: str) -> Table:
    """What the report's one rule says of all runs."""
    values = [m.verdicts.values if m.verdicts else {} for m in members]
    return _table(_keys(values), values, members, n_groups, task, '')


def own_table(members: Sequence[Member], n_groups: int, task: str, split: str) -> Table:
    """What the runs' own evaluators say, which can be compared only if they are the same."""
    why_not = _why_own_cannot_be_compared(members, split)
    values = [member.own for member in members]
    return _table(overall(_keys(values), members), values, members, n_groups, task, why_not)


def _table(keys: Sequence[str], values: Sequence[Dict[str, float]], members: Sequence[Member],
           n_groups: int, task: str, why_not: str) -> Table:
    clipped = _why_clipped_cannot_be_compared(values)
    rows = [_row(key, members, values, n_groups, task, why_not or (
        clipped if label_of(key).replace('mean_', '') in CLIPPED else '')) for key in keys]
    return Table([row for row in rows if not row.why_not or row.why_not == why_not],
                 [row for row in rows if row.why_not and row.why_not != why_not], why_not)


def _why_own_cannot_be_compared(members: Sequence[Member], split: str) -> str:
    counted = [member for member in members if not member.left_out]
    differ = evaluator_differences(counted, split)
    if differ:
        return f'the evaluators of the runs differ: {differ}'
    unknown = [str(member.run.folder) for member in counted if member.predictions is None]
    if unknown:
        return ('it cannot be told whether all runs were measured on the same images: there are no '
                f'predictions of {", ".join(unknown)}')
    return ''


def _why_clipped_cannot_be_compared(values: Sequence[Dict[str, float]]) -> str:
    """Keypoint scores outside [0, 1] are no probabilities; those of detectors are."""
    share = max((value for of in values for key, value in of.items()
                 if label_of(key) == 'clipped' and not math.isnan(value)), default=0.)
    return (f'up to {share:.0%} of the scores of a run are outside [0, 1] and were clipped: they '
            'are no probabilities') if share > MOST_CLIPPED else ''


def _row(key: str, members: Sequence[Member], values: Sequence[Dict[str, float]], n_groups: int,
         task: str, why_not: str) -> Row:
    by_group: List[Dict[Any, float]] = [{} for _ in range(n_groups)]
    for i, (member, of) in enumerate(zip(members, values)):
        if key in of and not member.left_out:
            seed = f'run {i}' if member.run.seed is None else member.run.seed
            by_group[member.group][seed] = of[key]
    measure, lower = measure_of(key, task), lower_is_better(key, task)
    label = label_of(key)
    if measure is not None and measure.better is not None and not measure.comparable:
        why_not = why_not or 'it depends on how much a model emits'
    elif lower is None:
        why_not = why_not or 'more is not better, and less is not, as far as is known'
    says = measure.says if measure is not None else MEANINGS.get(label, '')
    if OWN_THR in key:
        says += '; the thresholds are those of the same images'
    return Row(key, label, says, lower, [mean_interval(list(of.values())) for of in by_group],
               [list(of.values()) for of in by_group],
               [Interval(math.nan, math.nan, 0)] +
               [difference(of, by_group[0]) for of in by_group[1:]], why_not,
               [_over_images(key, [m for m in members if m.group == i]) for i in range(n_groups)])


def _over_images(key: str, members: Sequence[Member]) -> Tuple[float, ...]:
    found = [m.verdicts.intervals[key] for m in members
             if m.verdicts and not m.left_out and key in m.verdicts.intervals]
    return found[0] if found and not math.isnan(found[0][0]) else ()


def _keys(values: Sequence[Dict[str, float]]) -> List[str]:
    return list(dict.fromkeys(key for of in values for key in of))


def overall(keys: Sequence[str], members: Sequence[Member]) -> List[str]:
    """The keys without those that are of a single class or keypoint."""
    names = tuple({f'{name}_' for m in members if m.verdicts for name in m.verdicts.judged.names})
    tails = tuple({f'_{key.rpartition("/")[2]}' for key in keys})
    return [key for key in keys if key.rpartition('/')[2].startswith('mean_') or
            not (key.rpartition('/')[2].startswith(names) or key.endswith(tails))]


def label_of(key: str) -> str:
    """A short name of a metric."""
    return key.rpartition('/')[2].replace('bbox_', '').replace(OWN_THR, '')


def summary(tables: Sequence[Table], names: Sequence[str]) -> List[Tuple[str, str]]:
    """For each group: its name, a few metrics against the baseline's, and what to make of them."""
    table = next((table for table in tables if table.rows), tables[0])
    rows = table.rows + table.others
    chosen = [row for row in rows if row.key in SAID_FIRST] or \
        [row for row in rows if row.key in SAID_FIRST_OF_POSES] or rows[:1]
    sentences = []
    for i, name in enumerate(names[1:], 1):
        known = [row for row in chosen if row.differences[i].n]
        if known:
            parts = [f'{row.label} {number(row.means[i].mean)} against '
                     f'{number(row.means[0].mean)}{_in_words(row, i)}' for row in known]
            end = '' if any(row.differences[i].n > 1 for row in known) else \
                ' One run each: the difference may be chance.'
            sentences.append((name, f'against {names[0]}: {", ".join(parts)}.{end}'))
    return sentences


def confidences(table: Table, members: Sequence[Member], names: Sequence[str],
                task: str) -> List[Tuple[str, str]]:
    """For each group: its name, and whether its scores are too high or too low, where that is sure.

    Softer targets, as those of PS-KD, lower scores: whom they help is decided by this sign.
    """
    clipped = _why_clipped_cannot_be_compared([m.verdicts.values for m in members if m.verdicts])
    return [(name, _confidence(row, i, task, clipped))
            for row in table.rows + table.others if row.label == 'overconfidence'
            for i, name in enumerate(names) if row.means[i].n]


def _confidence(row: Row, i: int, task: str, clipped: str) -> str:
    if clipped:
        return f'nothing can be said of the sign: {clipped}.'
    truth = 'the IoU that they should tell' if task == 'detection' else 'the share that is right'
    mean = row.means[i]
    low, high = row.over_images[i] or (mean.mean - mean.margin, mean.mean + mean.margin)
    if low > 0:
        return (f'overconfident: scores are {number(mean.mean)} above {truth}. Softer targets '
                '(PS-KD, label smoothing) work against that.')
    if high < 0:
        return (f'underconfident: scores are {number(-mean.mean)} below {truth}. Softer targets '
                '(PS-KD, label smoothing) tend to add to that; a calibrator does not.')
    return 'neither over- nor underconfident on average, as far as can be told.'


def _in_words(row: Row, i: int) -> str:
    verdict, found = row.verdict(i), row.differences[i]
    if not verdict:
        return f' (no verdict: {row.why_not})' if row.why_not and found.n > 1 else ''
    over = f'over {found.n} pairs of seeds' if found.paired else 'over unpaired runs'
    return f' ({verdict} {over})' if verdict == 'within chance' else \
        f' ({verdict} beyond chance {over})'


def number(value: float, signed: bool = False) -> str:
    """A number with three decimals, fewer for large ones; a dash for nan."""
    if value is None or math.isnan(value):
        return '–'
    size = abs(value)
    digits = 3 if size < 10 else 2 if size < 100 else 1
    if size >= 100 and float(value).is_integer():
        digits = 0
    text = f'{value:+.{digits}f}' if signed else f'{value:.{digits}f}'
    return text.replace('-', '\N{MINUS SIGN}')
