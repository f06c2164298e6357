"""When a teacher speaks."""
import math

import pytest

from mmskd.engine.weight_schedule import WeightSchedule
from mmskd.errors import UsageError


def weights(total, *args):
    schedule = WeightSchedule('PSKDHook', *args)
    schedule.check(total, 'epoch')
    return [schedule.at(finished, total) for finished in range(total)]


@pytest.mark.parametrize('args, expected', [
    (('rising', ), [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1]),  # t / T
    (('constant', ), [1, 1, 1, 1, 1]),
    (('falling', ), [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),  # 1 - (t - 1) / T
    (('rising', 1), [0, 1 / 4, 2 / 4, 3 / 4, 1]),
    (('rising', 2, 4), [0, 0, 1 / 2, 1, 0]),
    (('constant', 1, 4), [0, 1, 1, 1, 0]),
    (('falling', 0, 4), [1, 3 / 4, 2 / 4, 1 / 4, 0]),
    (('constant', 4), [0, 0, 0, 0, 1]),
    (('constant', 0, 5), [1, 1, 1, 1, 1])])
def test_weights(args, expected):
    assert weights(5, *args) == pytest.approx(expected, abs=1e-15)


def test_cosine_from_1_down_to_a_hundredth():
    seen = weights(300, 'cosine')
    assert seen[0] == 1 and seen[150] == pytest.approx(.505) and .01 < seen[-1] < .0101
    assert seen == pytest.approx([
        .01 + .99 * math.cos(math.pi * epoch / 600)**2 for epoch in range(300)])
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    'args, message',
    [(('linear', ),
      "PSKDHook: schedule must be 'rising', 'constant', 'falling' or 'cosine', got 'linear'"),
     (('rising', -1), 'begin must be a whole number, at least 0'),
     (('rising', 0, 0), 'stop must be a whole number, at least 1, or None'),
     (('rising', 3, 3), 'stop must be a whole number, at least 4, or None'),
     (('rising', 5), 'PSKDHook: begin=5 leaves none of the 5 epochs to the teacher'),
     (('rising', 0, 6), 'PSKDHook: stop=6 is behind the last of the 5 epochs')])
def test_what_is_no_schedule(args, message):
    with pytest.raises(UsageError, match=message):
        weights(5, *args)


def test_in_words():
    assert WeightSchedule('', 'falling').describe('epoch') == 'fading out linearly'
    assert WeightSchedule('', 'cosine', 1, 9).describe('epoch') == \
        'fading out along a cosine, silent in the first 1 epoch(s), silent after 9 epoch(s)'
