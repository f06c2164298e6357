"""One way of checking the options of what a config builds: hooks, losses, metrics."""
import math
from numbers import Integral, Real
from typing import Any, List, Optional, Sequence

from mmskd.errors import UsageError


class Options:
    """Checks options, and names what has them in the message.

    In a constructor::

        options = Options('PSKDHook')
        self.alpha_T = options.number('alpha_T', alpha_T, least=0, most=1)

    Each method takes the name of an option and its value, and returns the value. With
    ``optional=True`` None is a value as well.

    Args:
        owner (str): Whose options these are.

    Raises:
        UsageError: In each method, if the value is of another type or out of range. It says what
            the option must be, and what it is.
    """

    def __init__(self, owner: str):
        self._owner = owner

    def refuse(self, name: str, wanted: str, value: Any) -> None:
        """Raise UsageError: the option must be ``wanted``."""
        raise UsageError(f'{self._owner}: {name} must be {wanted}, got {value!r}')

    def number(self, name: str, value: Any, least: Optional[float] = None,
               most: Optional[float] = None, above: Optional[float] = None,
               below: Optional[float] = None, optional: bool = False) -> Any:
        """A finite number, from ``least`` (or above ``above``) to ``most`` (or below ``below``)."""
        if optional and value is None:
            return value
        known = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not known or (least is not None and value < least) or (
                most is not None and value > most) or (
                above is not None and value <= above) or (below is not None and value >= below):
            self.refuse(name, _range('a number', least, most, above, below) + _or_none(optional),
                        value)
        return value

    def whole(self, name: str, value: Any, least: Optional[int] = None,
              most: Optional[int] = None, optional: bool = False) -> Any:
        """A whole number, from ``least`` to ``most``."""
        if optional and value is None:
            return value
        known = isinstance(value, (Integral, float)) and not isinstance(value, bool)
        if not known or value != value // 1 or (least is not None and value < least) or (
                most is not None and value > most):
            self.refuse(name, _range('a whole number', least, most) + _or_none(optional), value)
        return int(value)

    def flag(self, name: str, value: Any) -> bool:
        """True or False; a string would count as True whatever it says."""
        if not isinstance(value, bool):
            self.refuse(name, 'True or False', value)
        return value

    def text(self, name: str, value: Any, optional: bool = False) -> Any:
        """A string that is not empty."""
        if not (optional and value is None) and not (isinstance(value, str) and value):
            self.refuse(name, 'a string' + _or_none(optional), value)
        return value

    def choice(self, name: str, value: Any, among: Sequence[Any]) -> Any:
        """One of some values."""
        if not any(type(value) is type(each) and value == each for each in among):
            *most, last = map(repr, among)
            self.refuse(name, f'{", ".join(most)} or {last}' if most else last, value)
        return value

    def names(self, name: str, value: Any, optional: bool = False) -> Optional[List[str]]:
        """A list of strings, at least one."""
        if optional and value is None:
            return value
        example = f', as [{value!r}]' if isinstance(value, str) else ''
        if not isinstance(value, (list, tuple)) or not value or not all(
                isinstance(each, str) and each for each in value):
            self.refuse(name, f'a list of names{example}' + _or_none(optional), value)
        return value

    def config(self, name: str, value: Any, optional: bool = False) -> Optional[dict]:
        """A dict with a ``type``, of which something is built."""
        if optional and value is None:
            return value
        if not isinstance(value, dict) or not value.get('type'):
            example = f'dict(type={value!r})' if isinstance(value, str) else 'dict(type=...)'
            self.refuse(name, example + _or_none(optional), value)
        return value

    def configs(self, name: str, value: Any, optional: bool = False) -> Optional[List[dict]]:
        """A list of such dicts, at least one."""
        if optional and value is None:
            return value
        if not isinstance(value, (list, tuple)) or not value:
            self.refuse(name, 'a list of dict(type=...), at least one' + _or_none(optional), value)
        for index, each in enumerate(value):
            self.config(f'{name}[{index}]', each)
        return value


def _range(kind: str, least: Optional[float], most: Optional[float],
           above: Optional[float] = None, below: Optional[float] = None) -> str:
    if least is not None and most is not None:
        return f'{kind} in [{least}, {most}]'
    bounds = {'at least': least, 'above': above, 'at most': most, 'below': below}
    return ', '.join([kind, *(f'{word} {bound}' for word, bound in bounds.items()
                              if bound is not None)])


def _or_none(optional: bool) -> str:
    return ', or None' if optional else ''
