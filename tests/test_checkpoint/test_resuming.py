import os
import random
import shutil

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmskd.checkpoint import check_whole, load_checkpoint_safely, newest_whole
from mmskd.errors import UsageError
from tests.support.tiny_runs import tiny_runner


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run with four checkpoints, and the best one."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    tiny_runner(folder, save_best='score', rule='greater', scores={2: .1}).train()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / 'run')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_4.pth'))
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b'')


def text(path):
    path.write_text('<html>404</html>')


def rot(path):
    """One bit of a weight."""
    data = bytearray(path.read_bytes())
    weight = load_checkpoint_safely(str(path))['state_dict']['layers.0.weight'].numpy().tobytes()
    data[data.find(weight)] ^= 1
    path.write_bytes(data)


def name(found):
    return found.path and os.path.basename(found.path)


def test_the_newest_and_nothing_passed_over(run):
    assert name(newest_whole(str(run))) == 'epoch_4.pth' and not newest_whole(str(run)).passed_over


@pytest.mark.parametrize('damage, reason', [
    (cut, r'epoch_4.pth cannot be read as a checkpoint: the end of it is missing or damaged'),
    (empty, r'epoch_4.pth cannot be read as a checkpoint: it is empty'),
    (text, r"epoch_4.pth cannot be read as a checkpoint: it begins with b'<html>"),
    (rot, r'epoch_4.pth is damaged: the checksum of \S+ is wrong'),
    (os.remove, None),
])
@pytest.mark.parametrize('named', [True, False])
def test_falls_back_and_says_why(run, damage, reason, named):
    damage(run / 'epoch_4.pth')
    if not named:
        (run / 'last_checkpoint').unlink()
    found = newest_whole(str(run))
    assert name(found) == 'epoch_3.pth'
    assert len(found.passed_over) == (reason is not None)
    if reason:
        with pytest.raises(UsageError, match=reason):
            raise UsageError(*found.passed_over)


@pytest.mark.parametrize('content', ['', '\0' * 40, 'nowhere/epoch_9.pth', b'\xff\xfe'])
def test_last_checkpoint_says_nothing_of_use(run, content):
    (run
     / 'last_checkpoint').write_bytes(content if isinstance(content, bytes) else content.encode())
    assert name(newest_whole(str(run))) == 'epoch_4.pth'


def test_the_one_that_is_named_comes_before_newer_ones(run):
    """Those are of a run before this one, which went on from an older checkpoint."""
    (run / 'last_checkpoint').write_text(str(run / 'epoch_2.pth'))
    assert name(newest_whole(str(run))) == 'epoch_2.pth'
    empty(run / 'epoch_2.pth')
    assert name(newest_whole(str(run))) == 'epoch_1.pth'
    empty(run / 'epoch_1.pth')
    assert name(newest_whole(str(run))) == 'epoch_4.pth'


def test_a_copied_folder_goes_on_from_its_own_checkpoint(run, finished):
    (run / 'last_checkpoint').write_text(str(finished / 'epoch_4.pth'))
    assert newest_whole(str(run)).path == str(run / 'epoch_4.pth')


def test_numbers_are_not_words(run):
    (run / 'last_checkpoint').unlink()
    shutil.copy(run / 'epoch_4.pth', run / 'epoch_10.pth')
    assert name(newest_whole(str(run))) == 'epoch_10.pth'


def test_stops_where_none_is_whole(run):
    for path in run.glob('epoch_*.pth'):
        empty(path)
    with pytest.raises(UsageError, match='no checkpoint in .* to go on from: .*epoch_4.*empty.*'
                       'best_score_epoch_1.pth holds no optimizer state'):
        newest_whole(str(run))


def test_a_folder_without_checkpoints(tmp_path):
    assert newest_whole(str(tmp_path)) == newest_whole(str(tmp_path / 'none')) == (None, [])


def test_weights_alone_are_no_run(run, tmp_path):
    checkpoint = load_checkpoint_safely(str(run / 'epoch_4.pth'))
    torch.save(checkpoint['state_dict'], tmp_path / 'weights.pth')
    with pytest.raises(UsageError, match='weights.pth lacks .*message_hub.*load_from'):
        check_whole(str(tmp_path / 'weights.pth'))
    check_whole(str(run / 'best_score_epoch_1.pth'), with_optimizer=False)


def content(node):
    """Anything in a checkpoint as something that can be compared."""
    if isinstance(node, dict):
        return [(key, content(value)) for key, value in node.items()]
    if isinstance(node, (list, tuple)):
        return [content(value) for value in node]
    if isinstance(node, HistoryBuffer):
        return [array.tobytes() for array in node.data]
    return node.numpy().tobytes() if isinstance(node, torch.Tensor) else node


def test_bit_rot_is_found_wherever_it_matters(run):
    """A flipped bit is found, or changes nothing of what is read."""
    path, rng = run / 'epoch_4.pth', random.Random(0)
    whole, found = path.read_bytes(), 0
    expected = content(load_checkpoint_safely(str(path)))
    for _ in range(200):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            check_whole(str(path))
        except UsageError:
            found += 1
        else:
            assert content(load_checkpoint_safely(str(path))) == expected
    assert found > 80
