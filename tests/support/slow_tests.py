"""A plugin of pytest that writes tests/slow.txt: the tests that take long, without their cases.

    python -m pytest -p tests.support.slow_tests tests

What counts is the time that the processors work for a test, child processes included: it is about
the same on a machine that does other things as well. Tests that are not run keep their lines.
"""
import os
from pathlib import Path

import pytest

LIST = Path(__file__).resolve().parents[1] / 'slow.txt'
LONG = 1.2
"""Seconds."""


def slow_tests() -> set:
    """The node ids in the list, without ``[case]``."""
    return set(LIST.read_text(encoding='utf-8').split())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Take the time of a test and of the fixtures that it is the first to ask for."""
    before = sum(os.times()[:4])
    yield
    case, took = item.nodeid.partition('[')[0], sum(os.times()[:4]) - before
    times = item.session.__dict__.setdefault('times', {})
    times[case] = max(took, times.get(case, 0.))


def pytest_sessionfinish(session):
    """Write the list."""
    times = getattr(session, 'times', {})
    slow = {case for case, took in times.items() if took > LONG}
    kept = slow_tests() - times.keys()
    LIST.write_text(''.join(f'{case}\n' for case in sorted(slow | kept)), encoding='utf-8')
