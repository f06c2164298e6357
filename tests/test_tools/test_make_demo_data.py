from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmskd.datasets import is_complete, write_demo_data


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('kind', ['shapes', 'stick-figures'])
def test_same_seed_same_bytes(tmp_path, kind):
    for name, seed in (('a', 5), ('b', 5), ('c', 6)):
        write_demo_data(tmp_path / name, kind, train=4, val=2, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in 'abc')
    assert len(a) == 4 + 2 + 3
    assert a == b
    assert a[Path('train/000001.png')] != c[Path('train/000001.png')]
    write_demo_data(tmp_path / 'a', kind, train=4, val=2, seed=5)
    assert contents(tmp_path / 'a') == b


def test_splits_are_independent_and_a_small_set_is_the_beginning_of_a_large_one(tmp_path):
    write_demo_data(tmp_path / 'small', train=2, val=2)
    write_demo_data(tmp_path / 'large', train=4, val=3)
    small, large = contents(tmp_path / 'small'), contents(tmp_path / 'large')
    images = [name for name in small if name.suffix == '.png']
    assert all(small[name] == large[name] for name in images)
    pixels = [np.asarray(Image.open(tmp_path / 'small' / name)) for name in images]
    assert len({array.tobytes() for array in pixels}) == len(images) == 4


def test_tool_writes_both_kinds_and_may_run_twice(tmp_path, run_tool, capsys):
    for kind in ('shapes', 'stick-figures'):
        asked = tmp_path / 'new' / kind, '--kind', kind, '--train', '2', '--val', '1'
        run_tool('make_demo_data', *asked)
        assert '2 training and 1 validation images' in capsys.readouterr().out
        before = contents(asked[0])
        assert is_complete(asked[0])
        run_tool('make_demo_data', *asked, '--quiet')
        assert capsys.readouterr().out == ''
        assert contents(asked[0]) == before


def test_tool_does_not_touch_a_folder_with_something_else(tmp_path, refusal):
    (tmp_path / 'thesis.txt').write_text('years of work')
    assert 'holds something else' in refusal('make_demo_data', tmp_path, '--train', '1')
    assert contents(tmp_path) == {Path('thesis.txt'): b'years of work'}


def test_other_settings_are_refused(tmp_path):
    write_demo_data(tmp_path, train=1, val=1)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='remove it or choose another folder'):
        write_demo_data(tmp_path, train=2, val=1)
    assert contents(tmp_path) == before


def test_an_interrupted_write_is_not_complete_and_can_be_finished(tmp_path):

    class Interrupted(Exception):
        pass

    def interrupt():
        raise Interrupted

    with pytest.raises(Interrupted):
        write_demo_data(tmp_path, train=2, val=1, on_image=interrupt)
    assert not is_complete(tmp_path)
    write_demo_data(tmp_path, train=2, val=1)
    assert is_complete(tmp_path)


@pytest.mark.parametrize('wrong, message', [
    (dict(kind='letters'), 'kind must be'),
    (dict(train=0), 'at least 1'),
    (dict(val=0), 'at least 1'),
    (dict(seed=-1), 'at least 0'),
])
def test_wrong_arguments(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_demo_data(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []
