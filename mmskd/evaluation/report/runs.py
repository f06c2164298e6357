"""Reads the work dirs of ``tools/train.py``, and groups the runs that differ in their seed only."""
import copy
import inspect
import json
import math
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from mmskd.config import project_of
from mmskd.errors import UsageError

# What of a config does not change what is learned, and so does not tell runs apart
INCIDENTAL = ('work_dir', 'launcher', 'resume', 'experiment_name', 'visualizer', 'log_level',
              'env_cfg', 'cfg', 'log_processor')
MISSING = '(not set)'


class Session(NamedTuple):
    """One start of a training, as its time-stamped folder tells it.

    Attributes:
        folder (Path): The time-stamped folder.
        cfg (Config): The config that it was started with.
        train (dict): {iteration: logged scalars} of the training.
        val (dict): The same of the validation, by epoch (by iteration in an iteration-based loop).
    """
    folder: Path
    cfg: Config
    train: Dict[int, dict]
    val: Dict[int, dict]

    def goes_on_from(self, earlier: 'Session') -> bool:
        """Whether this resumed the training of an earlier start, and did not begin anew."""
        return bool(self.cfg.get('resume')) and \
            min(self.train, default=0) > min(earlier.train, default=-1)


class Run:
    """The last training in a folder, with all the times that it was resumed.

    Args:
        folder (str or Path): A work dir of ``tools/train.py``.

    Attributes:
        cfg (Config): The config that the run was started with.
        train (dict): {iteration: logged scalars} of the training; those of a resumed run over those
            of before.
        val (dict): The same of the validation, by epoch (by iteration in an iteration-based loop).
        started (datetime or None): When it began; None if the logs do not say.
        trainings (int): How many trainings the folder has seen. Only the last one counts.

    Raises:
        UsageError: If there is no such folder, or no config in it that can be read.
    """

    def __init__(self, folder) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UsageError(f'there is no folder {self.folder}')
        trainings = _trainings(self.folder)
        self.trainings = len(trainings)
        last = trainings[-1] if trainings else []
        self.cfg = last[-1].cfg if last else _lone_config(self.folder)
        self.started = time_of(last[0].folder.name) if last else None
        self.train = {step: line for session in last for step, line in session.train.items()}
        self.val = {step: line for session in last for step, line in session.val.items()}

    @property
    def name(self) -> str:
        """str: Name of the folder."""
        return self.folder.resolve().name

    @property
    def seed(self) -> Optional[int]:
        """The seed that the config sets."""
        return (self.cfg.get('randomness') or {}).get('seed')

    @property
    def by_epoch(self) -> bool:
        """bool: Whether progress counts in epochs, else in iterations."""
        return any('epoch' in line for line in self.train.values()) or not self.train

    @property
    def unit(self) -> str:
        """str: ``'epoch'`` or ``'iteration'``."""
        return 'epoch' if self.by_epoch else 'iteration'

    @property
    def length(self) -> Optional[int]:
        """How many epochs (iterations) the config asks for."""
        loop = self.cfg.get('train_cfg') or {}
        return loop.get('max_epochs' if self.by_epoch else 'max_iters')

    @property
    def reached(self) -> Optional[int]:
        """The last epoch (iteration) that logged anything; None without logs."""
        steps = [line.get('epoch', step) for step, line in self.train.items()] + list(self.val)
        return max(steps, default=None)

    @property
    def stops_itself(self) -> bool:
        """bool: Whether the training may end before its length: EarlyStoppingHook."""
        return 'EarlyStoppingHook' in str(self.cfg.get('custom_hooks'))

    def unfinished(self, which: str = 'last') -> str:
        """Why this is not the result of a whole training; empty if it is, or no log tells.

        Args:
            which (str): The checkpoint that is looked at, see :meth:`checkpoint`. Defaults to
                ``'last'``.
        """
        x, loss = self.curve('loss')
        if len(loss) and not math.isfinite(loss[-1]):
            first = x[np.argmin(np.isfinite(loss))]
            return f'diverged: its loss is not a number from {self.unit} {first} on'
        reached, length, unit = self.reached, self.length, self.unit
        if reached is None or length is None or self.stops_itself:
            return ''
        if reached < length - (0 if self.by_epoch else self._interval):
            return f'stopped at {unit} {reached} of {length}'
        checkpoint = self.checkpoint(which)
        number = _number(checkpoint) if checkpoint and which == 'last' else length
        return f'its last checkpoint is of {unit} {number} of {length}' if number < length else ''

    def checkpoint(self, which: str = 'last') -> Optional[Path]:
        """The checkpoint to look at.

        One of a later epoch than any that was logged is left over from an earlier training.

        Args:
            which (str): ``'last'`` or ``'best'`` (as CheckpointHook's ``save_best`` keeps it).
                Defaults to ``'last'``.

        Returns:
            Path or None: None if there is none.
        """
        patterns = ('best_*.pth', ) if which == 'best' else ('epoch_*.pth', 'iter_*.pth')
        found = [path for pattern in patterns for path in self.folder.glob(pattern)]
        if self.train:
            most = (self.reached or 0) + (0 if self.by_epoch else self._interval)
            found = [path for path in found if _number(path) <= most]
        return max(found, key=lambda path: (_number(path), path.stat().st_mtime), default=None)

    @property
    def _interval(self) -> int:
        """How many iterations pass between two lines of the log."""
        hooks = self.cfg.get('default_hooks') or {}
        return (hooks.get('logger') or {}).get('interval', 10)

    def curve(self, key: str) -> Tuple[np.ndarray, np.ndarray]:
        """A logged scalar over the training.

        Training scalars of an epoch-based run are averaged over each epoch.

        Args:
            key (str): Name of the scalar, as ``'loss'``.

        Returns:
            tuple[ndarray, ndarray]: Epochs (iterations) and values, both of shape (N,).
        """
        points: Dict[int, List[float]] = {}
        for lines, in_training in ((self.train, True), (self.val, False)):
            for step, line in lines.items():
                if isinstance(line.get(key), (int, float)):
                    x = line.get('epoch', step) if in_training else step
                    points.setdefault(x, []).append(line[key] if in_training else
                                                    defined(line[key]))
        steps = sorted(points)
        return np.array(steps), np.array([np.mean(points[step]) for step in steps])

    def last_metrics(self) -> Dict[str, float]:
        """The metrics of the last validation that was logged; empty if none was."""
        return metrics_of(self.val[max(self.val)]) if self.val else {}

    def metric_names(self) -> List[str]:
        """The metrics that any validation logged, in the order in which they were."""
        return list(dict.fromkeys(key for line in self.val.values() for key in metrics_of(line)))

    def essence(self, paths_as_named: bool = False) -> dict:
        """What of the config decides what is learned, without the seed.

        Only what the Runner is built from counts: dumped configs also hold helper variables, whose
        values stand a second time where they are used. A checkpoint that the run went out from is
        taken for that of the same seed where its folder's name has the run's seed as its last
        number.

        Args:
            paths_as_named (bool): Leave the paths of checkpoints as they are. Defaults to False.
        """
        wanted = [key for key in inspect.signature(Runner.__init__).parameters
                  if key not in INCIDENTAL and self.cfg.get(key) is not None]
        essence = {key: _plain(self.cfg[key]) for key in wanted}
        essence.get('randomness', {}).pop('seed', None)
        if self.cfg.get('resume'):  # what an interrupted run goes on with
            essence.pop('load_from', None)
        if not paths_as_named:
            essence = _without_seed(essence, self.seed)
        return {key: value for key, value in essence.items() if value != {}}


class Group(NamedTuple):
    """Runs with the same config and different seeds.

    Attributes:
        name (str): What to call it in tables and legends.
        runs (list[Run]): In the order in which they were given.
    """
    name: str
    runs: List[Run]


def group_runs(runs: Sequence[Run], baseline: Optional[str] = None) -> List[Group]:
    """Put runs with the same :meth:`Run.essence` together; the baseline's group comes first.

    Runs that went out from one and the same checkpoint are together as they are, even if the seed
    of one of them is in its path.

    Args:
        runs (sequence[Run]): The runs.
        baseline (str, optional): Folder of one of the baseline's runs. Defaults to None: the first.

    Raises:
        UsageError: If detection and pose runs are mixed; if two runs of a group have the same seed,
            since they tell no more than one; if ``baseline`` is none of the runs.
    """
    if len({project_of(run.cfg) for run in runs}) > 1:
        raise UsageError('runs of MMDetection and of MMPose cannot be compared with each other')
    members: Dict[str, List[Run]] = {}
    named = [_as_text(run.essence(paths_as_named=True)) for run in runs]
    for run, as_named in zip(runs, named):
        key = as_named if named.count(as_named) > 1 else _as_text(run.essence())
        for other in members.setdefault(key, []):
            if other.seed == run.seed and run.seed is not None:
                raise UsageError(f'{other.folder} and {run.folder} have the same config and the '
                                 f'same seed, {run.seed}: give one of them')
        members[key].append(run)
    groups = list(members.values())
    if baseline is not None:
        first = [group for group in groups
                 if any(run.folder.resolve() == Path(baseline).resolve() for run in group)]
        if not first:
            raise UsageError(f'--baseline {baseline} is none of the folders that are compared')
        groups = first + [group for group in groups if group is not first[0]]
    return [Group(name, group) for name, group in zip(_names(groups), groups)]


def config_differences(configs: Sequence[dict]) -> List[Tuple[str, List[Any]]]:
    """Where configs differ, from the outside in as far as they have the same structure.

    Args:
        configs (sequence[dict]): As :meth:`Run.essence` returns them.

    Returns:
        list[tuple[str, list]]: Dotted key, and the value in each of the configs.
    """
    return list(_differences('', list(configs)))


def _differences(path: str, values: list):
    if all(value == values[0] for value in values):
        return
    prefix = f'{path}.' if path else ''
    if all(isinstance(value, dict) for value in values):
        for key in dict.fromkeys(key for value in values for key in value):
            yield from _differences(f'{prefix}{key}', [v.get(key, MISSING) for v in values])
    elif all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        for i, children in enumerate(zip(*values)):
            yield from _differences(f'{prefix}{i}', list(children))
    else:
        yield path, values


def _without_seed(node: Any, seed: Optional[int], key: str = '') -> Any:
    """Paths of checkpoints with ``{seed}`` for the last number in a folder's name that is it."""
    if isinstance(node, dict):
        return {name: _without_seed(child, seed, name) for name, child in node.items()}
    if isinstance(node, list):
        return [_without_seed(child, seed, key) for child in node]
    if key in ('checkpoint', 'load_from') and isinstance(node, str) and seed is not None:
        folder, name = os.path.split(node)
        return os.path.join(re.sub(rf'(?s)(.*)(?<!\d){seed}(?!\d)', r'\1{seed}', folder), name)
    return node


def _as_text(essence: dict) -> str:
    return json.dumps(essence, sort_keys=True, default=str)


def _names(groups: List[List[Run]]) -> List[str]:
    """A short name for each group that no other has."""
    names = [_common_name(group) for group in groups]
    return [name if names.count(name) == 1 else f'{name} ({group[0].folder})'
            for name, group in zip(names, groups)]


def _common_name(runs: List[Run]) -> str:
    """What the folders' names begin with, without a seed at the end.

    Of a folder whose name is a seed, as study.py makes them, it is the one around it.
    """
    common = os.path.commonprefix([
        run.folder.resolve().parent.name if re.fullmatch(r'(s|seed)?[-_. ]?\d+', run.name)
        else run.name for run in runs])
    return re.sub(r'[-_. ](s|seed)[-_. ]?\d*$', '', common).rstrip('-_. ') or runs[0].name


def metrics_of(line: Dict[str, Any]) -> Dict[str, float]:
    """The metrics among what a validation logged or an evaluator returned."""
    return {key: defined(value) for key, value in line.items()
            if key not in ('step', 'time', 'data_time') and
            isinstance(value, (int, float, np.number)) and not isinstance(value, bool)}


def defined(value: float) -> float:
    """The value of a metric; nan for -1.

    By that COCO's and LVIS' metrics say that there are no such objects.
    """
    return math.nan if value == -1 else float(value)


def _number(checkpoint: Path) -> int:
    """Its epoch or iteration."""
    numbers = re.findall(r'\d+', checkpoint.stem)
    return int(numbers[-1]) if numbers else 0


def time_of(text: Any) -> Optional[datetime]:
    """MMEngine's time stamps."""
    try:
        return datetime.strptime(text, '%Y%m%d_%H%M%S')
    except (TypeError, ValueError):
        return None


def _trainings(folder: Path) -> List[List[Session]]:
    """The trainings of a folder in the order of time, each with its starts."""
    trainings: List[List[Session]] = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        train, val = _read_scalars(path)
        if not train and not val:  # it ended before anything was logged
            continue
        config = path.with_name('config.py')
        cfg = _read_config(config) if config.is_file() else _lone_config(folder)
        session = Session(path.parents[1], cfg, train, val)
        if trainings and session.goes_on_from(trainings[-1][-1]):
            trainings[-1].append(session)
        else:
            trainings.append([session])
    # A test logs as well
    return [sessions for sessions in trainings if any(one.train for one in sessions)] or \
        trainings[-1:]


def _lone_config(folder: Path) -> Config:
    """The config of a run without logs."""
    found = sorted(folder.glob('*/vis_data/config.py')) or \
        sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f'{folder} holds no config: it is not a work dir of tools/train.py')
    return _read_config(found[-1])


def _read_config(path: Path) -> Config:
    try:
        return Config.fromfile(path)
    except Exception as error:
        raise UsageError(f'{path} cannot be read as a config: {error}') from error


def _read_scalars(path: Path) -> Tuple[dict, dict]:
    train: Dict[int, dict] = {}
    val: Dict[int, dict] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # a line that is being written
            continue
        if 'step' in line:
            (train if 'loss' in line else val)[line['step']] = line
    return train, val


def _plain(value: Any) -> Any:
    """Nested containers as dicts and lists of their own."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) \
        else copy.deepcopy(value)
