"""Calibrators: maps of scores, fitted after training on images of their own.

All rise with the score, so that they change no order of the detections of a class, and AP stays.
Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024,
find Platt's and the isotonic one, class by class and fitted to the IoU, ahead of what is done in
training.
"""
import hashlib
import json
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import spearmanr

from mmskd.errors import UsageError

EPS = float(np.finfo(np.float32).eps)
STEEPEST = 20.  # slope of a map in logits (or standard deviations), its inverse the flattest
FARTHEST = 20.  # offset, in logits
TILT = 1e-4  # rise of an isotonic map from end to end where it would be flat
FEWEST = 20  # detections of a class that a map of its own takes
CHANCE = 0.01  # above this p-value scores and targets may have nothing to do with each other


class LogitMap(NamedTuple):
    r"""A map that is linear in the logit of a score.

    .. math:: q = \sigma(a \, \mathrm{logit}(p) + b)

    With b = 0 temperature scaling, T = 1 / a (Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017, of which for one event p is all there is to know); with both Platt's
    scaling ("Probabilistic Outputs for Support Vector Machines", 1999). Scores that are no
    probabilities, as of keypoints, take the place of their logits.

    Attributes:
        slope (float): a, above 0.
        offset (float): b.
    """
    slope: float
    offset: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return expit(self.slope * values + self.offset)


class StepMap(NamedTuple):
    """A map that joins points by straight lines.

    Isotonic regression (Zadrozny & Elkan, "Transforming Classifier Scores into Accurate Multiclass
    Probability Estimates", KDD 2002).

    Attributes:
        scores (tuple[float]): Rising.
        values (tuple[float]): Rising, in [0, 1].
    """
    scores: Tuple[float, ...]
    values: Tuple[float, ...]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.interp(scores, self.scores, self.values)


KINDS = ('none', 'temperature', 'platt', 'isotonic')
TARGETS = ('hit', 'iou')
TASKS = ('detection', 'pose')
FORMAT = 'mmskd calibrator 1'  # raise the number when the meaning of a field changes


class Calibrator:
    """A map of scores for all classes together or one for each, and what it was fitted on.

    Called with scores (N,) and labels (N,) it returns the mapped scores, float64. Detection scores
    are probabilities; those of keypoints may be any finite numbers, and their labels are the
    keypoints.

    Args:
        task (str): ``'detection'`` or ``'pose'``.
        kind (str): ``'temperature'``, ``'platt'``, ``'isotonic'``, or ``'none'`` for no map.
        target (str): ``'hit'`` or ``'iou'``, what the scores are to tell.
        classes (list[str]): Names of the classes or keypoints, in the order of the labels.
        maps (list): One for all, or one for each class; none of kind ``'none'``.
        thresholds (list[float or None], optional): LRP-optimal threshold of each class, to be
            compared with scores before the map; None for a class of which nothing is kept.
            Defaults to None, as of poses.
        images (list[str]): Keys of the images that it was fitted on, see
            :func:`~mmskd.evaluation.held_out.image_keys`.
        fitted_on (dict): What else there is to know of the fit: anything for people to read.
        notes (list[str]): What is wrong with the fit.
    """

    def __init__(self, task: str, kind: str, target: str, classes: List[str], maps: List,
                 thresholds: Optional[List] = None, images: Sequence[str] = (),
                 fitted_on: Optional[dict] = None, notes: Sequence[str] = ()) -> None:
        self.task, self.kind, self.target = task, kind, target
        self.classes, self.maps = list(classes), list(maps)
        self.thresholds = None if thresholds is None else list(thresholds)
        self.images, self.notes = list(images), list(notes)
        self.fitted_on = dict(fitted_on or {})

    @property
    def classwise(self) -> bool:
        """bool: Whether each class has a map of its own."""
        return len(self.maps) > 1

    @property
    def digest(self) -> str:
        """str: Tells calibrators apart."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __call__(self, scores, labels=None) -> np.ndarray:
        scores = np.asarray(scores, np.float64)
        if not self.maps:
            return scores
        values = _scale(self.task, self.kind, scores)
        if not self.classwise:
            return self.maps[0](values)
        labels = np.asarray(labels)
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.maps):
            raise ValueError(f'a label is {labels.max()}, but the calibrator has maps for '
                             f'{len(self.maps)} classes: {self.classes}')
        mapped = np.empty_like(values)
        for label in np.unique(labels):
            mine = labels == label
            mapped[mine] = self.maps[label](values[mine])
        return mapped

    def lrp_thresholds(self, mapped: bool = False) -> np.ndarray:
        """The thresholds, shape (C,), nan for None; of scores before the map, or ``mapped``.

        Mapped ones are rounded to float32, as mapped scores are where a model keeps them.
        """
        thresholds = np.array([np.nan if thr is None else thr for thr in self.thresholds])
        if mapped:
            real = np.flatnonzero(~np.isnan(thresholds))
            thresholds[real] = self(thresholds[real], real).astype(np.float32)
        return thresholds

    def to_dict(self) -> dict:
        """What :meth:`save` writes."""
        return dict(
            format=FORMAT, task=self.task, kind=self.kind, target=self.target, classes=self.classes,
            maps=[{key: list(value) if isinstance(value, tuple) else value
                   for key, value in one._asdict().items()} for one in self.maps],
            thresholds=self.thresholds, images=self.images, fitted_on=self.fitted_on,
            notes=self.notes)

    def save(self, path: str) -> None:
        """Write a json file, a line for each field."""
        fields = ',\n'.join(f'{json.dumps(key)}: {json.dumps(value, allow_nan=False)}'
                            for key, value in self.to_dict().items())
        with open(path, 'w', encoding='utf-8') as file:
            file.write(f'{{\n{fields}\n}}\n')

    @classmethod
    def load(cls, path: str) -> 'Calibrator':
        """Read what :meth:`save` wrote, and nothing else.

        Raises:
            FileNotFoundError: If there is no such file.
            UsageError: If it is not such a file, or holds what no fit returns.
        """
        with open(path, encoding='utf-8') as file:
            try:
                data = json.load(file)
            except ValueError as error:
                raise UsageError(f'{path} is no calibrator: {error}') from error
        try:
            return _checked(data)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f'{path} is no calibrator of tools/analysis/calibrate.py: '
                             f'{error}') from error


def fit_calibrator(kind: str,
                   scores,
                   targets,
                   labels,
                   classes: Sequence[str],
                   classwise: bool = False,
                   target: str = 'hit',
                   task: str = 'detection') -> Calibrator:
    """Fit a calibrator to predictions on images that nothing will be measured on.

    Temperature and Platt's scaling minimise the cross entropy between mapped scores and targets,
    the isotonic map the squared error. A class with less than 20 predictions takes the map of all.
    The ``notes`` say what a map should not be trusted for: parameters at the edge of their range (T
    or its inverse 20), and scores that have no more to do with the targets than chance might
    explain (Spearman's rank correlation, 1 %).

    Args:
        kind (str): One of :data:`KINDS`.
        scores (array): Scores; of detections in [0, 1]. Shape (N,).
        targets (array): What they are to tell, in [0, 1]: hit or miss, or the IoU, 0 for a miss.
            Shape (N,).
        labels (array): Classes (keypoints), shape (N,).
        classes (sequence[str]): Their names.
        classwise (bool): A map for each class, else one for all. Defaults to False.
        target (str): What ``targets`` are: one of :data:`TARGETS`. Defaults to ``'hit'``.
        task (str): ``'detection'`` or ``'pose'``. Defaults to ``'detection'``.

    Returns:
        Calibrator: Without thresholds and images.

    Raises:
        UsageError: If there are no predictions; if keypoint scores are to be fitted by a
            temperature, which takes probabilities.
        ValueError: If an argument is none of the choices, or scores or targets are out of range.
    """
    for value, choices in ((kind, KINDS), (target, TARGETS), (task, TASKS)):
        if value not in choices:
            raise ValueError(f'{value!r} is none of {choices}')
    scores, targets, labels = (np.asarray(of) for of in (scores, targets, labels))
    if not (scores.shape == targets.shape == labels.shape and scores.ndim == 1):
        raise ValueError(f'there are {scores.shape} scores, {targets.shape} targets and '
                         f'{labels.shape} labels')
    if targets.size and not ((targets >= 0) & (targets <= 1)).all():
        raise ValueError(f'targets must be in [0, 1], got {targets.min()} to {targets.max()}')
    if not scores.size:
        raise UsageError('nothing can be fitted: there are no predictions')
    if kind == 'temperature' and task == 'pose':
        raise UsageError('kind=temperature takes probabilities, and keypoint scores are none: '
                         'choose platt or isotonic')
    calibrator = Calibrator(task, kind, target, list(classes), [])
    if kind == 'none':
        return calibrator
    values = _scale(task, kind, scores.astype(np.float64))
    pooled, notes = _fit(kind, task, values, targets.astype(np.float64))
    if not classwise:
        calibrator.maps, calibrator.notes = [pooled], [f'all classes: {note}' for note in notes]
        return calibrator
    for label, name in enumerate(classes):
        mine = labels == label
        if mine.sum() < FEWEST:
            own, notes = pooled, [f'only {mine.sum()} predictions: the map of all classes is used']
        else:
            own, notes = _fit(kind, task, values[mine], targets[mine].astype(np.float64))
        calibrator.maps.append(own)
        calibrator.notes += [f'{name}: {note}' for note in notes]
    return calibrator


def _scale(task: str, kind: str, scores: np.ndarray) -> np.ndarray:
    """What a map is a function of: logits of probabilities where it is linear in them."""
    if not np.isfinite(scores).all():
        raise ValueError('a score is not finite')
    if task == 'pose':
        return scores
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError('scores must be probabilities in [0, 1], '
                         f'got {scores.min()} to {scores.max()}')
    return scores if kind == 'isotonic' else logit(np.clip(scores, EPS, 1 - EPS))


def _fit(kind: str, task: str, values: np.ndarray, targets: np.ndarray) -> Tuple[Any, List[str]]:
    """A map, and what is wrong with it."""
    notes = []
    if np.ptp(values) == 0 or np.ptp(targets) == 0:
        notes.append(f'all {len(values)} predictions have the same '
                     f'{"score" if np.ptp(values) == 0 else "target"}: there is nothing to learn')
    else:
        rho, p_value = spearmanr(values, targets, alternative='greater')
        if p_value > CHANCE:
            notes.append(f'the scores of these {len(values)} predictions may say nothing about '
                         f'them: rank correlation {rho:.2f}, which chance explains '
                         f'(p = {p_value:.2f})')
    if kind == 'isotonic':
        return _fit_steps(values, targets, (0., 1.) if task == 'detection' else None), notes
    fitted, at_edge = _fit_logits(values, targets, kind == 'platt', task == 'pose')
    return fitted, notes + at_edge


def _fit_logits(values: np.ndarray, targets: np.ndarray, with_offset: bool,
                standardise: bool) -> Tuple[LogitMap, List[str]]:
    centre, spread = (values.mean(), values.std() or 1.) if standardise else (0., 1.)
    z = (values - centre) / spread

    def loss(parameters):
        u = parameters[0] * z + parameters[1]
        gap = expit(u) - targets
        return np.mean(np.logaddexp(0, u) - targets * u), np.array([np.mean(gap * z), gap.mean()])

    slopes, offsets = (1 / STEEPEST, STEEPEST), (-FARTHEST, FARTHEST) if with_offset else (0., 0.)
    found = minimize(loss, [1., 0.], jac=True, method='L-BFGS-B', bounds=[slopes, offsets],
                     options=dict(ftol=1e-15, gtol=1e-10, maxiter=1000))
    slope, offset = map(float, found.x)
    notes = []
    if slope <= slopes[0] * 1.001:
        notes.append(f'at the edge of its range (T = {STEEPEST:g}): the same score for all would '
                     'fit as well' + ('' if with_offset else '; scores that are all too low or all '
                                      'too high need a shift: platt or isotonic'))
    if slope >= slopes[1] / 1.001:
        notes.append(f'at the edge of its range (T = {1 / STEEPEST:g}): a threshold tells all hits '
                     'from all misses, surer is always better')
    if with_offset and abs(offset) >= FARTHEST / 1.001:
        notes.append(f'at the edge of its range (offset {offset:g})')
    return LogitMap(slope / spread, offset - slope * centre / spread), notes


def _fit_steps(scores: np.ndarray, targets: np.ndarray,
               limits: Optional[Tuple[float, float]]) -> StepMap:
    """Isotonic regression, continued to the limits: to 0 at the lower, level to the upper.

    Where it is level it is tilted a little, so that the order of the predictions, and with it AP,
    stays.
    """
    try:
        from scipy.optimize import isotonic_regression
    except ImportError as error:
        raise UsageError('kind=isotonic needs scipy 1.12 or later') from error
    x, which, count = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(which.reshape(-1), targets) / count
    y = isotonic_regression(means, weights=count).x.clip(0, 1)
    ends = (np.diff(y, prepend=-1) != 0) | (np.diff(y, append=-1) != 0)
    x, y = x[ends], y[ends]
    if limits is not None:
        x, y = _continued(x, y, *limits)
    y = (y + TILT * (x - x[0]) / (x[-1] - x[0] or 1.)) / (1 + TILT)
    return StepMap(tuple(x.tolist()), tuple(y.tolist()))


def _continued(x: np.ndarray, y: np.ndarray, low: float, high: float):
    if x[0] > low:
        x, y = np.append(low, x), np.append(0., y)
    if x[-1] < high:
        x, y = np.append(x, high), np.append(y, y[-1])
    return x, y


def _checked(data: Any) -> Calibrator:
    """A calibrator from what a json file holds; KeyError, TypeError or ValueError if it is none."""
    fields = ('task', 'kind', 'target', 'classes', 'maps', 'thresholds', 'images', 'fitted_on',
              'notes')
    if not isinstance(data, dict) or data.get('format') != FORMAT:
        raise ValueError(f'its format is not {FORMAT!r}')
    if set(data) != {'format', *fields}:
        raise ValueError(f'its fields are {sorted(data)}')
    for key, choices in (('task', TASKS), ('kind', KINDS), ('target', TARGETS)):
        if data[key] not in choices:
            raise ValueError(f'{key} is {data[key]!r}, none of {choices}')
    for key in ('classes', 'images', 'notes'):
        if not isinstance(data[key], list) or not all(isinstance(one, str) for one in data[key]):
            raise ValueError(f'{key} is no list of names')
    if len(data['maps']) not in ((0, ) if data['kind'] == 'none' else (1, len(data['classes']))):
        raise ValueError(f'there are {len(data["maps"])} maps of kind {data["kind"]} for '
                         f'{len(data["classes"])} classes')
    thresholds = data['thresholds']
    if (thresholds is None) != (data['task'] == 'pose') or thresholds is not None and (
            len(thresholds) != len(data['classes'])
            or not all(thr is None or 0 <= thr <= 1 for thr in thresholds)):
        raise ValueError(f'its thresholds are {thresholds}')
    return Calibrator(**dict(
        {key: data[key] for key in fields},
        maps=[_checked_map(data['kind'], one) for one in data['maps']]))


def _checked_map(kind: str, fields: Dict[str, Any]):
    if kind == 'isotonic':
        steps = StepMap(*(tuple(map(float, fields[key])) for key in StepMap._fields))
        x, y = map(np.array, steps)
        if set(fields) != set(StepMap._fields) or not x.size or x.shape != y.shape \
                or not np.isfinite(x).all() or not (np.diff(x) > 0).all() \
                or not (np.diff(y) >= 0).all() or not (0 <= y[0] and y[-1] <= 1):
            raise ValueError('a map does not rise')
        return steps
    line = LogitMap(*(float(fields[key]) for key in LogitMap._fields))
    if set(fields) != set(LogitMap._fields) or not np.isfinite(line).all() or line.slope <= 0 \
            or kind == 'temperature' and line.offset:
        raise ValueError(f'a map is {fields}')
    return line
