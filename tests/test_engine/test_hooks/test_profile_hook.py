"""What is profiled, and what is not; tests/test_tools/test_train.py looks at what comes out."""
import types

import pytest

from mmskd.engine.hooks import PSKDHook, profile_hook
from mmskd.engine.hooks.profile_hook import ProfileHook
from mmskd.errors import UsageError


class Averages(list):
    def table(self, **options):
        return 'the table'


class Profile:
    log: list = []

    def __init__(self, activities):
        pass

    def start(self):
        self.log.append('start')

    def stop(self):
        self.log.append('stop')

    def key_averages(self):
        return Averages()

    def export_chrome_trace(self, path):
        self.log.append('trace')


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Goes through epochs of iterations, of which some are taught, and says what was profiled."""
    monkeypatch.setattr(profile_hook, 'profile', Profile)
    monkeypatch.setattr(Profile, 'log', [])

    def train(hook, *epochs):
        teacher, errors = PSKDHook(), []
        runner = types.SimpleNamespace(
            hooks=[teacher], work_dir=str(tmp_path), logger=types.SimpleNamespace(
                error=errors.append))
        for epoch in epochs:
            for taught in epoch:
                Profile.log.append(taught)
                teacher._taught = bool(taught)
                hook.after_train_iter(runner, 0)
            hook.before_val(runner)
        hook.after_train(runner)
        return Profile.log, errors

    return train


def test_the_iterations_that_follow_a_taught_one(train):
    """The first of all is not: there each teacher is tried."""
    log, errors = train(ProfileHook(2), [1, 0, 0], [1, 1, 1, 1])
    assert log == [1, 0, 0, 1, 'start', 1, 1, 'stop', 'trace', 1] and not errors


def test_a_validation_ends_it(train):
    log, _ = train(ProfileHook(5), [1, 1, 1], [1, 1, 1])
    assert log == [1, 1, 'start', 1, 'stop', 'trace', 1, 1, 1]


def test_it_begins_again_where_an_epoch_ended_before_its_first(train):
    log, errors = train(ProfileHook(1), [1, 1], [1, 1, 1])
    assert log == [1, 1, 'start', 'stop', 1, 'start', 1, 'stop', 'trace', 1] and not errors


def test_nothing_to_profile_is_said(train):
    log, errors = train(ProfileHook(1), [1, 0, 0])
    assert log == [1, 0, 0] and 'nothing was profiled' in errors[0]


def test_options():
    with pytest.raises(UsageError, match='ProfileHook: iterations must be a whole number, at leas'):
        ProfileHook(0)
