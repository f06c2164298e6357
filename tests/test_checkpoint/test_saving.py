import errno
import os
from pathlib import Path

import pytest

from mmskd.checkpoint import saving
from mmskd.checkpoint.saving import SafeLocalBackend, remove_unfinished, write_whole
from mmskd.errors import DiskFullError


class Killed(BaseException):
    """A kill: nothing of the program runs after it."""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(b'old')
    return path


def test_writes_flushes_and_renames_in_this_order(file, monkeypatch):
    steps = []

    def record(name):
        original = getattr(os, name)

        def call(*args):
            steps.append((name, file.read_bytes()))
            return original(*args)

        monkeypatch.setattr(saving.os, name, call)

    for name in ('fsync', 'replace'):
        record(name)
    write_whole(b'new', file)
    # The folder is flushed as well, so that the new name outlives a power cut
    assert steps == [('fsync', b'old'), ('replace', b'old'), ('fsync', b'new')]
    assert os.listdir(file.parent) == ['epoch_1.pth']


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_kill_leaves_the_old_file(file, monkeypatch, step):

    def kill(*args):
        raise Killed

    monkeypatch.setattr(saving.os, step, kill)
    with pytest.raises(Killed):
        write_whole(b'new', file)
    assert file.read_bytes() == b'old'
    assert len(os.listdir(file.parent)) == 2
    remove_unfinished(file.parent)
    assert os.listdir(file.parent) == ['epoch_1.pth']


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no device that is always full')
def test_a_full_disk_is_named_with_what_is_needed(file):
    file.with_name('epoch_1.pth.unfinished').symlink_to('/dev/full')
    with pytest.raises(DiskFullError, match=r'no room for .*epoch_1.pth: 3.0 MB are needed and '
                       r'[\d,.]+ MB are free.*--resume') as error:
        write_whole(bytes(3 * 2**20), file)
    assert isinstance(error.value, OSError) and os.listdir(file.parent) == ['epoch_1.pth']
    assert file.read_bytes() == b'old'


def test_other_errors_are_those_of_the_system(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError) as error:
        write_whole(b'', tmp_path / 'file' / 'epoch_1.pth')
    assert error.value.errno in (errno.ENOTDIR, errno.EEXIST)


def test_a_folder_is_made(tmp_path):
    SafeLocalBackend().put(b'new', str(tmp_path / 'a' / 'b'))
    assert (tmp_path / 'a' / 'b').read_bytes() == b'new'


def test_removing_later(file):
    backend = SafeLocalBackend()
    with pytest.raises(ValueError), backend.removing_later() as postponed:
        backend.remove(file)
        raise ValueError
    assert postponed == [str(file)] and file.exists()
    backend.remove(file)
    assert not file.exists()
