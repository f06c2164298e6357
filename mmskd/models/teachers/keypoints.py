"""Which keypoint of a teacher teaches which of the student."""
import difflib
import re
from numbers import Integral
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from mmskd.errors import UsageError

from .metainfo import answer_names

BY_NAME = 'by_name'
SIDES = dict(l='left', r='right')

Names = Optional[Sequence[str]]
Mapped = List[Optional[int]]


class Keypoints:
    """The keypoints of one side, of which the names may not be known.

    Args:
        side (str): 'student' or 'teacher', for messages.
        count (int): How many.
        metainfo (Mapping, optional): Of the data that the model is trained on. Names count if there
            are ``count`` of them. Defaults to None.
    """

    def __init__(self, side: str, count: int, metainfo: Optional[Mapping[str, Any]] = None):
        self.side, self.count = side, count
        names = answer_names(metainfo, keypoints=True)
        self.names: Names = names if names and len(names) == count else None
        self._flip_indices = (metainfo or {}).get('flip_indices')

    def index(self, key: Union[int, str]) -> int:
        """The index of a keypoint that a config names by its index or name.

        Raises:
            UsageError: If there is none.
        """
        if isinstance(key, Integral) and not isinstance(key, bool):
            if not 0 <= key < self.count:
                raise UsageError(f'teacher.keypoints: the {self.side} has no keypoint {key}; its '
                                 f'{self.count} keypoints are 0 to {self.count - 1}')
            return int(key)
        if self.names is None:
            raise UsageError(
                f'teacher.keypoints: the names of the keypoints of the {self.side} are not '
                f'known, so {key!r} cannot be found among its {self.count}. Use indices')
        if key not in self.names:
            near = difflib.get_close_matches(str(key), self.names, n=3, cutoff=0.4)
            hint = (f'did you mean {", ".join(map(repr, near))}?' if near else
                    f'they are {_listed(self.names)}')
            raise UsageError(f'teacher.keypoints: the {self.side} has no keypoint {key!r}; {hint}')
        named: List[Any] = list(self.names)
        if named.count(key) > 1:
            raise UsageError(
                f'teacher.keypoints: the {self.side} has several keypoints {key!r}. Use indices')
        return named.index(key)

    def name(self, index: int) -> str:
        """How the log calls a keypoint."""
        return f'{index}' if self.names is None else f'{index} {self.names[index]}'

    def mirrored(self) -> List[int]:
        """Which keypoint each of them is in a mirror.

        Raises:
            UsageError: If neither the metainfo nor the names say it, or the one contradicts the
                other.
        """
        named = None if self.names is None else mirrored_by_name(self.names)
        if self._flip_indices is not None and len(self._flip_indices) == self.count:
            said = [int(index) for index in self._flip_indices]
            self._check_mirror(said, named)
            return said
        if named is None:
            raise UsageError(
                f'teacher.flip: what the {self.side} calls its keypoints is not known, so '
                'neither is which are left and which right. Leave flip out, or give metainfo')
        return named

    def _check_mirror(self, said: List[int], named: Optional[List[int]]) -> None:
        """Swaps that were left out of a metainfo would mix left and right without a word."""
        for index, other in enumerate(said):
            if not 0 <= other < self.count or said[other] != index:
                raise UsageError(
                    f'teacher.flip: the metainfo of the {self.side} says that a mirror makes '
                    f'{self.name(index)} keypoint {other}, and not the other way round. Mend its '
                    'swaps (flip_indices), or leave flip out')
            if named is not None and self.names is not None and other == index != named[index]:
                raise UsageError(
                    f'teacher.flip: the metainfo of the {self.side} says that '
                    f'{self.names[index]!r} is the same in a mirror, and there is '
                    f'{self.names[named[index]]!r}. Give it its swap, or leave flip out'
                )


def map_keypoints(option: Union[None, str, Mapping], student: Keypoints,
                  teacher: Keypoints) -> Mapped:
    """What teaches each keypoint of the student.

    The same name is the same keypoint. Else names are compared without case, order of words, and
    with ``L_`` for ``left_``: 'L_Eye' of AP-10K is 'left_eye', AIC's 'head_top' is CrowdPose's
    'top_head'; where two keypoints of one side would be the same in this way, it tells nothing.

    Args:
        option (str | Mapping, optional): 'by_name', or which keypoint of the teacher (index or
            name) each keypoint of the student (index or name) learns from; those that are not in it
            learn from labels alone. None: the n-th from the n-th, for the same keypoints in the
            same order.
        student (Keypoints): Of the student.
        teacher (Keypoints): Of the teacher.

    Returns:
        list[int, optional]: The teacher's index for each keypoint of the student; None where it
        knows none.

    Raises:
        UsageError: If a name is not there or is that of several keypoints, a keypoint is named
            twice, a left one would learn from a right one, or nothing would be taught.
    """
    if option is None:
        return _same(student, teacher)
    if isinstance(option, Mapping):
        mapped = _by_dict(option, student, teacher)
    elif option == BY_NAME:
        mapped = _by_name(student, teacher)
    else:
        raise UsageError(
            f'teacher.keypoints must be {BY_NAME!r} or a dict of the student\'s keypoints and the '
            f'teacher\'s, got {option!r}')
    _check_sides(mapped, student, teacher)
    return mapped


def describe_mapping(mapped: Mapped, student: Keypoints, teacher: Keypoints) -> List[str]:
    """A line on each keypoint of the student: what teaches it."""
    width = max(len(student.name(index)) for index in range(student.count))
    return [f'{student.name(mine):<{width}} <- ' + ('labels alone' if theirs is None else
                                                    teacher.name(theirs))
            for mine, theirs in enumerate(mapped)]


def untaught(mapped: Sequence[Mapped], student: Keypoints) -> List[str]:
    """The keypoints that none of some teachers teaches."""
    return [student.name(index) for index in range(student.count)
            if all(one[index] is None for one in mapped)]


def _same(student: Keypoints, teacher: Keypoints) -> Mapped:
    if student.count != teacher.count:
        raise UsageError(
            f'the student has {student.count} keypoints and the teacher {teacher.count}. Say which '
            f'teaches which: teacher=dict(..., keypoints={BY_NAME!r}), or a dict')
    if student.names and teacher.names and list(student.names) != list(teacher.names):
        first = next(index for index, pair in enumerate(zip(student.names, teacher.names))
                     if len(set(pair)) > 1)
        order = 'the same in another order' if set(student.names) == set(
            teacher.names) else 'others'
        raise UsageError(
            f'the keypoints of the teacher are {order}: number {first} is {student.names[first]!r} '
            f'in the student, {teacher.names[first]!r} in the teacher. Say which teaches which: '
            f'teacher=dict(..., keypoints={BY_NAME!r}), or a dict')
    return list(range(student.count))


def _by_name(student: Keypoints, teacher: Keypoints) -> Mapped:
    for one in (student, teacher):
        if one.names is None:
            raise UsageError(
                f'teacher.keypoints={BY_NAME!r}: what the {one.side} calls its {one.count} '
                'keypoints is not known. Use a dict of indices')
        twice = next((name for name in one.names if list(one.names).count(name) > 1), None)
        if twice is not None:
            raise UsageError(
                f'teacher.keypoints={BY_NAME!r}: the {one.side} has several keypoints {twice!r}. '
                'Use a dict of indices')
    asked, known = list(student.names or ()), list(teacher.names or ())
    alike, words = _places(known), _places(asked)
    mapped: Mapped = [
        known.index(name) if name in known else
        alike.get(_key(name)) if _key(name) in words else None for name in asked
    ]
    if all(index is None for index in mapped):
        raise UsageError(
            f'teacher.keypoints={BY_NAME!r}: student and teacher have no keypoint in common; the '
            f'student has {_listed(asked)}, the teacher {_listed(known)}')
    return mapped


def _by_dict(option: Mapping, student: Keypoints, teacher: Keypoints) -> Mapped:
    if not option:
        raise UsageError('teacher.keypoints is an empty dict: nothing would be taught')
    mapped: Mapped = [None] * student.count
    givers: Dict[int, int] = {}
    for mine, theirs in option.items():
        mine, theirs = student.index(mine), teacher.index(theirs)
        if mapped[mine] is not None:
            raise UsageError(f'teacher.keypoints names {student.name(mine)} of the student twice')
        if theirs in givers:
            raise UsageError(
                f'teacher.keypoints gives {teacher.name(theirs)} of the teacher to two keypoints '
                f'of the student, {student.name(givers[theirs])} and {student.name(mine)}')
        mapped[mine], givers[theirs] = theirs, mine
    return mapped


def _check_sides(mapped: Mapped, student: Keypoints, teacher: Keypoints) -> None:
    if student.names is None or teacher.names is None:
        return
    for mine, theirs in enumerate(mapped):
        if theirs is None:
            continue
        sides = [set(_key(names[index])) & set(SIDES.values())
                 for names, index in ((student.names, mine), (teacher.names, theirs))]
        if all(sides) and sides[0] != sides[1]:
            raise UsageError(
                f'teacher.keypoints: {student.names[mine]!r} of the student would learn from '
                f'{teacher.names[theirs]!r}, which is on the other side')


def mirrored_by_name(names: Sequence[str]) -> List[int]:
    """Which keypoint each is in a mirror, as far as left and right are words of the names."""
    places = _places(names)
    swap = {'left': 'right', 'right': 'left'}
    return [places.get(tuple(sorted(swap.get(word, word) for word in _key(name))), index)
            for index, name in enumerate(names)]


def _places(names: Sequence[str]) -> Dict[tuple, int]:
    """Words -> index, of the names whose words are no other's."""
    keys = [_key(name) for name in names]
    return {key: index for index, key in enumerate(keys) if key and keys.count(key) == 1}


def _key(name: str) -> tuple:
    """The words of a name: 'L_Big Toe' has those of 'big_toe_left'."""
    words = [word for word in re.split(r'[\W_]+', name.casefold()) if word]
    words = [SIDES.get(word, word) for word in words]
    if words and words[0] not in SIDES.values():
        joined = re.match(r'(left|right)(.+)', words[0])  # 'leftear'
        words[:1] = joined.groups() if joined else words[:1]
    return tuple(sorted(words))


def _listed(names: Sequence[str]) -> str:
    shown = ', '.join(names[:8])
    return shown + (f' and {len(names) - 8} more' if len(names) > 8 else '')
