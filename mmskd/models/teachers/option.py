"""What the option ``teacher`` of a hook may be, and the models that come of it."""
import inspect
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from torch import nn

from mmskd.errors import UsageError
from mmskd.options import Options
from mmskd.registry import MODELS

from .fixed import build_teacher, find_beside
from .frozen import freeze
from .keypoints import BY_NAME

SETTINGS = ('keypoints', 'flip', 'weight_by')
FILES = ('config', 'file', 'model')
"""Options that may be a path beside the config that names the teacher."""

Given = Union[dict, nn.Module, list, tuple]


class Built(NamedTuple):
    """A teacher that is built.

    Attributes:
        model (nn.Module): It, frozen.
        settings (dict): What the config asks of it beside its own answer: of :data:`SETTINGS` those
            that are set.
    """
    model: nn.Module
    settings: Dict[str, Any]


class TeacherOption:
    """The option ``teacher``: a model, a dict that says of what to build one, or a list of these.

    A dict has ``config`` and ``checkpoint`` of a model of OpenMMLab, or ``type`` and the arguments
    of a registered class, and may have

    - ``keypoints``: 'by_name', or which keypoint of the teacher each one of the student learns
      from;
    - ``flip``: True, to ask about the mirrored crop, too;
    - ``weight_by``: 'confidence', so that what the teacher is unsure about counts less.

    Args:
        owner (str): Name of the hook.
        value (dict | nn.Module | list): The option.

    Raises:
        UsageError: If it is something else.
    """

    def __init__(self, owner: str, value: Given):
        self._several = isinstance(value, (list, tuple))
        self._owner = owner
        self.each: List[Union[dict, nn.Module]] = list(value) if self._several else [value]
        if not self.each:
            raise UsageError(f'{owner}: teacher is an empty list')
        for one in self.each:
            if not isinstance(one, nn.Module):
                self._check(one)

    @property
    def value(self) -> Given:
        """What was given, with the paths of :meth:`resolve`."""
        return list(self.each) if self._several else self.each[0]

    @property
    def source(self) -> str:
        """str: Where the teachers come from, for the log."""
        return ', '.join('a model that was given' if isinstance(one, nn.Module) else _source(one)
                         for one in self.each)

    def resolve(self, folder: Optional[str]) -> List[Tuple[str, str]]:
        """Make the paths absolute that are beside the config, or in the working directory.

        Returns:
            list[tuple[str]]: What was given, and what was found, where these differ.
        """
        changes: List[Tuple[Any, Any]] = []
        for place, one in enumerate(self.each):
            for key in FILES if isinstance(one, dict) else ():
                given = one.get(key)
                found = find_beside(given, folder) if isinstance(given, str) else given
                if found != given:
                    self.each[place] = one = dict(one, **{key: found})
                    changes.append((given, found))
        return changes

    def build(self, student: nn.Module, folder: Optional[str] = None) -> List[Built]:
        """The models, frozen and in eval mode.

        Args:
            student (nn.Module): Who is going to be taught.
            folder (str, optional): Where files may be, beside the working directory. Defaults to
                None.

        Raises:
            FileNotFoundError, ModuleNotFoundError: If there is no such config, checkpoint or
                library.
            UsageError: If one cannot be built, or has weights of the student, which would be frozen
                with it.
        """
        built = []
        trained = set(map(id, student.parameters()))
        for one in self.each:
            if isinstance(one, nn.Module):
                for name, parameter in one.named_parameters():
                    if id(parameter) in trained:
                        raise UsageError(
                            f'{self._owner}: teacher: {name} is a weight of the student itself, '
                            'which would be frozen: give a copy of the model (copy.deepcopy)')
                built.append(Built(freeze(one), {}))
                continue
            own = {key: value for key, value in one.items() if key not in SETTINGS}
            settings = {key: one[key] for key in SETTINGS if one.get(key) not in (None, False)}
            if 'type' in own:
                own.update({key: find_beside(own[key], folder) for key in FILES
                            if isinstance(own.get(key), str)})
                model = freeze(self._build_registered(own))
            else:
                model = build_teacher(own['config'], own['checkpoint'], folder)
            built.append(Built(model, settings))
        return built

    def _build_registered(self, own: dict) -> nn.Module:
        kind = MODELS.get(own['type'])
        if kind is None:
            raise UsageError(
                f'{self._owner}: teacher.type: no class {own["type"]} is registered; a class of '
                'your own needs @MODELS.register_module(), and its file a place in custom_imports')
        arguments = {key: value for key, value in own.items() if key not in ('type', '_scope_')}
        try:
            inspect.signature(kind).bind(**arguments)
        except TypeError as error:
            known = ', '.join(inspect.signature(kind).parameters)
            raise UsageError(
                f'{self._owner}: teacher ({own["type"]}): {error}; there are {known}') from error
        return MODELS.build(own)

    def _check(self, one: Any) -> None:
        own = set(one) - set(SETTINGS) if isinstance(one, dict) else set()
        if 'type' not in own and own != {'config', 'checkpoint'}:
            got = f'the keys {sorted(one)}' if isinstance(one, dict) else repr(one)
            raise UsageError(
                f'{self._owner}: teacher must be dict(config=..., checkpoint=...), dict(type=...) '
                f'or a list of these, with {", ".join(SETTINGS)} if wanted, got {got}')
        options = Options(self._owner)
        for key in ('config', 'checkpoint') if 'type' not in own else ('type', ):
            options.text(f'teacher.{key}', one[key])
        if not isinstance(one.get('keypoints'), (dict, type(None))):
            if one['keypoints'] != BY_NAME:
                options.refuse(
                    'teacher.keypoints',
                    f'{BY_NAME!r} or a dict of the student\'s keypoints and the '
                    'teacher\'s', one['keypoints'])
        options.flag('teacher.flip', one.get('flip', False))
        options.choice('teacher.weight_by', one.get('weight_by'), ('confidence', None))


def _source(one: dict) -> str:
    return next(str(one[key]) for key in (*FILES, 'type') if key in one)
