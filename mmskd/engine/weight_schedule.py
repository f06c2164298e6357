"""When a teacher speaks: its weight over the training."""
import math
from typing import Optional

from mmskd.errors import UsageError
from mmskd.options import Options

KINDS = ('rising', 'constant', 'falling', 'cosine')
LEAST = 0.01  # of 'cosine', what the epoch after the last one would have


class WeightSchedule:
    """The factor of a teacher's weight in each epoch (or iteration, or interval of iterations).

    With t = 1..T counted from ``begin`` to ``stop``:

    - 'rising': ``t / T`` (PS-KD, Kim et al., ICCV 2021).
    - 'constant': 1.
    - 'falling': ``1 - (t - 1) / T`` (DWPose, Yang et al., ICCVW 2023).
    - 'cosine': ``1 - 0.99 (1 - cos(pi (t - 1) / T)) / 2``, from 1 towards 0.01, which
      epoch T + 1 would have (YOLOv6): 0.03 in the last of 12.

    Args:
        owner (str): Whose schedule it is, for the messages.
        kind (str): One of these.
        begin (int): How many epochs the teacher is silent at first. Defaults to 0.
        stop (int, optional): After how many epochs it is silent again: before the last ones, which
            go without mosaic, say. Defaults to None: never.

    Raises:
        UsageError: If an option is of another kind or out of range.
    """

    def __init__(self, owner: str, kind: str, begin: int = 0, stop: Optional[int] = None):
        options = Options(owner)
        self._owner = owner
        self.kind = options.choice('schedule', kind, KINDS)
        self.begin = options.whole('begin', begin, least=0)
        self.stop = options.whole('stop', stop, least=self.begin + 1, optional=True)

    def check(self, total: int, unit: str) -> None:
        """Raise UsageError if it does not lie within a training of ``total`` epochs (``unit``)."""
        if self.begin >= total:
            raise UsageError(
                f'{self._owner}: begin={self.begin} leaves none of the {total} {unit}s to the '
                'teacher; set a smaller begin, or train for longer')
        if self.stop is not None and self.stop > total:
            raise UsageError(
                f'{self._owner}: stop={self.stop} is behind the last of the {total} {unit}s; set a '
                'smaller stop, or leave it out')

    def at(self, finished: int, total: int) -> float:
        """The factor after so many finished epochs.

        Args:
            finished (int): Epochs (iterations, intervals) that are over.
            total (int): In the whole training.

        Returns:
            float: In [0, 1]; 0 where the teacher is silent.
        """
        end = total if self.stop is None else self.stop
        done, length = finished - self.begin, end - self.begin
        if not 0 <= done < length:
            return 0.
        if self.kind == 'rising':
            return (done + 1) / length
        if self.kind == 'falling':
            return 1 - done / length
        if self.kind == 'cosine':
            return 1 - (1 - LEAST) * (1 - math.cos(math.pi * done / length)) / 2
        return 1.

    def describe(self, unit: str) -> str:
        """In words, where ``unit`` is what it counts: 'epoch'."""
        words = dict(rising='rising linearly', constant='at constant weight',
                     falling='fading out linearly', cosine='fading out along a cosine')[self.kind]
        words += f', silent in the first {self.begin} {unit}(s)' if self.begin else ''
        return words + (f', silent after {self.stop} {unit}(s)' if self.stop is not None else '')
