"""Shorten the schedule of a config, with all that is timed by it.

A time is a *point* (where a rate falls, a pipeline is switched, averaging begins), which comes to
lie at the same share of the training; a *duration* (an interval, a patience), which shrinks by that
share; or a *rate* (a decay per epoch, the momentum of an average), which grows, so that as much is
left at the end as before.
"""
import inspect
import re
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, DefaultScope, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmskd.config import type_name
from mmskd.errors import UsageError

LOOPS = dict(epochs=EpochBasedTrainLoop, iters=IterBasedTrainLoop)
# Change in every step, so that a few epochs are too coarse for them: they go by iterations then
SMOOTH = ('CosineAnnealing', 'CosineRestart', 'Linear', 'OneCycle', 'Poly', 'QuadraticWarmup')
LAST_STEP = ('Constant', 'Linear', 'Poly')  # reach their end one step early: one step has no end
POINTS = dict(begin_epoch='epochs', switch_epoch='epochs', begin_iter='iters', switch_iter='iters')
MODEL_POINTS = dict(initial_epoch='epochs', warmup_iterations='iters')  # TOOD; video pose lifting
COUNTS_TIME = re.compile('epoch|iter(ation)?s?(_|$)|period|patience|warm_?up|milestone')


class Clock:
    """Where the points in time of a schedule come to lie in a shorter one, in one unit.

    Args:
        share (float): The new length over the old one.
        apart (iterable[int]): Points that must not fall together: where schedules begin and end.
        length (tuple[int, int], optional): The old and the new length in this unit, if known. Then
            a point within the old training lies within the new one, and one behind it stays behind.
    """

    def __init__(self, share: float, apart: Iterable[int],
                 length: Optional[Tuple[int, int]] = None):
        self.share = share
        self.before: int
        self.after: int
        self.before, self.after = length or (INF, INF)
        self._places: Dict[int, int] = {}
        points = sorted({0, *apart, *([self.before] if length else [])})
        for point in points:
            least = max(self._places.values(), default=-1) + 1
            self._places[point] = max(least, round(point * share))
        last = self.after
        for point in reversed([point for point in points if point <= self.before]):
            self._places[point] = min(last, self._places[point])
            last = self._places[point] - 1

    def point(self, time: int) -> int:
        """The new place of a point in time; one within the training, 0 aside, stays within it."""
        if time in self._places or time >= INF:
            return self._places.get(time, time)
        earlier = [place for point, place in self._places.items() if point < time]
        later = [place for point, place in self._places.items() if point > time]
        place = min([max([round(time * self.share), *earlier]), *later])
        if time > self.before:
            return max(place, self.after + 1)
        return max(1, min(place, self.after - 1))

    def duration(self, time: int, begin: Optional[int] = None) -> int:
        """The new length of something; with ``begin``, so that it goes on ending where it ended."""
        if begin is not None and begin + time in self._places:
            return self._places[begin + time] - self.point(begin)
        return max(1, round(time * self.share)) if 0 < time < INF else time

    def rate(self, momentum: float) -> float:
        """The momentum that forgets as much in the new length as this one in the old."""
        return 1 - (1 - momentum)**(1 / self.share)


class Scheduler(NamedTuple):
    """A scheduler in a config.

    Attributes:
        place (str): Where in the config.
        cfg (dict): Its config.
        kind (str): Its class without ``LR``, ``Momentum`` or ``ParamScheduler``.
        unit (str): What its times are, ``'epochs'`` or ``'iters'``.
    """
    place: str
    cfg: dict
    kind: str
    unit: str

    @property
    def begin(self) -> int:
        return self.cfg.get('begin', 0)

    @property
    def end(self) -> int:
        return self.cfg.get('end', INF)

    def by_iterations(self, unit: str) -> bool:
        """Whether it may go by iterations in a loop of ``unit``, and should."""
        lasts = self.kind in SMOOTH or self.kind == 'Constant' and self.end - self.begin > 1
        return self.unit == unit == 'epochs' and lasts

    def points(self, unit: str, length: int) -> Iterator[int]:
        """The points that must not fall together, in a loop of ``length`` epochs or iterations."""
        end = min(self.end, length if self.unit == unit else INF)
        inner = [self.begin + milestone for milestone in sorted(self.cfg.get('milestones', ()))[:1]]
        if self.kind == 'Step':
            inner.append(self.begin + self.cfg['step_size'])
        if self.kind == 'Exponential' or self.kind in LAST_STEP and not self.by_iterations(unit):
            inner.append(self.begin + 1)
        for period in self.cfg.get('periods', ()):
            inner.append((inner or [self.begin])[-1] + period)
        yield from (point for point in (self.begin, self.end, *inner)
                    if point in (self.begin, self.end) and point < INF or point < end)


def shorten_schedule(cfg: Config, share: float) -> str:
    """Train for a share of the epochs (iterations) that a config says.

    Scaled alike: all schedulers of the learning rate and the momentum, their warm-up included; when
    pipelines and modes are switched and averaging begins; the momentum of averages of the weights;
    how often and from when on is validated and saved; patience, which counts validations; and what
    a model itself counts in epochs. Schedulers that change smoothly change in every iteration then.
    What has no room of its own in so few epochs is kept apart as far as it goes: no scheduler gets
    lost, and steps of a learning rate that fall together are taken together.

    Args:
        cfg (Config): Changed in place.
        share (float): Between 0 and 1. The number of epochs is rounded, and at least as large as
            the number of parts that the schedulers and switches of the config divide it into.

    Returns:
        str: What has changed, and what is left, in a sentence for the log.

    Raises:
        UsageError: If ``train_cfg`` has neither ``max_epochs`` nor ``max_iters``.
    """
    loop = cfg.get('train_cfg') or {}
    unit = next((unit for unit in LOOPS if loop.get(f'max_{unit}')), None)
    if unit is None:
        raise UsageError('train_cfg has neither max_epochs nor max_iters, so there is no schedule '
                         'that could be shortened; set one of them')
    before = loop[f'max_{unit}']
    schedulers, hooks = list(_schedulers(cfg.get('param_scheduler'))), list(_hooks(cfg))
    apart: Dict[str, set] = dict(epochs=set(), iters=set())
    for scheduler in schedulers:
        apart[scheduler.unit].update(scheduler.points(unit, before))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for hook in hooks:
            apart['epochs'].update(_switches(hook, before if unit == 'epochs' else INF))
        parts = 1 + sum(0 < point < before for point in apart[unit])
        wanted = max(1, round(share * before))
        after = min(before, max(wanted, parts))
        share = after / before
        clocks = {name: Clock(share, points, (before, after) if name == unit else None)
                  for name, points in apart.items()}
        validations = _shorten_loop(loop, unit, clocks[unit])
        for scheduler in schedulers:
            _shorten_scheduler(scheduler, clocks[scheduler.unit], unit)
            _shorten_patience(scheduler.cfg, validations, PARAM_SCHEDULERS)
        for hook in hooks:
            _shorten_hook(hook, clocks)
            _shorten_patience(hook.cfg, validations, HOOKS)
        _shorten_model(cfg.get('model'), clocks)
    left = [f'{place}.{key}' for place, times in [(node.place, node.cfg) for node in schedulers] +
            [(node.place, node.cfg) for node in hooks] for key in _unknown_times(times)]
    left += [f'model.{name}' for name in _unknown_model_times(cfg.get('model'))]
    return (f'{after} instead of {before} {unit}' +
            (f' (the schedule has {parts} parts)' if after > wanted else '') +
            '; schedulers with their warm-up, switches, averages, validation and checkpoints are '
            'scaled alike' + (f'; not scaled: {", ".join(left)}' if left else ''))


# --- the loop ------------------------------------------------------------------------------------


def _shorten_loop(loop: dict, unit: str, clock: Clock) -> float:
    """Shorten a loop; what has become of the number of validations, as a factor, comes back."""
    loop[f'max_{unit}'] = clock.after
    interval = loop.get('val_interval', _defaults(LOOPS[unit])['val_interval'])
    shortened = clock.duration(interval)
    if shortened != interval:
        loop['val_interval'] = shortened
    if loop.get('val_begin'):
        loop['val_begin'] = clock.point(loop['val_begin'])
    if loop.get('dynamic_intervals'):
        loop['dynamic_intervals'] = [(clock.point(begin), clock.duration(interval))
                                     for begin, interval in loop['dynamic_intervals']]
    return clock.share * interval / shortened


# --- schedulers ----------------------------------------------------------------------------------


def _schedulers(node: Any, place: str = 'param_scheduler') -> Iterator[Scheduler]:
    """All of a config: one, a list, or those of several optimizers by name."""
    if isinstance(node, dict) and 'type' in node:
        kind = re.sub('(LR|Momentum|ParamScheduler)$', '', type_name(node))
        yield Scheduler(place, node, kind, 'epochs' if node.get('by_epoch', True) else 'iters')
        return
    for key, child in _children(node):
        yield from _schedulers(child, f'{place}.{key}')


def _shorten_scheduler(scheduler: Scheduler, clock: Clock, unit: str) -> None:
    cfg, begin, end = scheduler.cfg, scheduler.begin, scheduler.end
    if scheduler.by_iterations(unit):
        cfg['convert_to_iter_based'] = True
    first, last = clock.point(begin), min(clock.point(end), clock.after)
    for key in ('T_max', 'total_steps'):
        if cfg.get(key):
            cfg[key] = clock.duration(cfg[key], begin)
    if scheduler.kind in ('Step', 'Exponential'):
        _shorten_decay(scheduler, clock, last - first)
    if 'milestones' in cfg:
        cfg['milestones'] = _shorten_milestones(scheduler, clock, last - first)
    if 'periods' in cfg:
        ends = [sum(cfg['periods'][:i]) for i in range(len(cfg['periods']) + 1)]
        places = [clock.point(begin + end) for end in ends]
        cfg['periods'] = [there - here for here, there in zip(places, places[1:])]
    for key, place in (('begin', first), ('end', clock.point(end))):
        if key in cfg:
            cfg[key] = place


def _shorten_milestones(scheduler: Scheduler, clock: Clock, length: int) -> List[int]:
    """Milestones in ``length`` epochs or iterations; those that were never reached, behind them.

    MMEngine counts a milestone that is named twice twice.
    """
    begin, end = scheduler.begin, min(scheduler.end, clock.before)
    places = [(milestone, clock.point(begin + milestone) - clock.point(begin))
              for milestone in scheduler.cfg['milestones']]
    return [min(place, length - 1) if begin + milestone < end else max(place, length)
            for milestone, place in places]


def _shorten_decay(scheduler: Scheduler, clock: Clock, length: int) -> None:
    """Decay by as much in all, in ``length`` epochs or iterations."""
    cfg, begin = scheduler.cfg, scheduler.begin
    step = cfg.get('step_size', 1)
    shortened = clock.duration(step, begin) if 'step_size' in cfg else 1
    before, after = (max(0, (total - 1) // every) for total, every in (
        (min(scheduler.end, clock.before) - begin, step), (length, shortened)))
    if 'step_size' in cfg:
        cfg['step_size'] = shortened if before else max(shortened, length)
    if min(scheduler.end, clock.before) >= INF:  # no end to count the steps to
        before, after = shortened, step * clock.share
    if before and after:
        default: Any = _defaults(_class(cfg, PARAM_SCHEDULERS)).get('gamma')
        cfg['gamma'] = cfg.get('gamma', default)**(before / after)


def _shorten_patience(cfg: dict, validations: float, registry: Registry) -> None:
    if type_name(cfg) == 'EarlyStoppingHook' or type_name(cfg).startswith('ReduceOnPlateau'):
        for key in ('patience', 'cooldown'):
            value = cfg.get(key, _defaults(_class(cfg, registry)).get(key))
            if value:
                cfg[key] = max(1, round(value * validations))


# --- hooks ---------------------------------------------------------------------------------------


class Hook(NamedTuple):
    """A hook in a config: where it is, its config, and its class name."""
    place: str
    cfg: dict
    kind: str


def _hooks(cfg: Config) -> Iterator[Hook]:
    for group in ('default_hooks', 'custom_hooks'):
        for key, hook in _children(cfg.get(group)):
            if isinstance(hook, dict):
                # The Runner adds the type where a config only says dict(interval=1)
                kind = type_name(hook) or dict(checkpoint='CheckpointHook').get(key, '')
                yield Hook(f'{group}.{key}', hook, kind)


def _switches(hook: Hook, length: int) -> Iterator[int]:
    """The epochs in which a hook switches something, in a training of ``length`` epochs."""
    if hook.cfg.get('switch_epoch'):
        yield hook.cfg['switch_epoch']
    last = _last_epochs(hook)
    if last is not None and last < length < INF:
        yield length - max(last, 1)
    yield from hook.cfg.get('epoch_attributes') or ()


def _last_epochs(hook: Hook) -> Optional[int]:
    """How many epochs before the end a hook switches, if it does."""
    default = _defaults(_class(hook.cfg, HOOKS)) if 'ModeSwitchHook' in hook.kind else {}
    return hook.cfg.get('num_last_epochs', default.get('num_last_epochs'))


def _shorten_hook(hook: Hook, clocks: Dict[str, Clock]) -> None:
    cfg, epochs, last = hook.cfg, clocks['epochs'], _last_epochs(hook)
    for key, unit in POINTS.items():
        if cfg.get(key):
            cfg[key] = clocks[unit].point(cfg[key])
    if cfg.get('epoch_attributes'):
        cfg['epoch_attributes'] = {epochs.point(epoch): attributes
                                   for epoch, attributes in cfg['epoch_attributes'].items()}
    if last is not None and epochs.after < INF:
        cfg['num_last_epochs'] = _shorten_last_epochs(last, epochs)
    if hook.kind.endswith('CheckpointHook'):
        clock = clocks['epochs' if cfg.get('by_epoch', True) else 'iters']
        if cfg.get('interval', -1) > 0:
            cfg['interval'] = clock.duration(cfg['interval'])
        if cfg.get('save_begin'):
            cfg['save_begin'] = clock.point(cfg['save_begin'])
    if hook.kind in ('EMAHook', 'MeanTeacherHook'):
        _shorten_average(hook, clocks['iters'])


def _shorten_last_epochs(last: int, clock: Clock) -> int:
    if last >= clock.before:
        return clock.after
    shortened = clock.after - clock.point(clock.before - last)
    # MMDetection's and MMPose's hooks switch an epoch earlier than they say: not before the first
    return min(shortened, clock.after - 2) if last < clock.before - 1 else shortened


def _shorten_average(hook: Hook, clock: Clock) -> None:
    """Let an average of the weights reach back over the same share of the training."""
    # The hook first: looking it up registers MMPose's averages, which come with its hooks
    cfg, defaults = hook.cfg, _defaults(_class(hook.cfg, HOOKS))
    if hook.kind == 'EMAHook':
        average = dict(cfg, type=cfg.get('ema_type', 'ExponentialMovingAverage'))
        defaults = _defaults(_class(average, MODELS))
    momentum, gamma = (cfg.get(key, defaults.get(key)) for key in ('momentum', 'gamma'))
    if momentum:
        cfg['momentum'] = clock.rate(momentum)
    if gamma:
        cfg['gamma'] = clock.duration(gamma)


# --- the model, and what is not known -------------------------------------------------------------


def _shorten_model(node: Any, clocks: Dict[str, Clock]) -> None:
    for owner, key, _ in _leaves(node):
        if key in MODEL_POINTS and owner[key]:
            owner[key] = clocks[MODEL_POINTS[key]].point(owner[key])


def _unknown_model_times(node: Any) -> List[str]:
    return [place for owner, key, place in _leaves(node)
            if key not in MODEL_POINTS and _is_time(key, owner[key])]


def _unknown_times(cfg: dict) -> List[str]:
    """The keys of a hook or scheduler that seem to count time and are not in this file."""
    known = {*POINTS, 'num_last_epochs', 'epoch_attributes', 'patience', 'milestones', 'periods'}
    return [key for key, value in cfg.items() if key not in known and _is_time(key, value)]


def _is_time(key: Any, value: Any) -> bool:
    numbers = value if isinstance(value, (list, tuple)) and value else [value]
    counts = all(isinstance(number, (int, float)) and not isinstance(number, bool)
                 for number in numbers)
    return counts and isinstance(key, str) and bool(COUNTS_TIME.search(key))


def _leaves(node: Any, place: str = '') -> Iterator[Tuple[dict, str, str]]:
    """Every entry of every dict in nested dicts and lists: the dict, the key, and the place."""
    for key, child in _children(node):
        where = f'{place}.{key}' if place else str(key)
        if isinstance(node, dict):
            yield node, key, where
        yield from _leaves(child, where)


def _children(node: Any) -> List[Tuple[Any, Any]]:
    """The entries of a dict by key, or of a list by index."""
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, (list, tuple)) else []


def _class(cfg: dict, registry: Registry) -> Optional[type]:
    """The class that a config names; None if it is not known here."""
    kind = cfg.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(cfg.get('_scope_')) as here:
        try:
            return here.get(kind)
        except (KeyError, RuntimeError, ImportError):
            return None


def _defaults(kind: Optional[type]) -> Dict[str, Any]:
    """The default values of a class's options, its base classes' included."""
    defaults: Dict[str, Any] = {}
    for owner in reversed(kind.__mro__[:-1] if kind else ()):
        if '__init__' in vars(owner):
            options = inspect.signature(vars(owner)['__init__']).parameters
            defaults.update((name, option.default) for name, option in options.items()
                            if option.default is not option.empty)
    return defaults
