import io
import sys

import pytest

from mmskd.progress import track


class Terminal(io.StringIO):

    def isatty(self):
        return True


@pytest.fixture
def show(monkeypatch):
    """What ``track`` writes to stdout and stderr, where these are of the given kinds."""

    def show(stdout, stderr, **options):
        # Here, not in the fixture: pytest puts its own streams back before the test is called
        with monkeypatch.context() as patch:
            patch.setenv('TERM', 'xterm')
            patch.setattr(sys, 'stdout', stdout)
            patch.setattr(sys, 'stderr', stderr)
            assert list(track((i for i in range(3)), 'counting', total=3, **options)) == [0, 1, 2]
        return stdout.getvalue(), stderr.getvalue()

    return show


def test_a_terminal_sees_the_bar_on_stderr(show):
    stdout, stderr = show(Terminal(), Terminal())
    assert 'counting' in stderr and '3/3' in stderr
    assert stdout == ''


def test_quiet_shows_nothing(show):
    assert show(Terminal(), Terminal(), quiet=True) == ('', '')


@pytest.mark.parametrize('stdout, stderr', [(io.StringIO, Terminal), (Terminal, io.StringIO)])
def test_a_pipe_or_a_file_sees_nothing(show, stdout, stderr):
    assert show(stdout(), stderr()) == ('', '')
