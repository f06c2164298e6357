"""The runs of a report with all that is said of each, and which of them can be compared."""
import hashlib
from pickle import UnpicklingError
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from mmskd.config import metrics_of, type_name
from mmskd.errors import UsageError
from mmskd.progress import track

from ..held_out import shared_images
from .judging import Verdicts, verdicts
from .predictions import DataSets, Predictions, annotation_files, calibrator_files, predictions_of
from .rules import Rule
from .runs import MISSING, Group, Run, config_differences

# What a run whose data, checkpoint or code is gone may end in; the others are still reported
CANNOT_PREDICT = (OSError, ImportError, KeyError, RuntimeError, TypeError, UnpicklingError,
                  ValueError)
DRAWS = 500  # for the interval of a run that is the only one of its group
# What of an evaluator does not change what it says
INCIDENTAL = ('collect_device', 'outfile_prefix', 'format_only', 'backend_args', 'use_mp_eval',
              'file_client_args', 'classwise', 'per_keypoint')


class Member(NamedTuple):
    """A run of a group.

    Attributes:
        group (int): Which group it belongs to.
        run (Run): The run.
        own (dict[str, float]): What its own evaluators say of the checkpoint, or said last.
        predictions (Predictions, optional): What its checkpoint predicts, where that can be had.
        others (Predictions, optional): The same on the validation images, where others are
            measured.
        verdicts (Verdicts, optional): The same, judged by the rule of the report.
        left_out (str): Why it is no part of means and differences; empty if it is.
    """
    group: int
    run: Run
    own: Dict[str, float]
    predictions: Optional[Predictions] = None
    others: Optional[Predictions] = None
    verdicts: Optional[Verdicts] = None
    left_out: str = ''


def members_of(groups: List[Group], split: str, which: str, rule: Rule, notes: List[str],
               quiet: bool = False) -> List[Member]:
    """Predict and judge.

    Args:
        groups (list[Group]): The runs.
        split (str): ``'val'`` or ``'test'``.
        which (str): ``'last'`` or ``'best'`` checkpoint.
        rule (Rule): When a prediction is right.
        notes (list[str]): What cannot be had is added to them.
        quiet (bool): Show no progress bars. Defaults to False.
    """
    datasets = DataSets()
    runs = [(i, run) for i, group in enumerate(groups) for run in group.runs]
    members = [_predicted(i, run, split, which, notes, quiet, datasets) for i, run in runs]
    members = _only_the_same_data(_only_finished(members, which))
    counted = [sum(m.group == i and not m.left_out for m in members) for i in range(len(groups))]
    return [_judged(member, rule, notes, DRAWS if counted[member.group] == 1 else 0)
            for member in track(members, 'judging', quiet)]


def _predicted(group: int, run: Run, split: str, which: str, notes: List[str], quiet: bool,
               datasets: DataSets) -> Member:
    if not run.train and not run.val:
        notes.append(f'{run.folder}: no vis_data/scalars.json, so no curves of this run.')
    if run.trainings > 1:
        notes.append(f'{run.folder} holds {run.trainings} trainings, of which the last one counts, '
                     f'begun {run.started}.')
    try:
        predictions = predictions_of(run, split, which, quiet, datasets)
    except CANNOT_PREDICT as error:
        notes.append(f'{run.folder}: no predictions ({error}); its metrics are those of its last '
                     'logged validation.')
        return Member(group, run, run.last_metrics())
    if split == 'val' and calibrator_files(run.cfg):
        notes.append(f'{run.folder}: the scores are those of the model. CalibratedScores maps them '
                     'in tests alone, see --split test.')
    if predictions.failure:
        notes.append(f'{run.folder}: its own evaluators failed ({predictions.failure}).')
    if run.cfg[f'{split}_dataloader'].dataset.get('bbox_file'):
        notes.append(f'{run.folder}: measured on the annotated boxes, not on the detected ones '
                     'that its config names (bbox_file).')
    others = None if split == 'val' else _other_images(run, predictions, which, quiet, datasets)
    return Member(group, run, predictions.metrics, predictions, others)


def _other_images(run: Run, predictions: Predictions, which: str, quiet: bool,
                  datasets: DataSets) -> Optional[Predictions]:
    """What a checkpoint predicts on the validation images, if none of them is measured."""
    if predictions.task == 'pose' or run.cfg.get('val_dataloader') == run.cfg.test_dataloader:
        return None
    try:
        others = predictions_of(run, 'val', which, quiet, datasets)
    except CANNOT_PREDICT:
        return None
    shared = shared_images(predictions.image_paths.tolist(), others.image_paths.tolist())
    return None if shared else others


def _only_finished(members: List[Member], which: str) -> List[Member]:
    """What stopped early or diverged is left out, unless nothing has come to its end yet."""
    found = [member._replace(left_out=member.run.unfinished(which)) for member in members]
    if all(member.left_out for member in found) and \
            len({member.run.reached for member in members}) == 1:
        return members
    return found


def _only_the_same_data(members: List[Member]) -> List[Member]:
    """What predicts other images than the first is left out."""
    first = next((m for m in members if m.predictions and not m.left_out), None)
    if first is None or first.predictions is None:
        return members
    return [member._replace(left_out=member.left_out or (
        data_difference(member.predictions, first.predictions, first.run.folder)
        if member.predictions else '')) for member in members]


def _judged(member: Member, rule: Rule, notes: List[str], draws: int) -> Member:
    if member.predictions is None:
        return member
    try:
        return member._replace(verdicts=verdicts(member.predictions, rule, member.others, draws))
    except UsageError as error:
        notes.append(f'{member.run.folder} cannot be judged: {error}.')
        return member


# ------------------------------------------------------------------ what can be compared


def data_difference(mine: Predictions, theirs: Predictions, whose: Any) -> str:
    """In what the images, classes and objects that two models were judged by differ.

    Empty if in nothing.
    """
    a, b = data_digests(mine), data_digests(theirs)
    for what in dict.fromkeys([*a, *b]):
        if a.get(what) != b.get(what):
            return f'its {what} are not those of {whose}: other data'
    return ''


def data_digests(predictions: Predictions) -> Dict[str, str]:
    """A hash of each part of what the data set has read."""
    parts: Dict[str, Tuple[str, ...]] = {
        'image ids': ('image_ids', ), 'boxes': ('gt_boxes', 'gt_images'),
        'labels': ('gt_labels', ), 'ignored objects': ('gt_ignored', 'gt_crowds'),
        'areas': ('gt_areas', ), 'keypoints': ('gt_keypoints', 'gt_visible', 'images'),
        'head sizes': ('gt_head_sizes', )}
    if predictions.task == 'detection':
        del parts['keypoints']
    names = 'keypoint names' if predictions.task == 'pose' else 'classes'
    digests = {names: repr(predictions.names)}
    for what, keys in parts.items():
        digest = hashlib.sha256()
        for key in keys:
            array = predictions.arrays.get(key, np.zeros(0))
            digest.update(repr(array.shape).encode())
            digest.update(_canonical(array))
        digests[what] = digest.hexdigest()
    return digests


def _canonical(array: np.ndarray) -> bytes:
    """The same bytes for the same values, whatever the type."""
    if array.dtype.kind in 'fiub':
        return np.ascontiguousarray(array, np.float64).tobytes()
    return repr(array.tolist()).encode()


def evaluator_differences(members: List[Member], split: str) -> str:
    """In which settings the runs' own evaluators differ; empty if in none."""
    settings = [_essence(member.run, split) for member in members]
    return ', '.join(f'{key} ({" / ".join(dict.fromkeys(map(_word, values)))})'
                     for key, values in config_differences(settings))


def _word(value: Any) -> str:
    return value['type'] if isinstance(value, dict) and 'type' in value else str(value)


def _essence(run: Run, split: str) -> Dict[str, dict]:
    """What of a run's evaluators decides what they say, by kind."""
    found: Dict[str, dict] = {}
    for metric in metrics_of(run.cfg.get(f'{split}_evaluator')):
        kind = type_name(metric) or MISSING
        settings = {key: value for key, value in metric.items()
                    if key not in INCIDENTAL + ('type', 'ann_file')}
        if metric.get('ann_file'):
            settings['annotations'] = ' '.join(map(_digest, annotation_files(metric)))
        while kind in found:
            kind += "'"
        found[kind] = settings
    return found


def _digest(path: str) -> str:
    try:
        with open(path, 'rb') as file:
            return hashlib.sha256(file.read()).hexdigest()[:8]
    except OSError:
        return path
