import math

import numpy as np
import pytest
from mmengine.config import ConfigDict

from mmskd.errors import UsageError
from mmskd.options import Options

OPTIONS = Options('Some')


@pytest.mark.parametrize('method, value, limits', [
    ('number', .5, dict(least=0, most=1)),
    ('number', 0, dict(least=0)),
    ('number', np.float32(.5), {}),
    ('number', None, dict(optional=True)),
    ('whole', 3., dict(least=1)),
    ('whole', np.int64(3), {}),
    ('flag', False, {}),
    ('text', 'a', {}),
    ('choice', None, dict(among=['a', None])),
    ('names', ('a', 'b'), {}),
    ('names', None, dict(optional=True)),
    ('config', ConfigDict(type='A', weight=1), {}),
    ('config', dict(type=int), {}),
    ('configs', [dict(type='A')], {}),
])
def test_takes_and_returns(method, value, limits):
    assert getattr(OPTIONS, method)('option', value, **limits) == value


@pytest.mark.parametrize(
    'method, value, limits, message',
    [('number', 'high', dict(least=0,
                             most=1), r"Some: option must be a number in \[0, 1\], got 'high'"),
     ('number', 1.5, dict(least=0, most=1), r'a number in \[0, 1\], got 1.5'),
     ('number', 0, dict(above=0), 'a number, above 0, got 0'),
     ('number', 1, dict(above=0, below=1), 'a number, above 0, below 1, got 1'),
     ('number', -1, dict(least=0), 'a number, at least 0, got -1'),
     ('number', True, {}, 'a number, got True'), ('number', math.nan, {}, 'a number, got nan'),
     ('number', math.inf, {}, 'a number, got inf'), ('number', None, {}, 'a number, got None'),
     ('number', [1], dict(optional=True), r'a number, or None, got \[1\]'),
     ('whole', 1.5, {}, 'a whole number, got 1.5'),
     ('whole', math.inf, {}, 'a whole number, got inf'),
     ('whole', 0, dict(least=1), 'a whole number, at least 1, got 0'),
     ('whole', True, {}, 'a whole number, got True'), ('whole', '3', {}, "a whole number, got '3'"),
     ('flag', 'no', {}, "True or False, got 'no'"), ('flag', 1, {}, 'True or False, got 1'),
     ('text', '', {}, "a string, got ''"),
     ('text', 3, dict(optional=True), 'a string, or None, got 3'),
     ('choice', 'c', dict(among=['a', 'b', None]), "'a', 'b' or None, got 'c'"),
     ('choice', ['a'], dict(among=['a']), r"must be 'a', got \['a'\]"),
     ('names', 'bbox_head', {}, r"a list of names, as \['bbox_head'\], got 'bbox_head'"),
     ('names', [], dict(optional=True), r'a list of names, or None, got \[\]'),
     ('names', ['a', 1], {}, 'a list of names'),
     ('config', 'mmskd.NKDLoss', {}, r"dict\(type='mmskd.NKDLoss'\), got"),
     ('config', dict(weight=1), {}, r'dict\(type=...\), got'),
     ('configs', dict(type='A'), {}, r'a list of dict\(type=...\), at least one, got'),
     ('configs', [], {}, 'at least one, got'),
     ('configs', [dict(type='A'), 'B'], {}, r"option\[1\] must be dict\(type='B'\)"), ])
def test_refuses_and_says_what_it_must_be(method, value, limits, message):
    with pytest.raises(UsageError, match=message):
        getattr(OPTIONS, method)('option', value, **limits)
