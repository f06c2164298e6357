import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmskd.engine.hooks import RandomStreamsHook
from mmskd.registry import HOOKS


def draw() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()


def epoch_loop(first: int, last: int, model_draws: int = 1) -> list:
    """What data pipeline and model draw in epochs first..last of two iterations."""
    hook, log = RandomStreamsHook(), []
    for epoch in range(first, last):
        runner = SimpleNamespace(seed=3, iter=epoch * 2, train_loop=SimpleNamespace())
        draw()  # whatever the process did before
        hook.before_train_epoch(runner)
        for _ in range(2):
            data = draw()
            hook.before_train_iter(runner, 0)
            log.append((data, [draw() for _ in range(model_draws)]))
            hook.after_train_iter(runner, 0)
            runner.iter += 1
    return log


def iteration_loop(first: int, last: int, replay: bool = False) -> list:
    """The same for iterations first..last; a resume may load the batches that it skips, or not."""

    def batches():
        while True:
            yield draw()

    loop = SimpleNamespace(dataloader_iterator=batches())
    hook, log = RandomStreamsHook(), []
    runner = SimpleNamespace(seed=3, iter=first, train_loop=loop)
    draw()
    hook.before_train_epoch(runner)
    for _ in range(first if replay else 0):
        next(loop.dataloader_iterator)
    for _ in range(first, last):
        data = next(loop.dataloader_iterator)
        hook.before_train_iter(runner, 0)
        log.append((data, [draw()]))
        hook.after_train_iter(runner, 0)
        runner.iter += 1
        draw()  # validation
    return log


def test_a_resumed_epoch_loop_draws_what_the_whole_run_does():
    whole = epoch_loop(0, 4)
    assert epoch_loop(2, 4) == whole[4:]
    assert len(set(map(str, whole))) == len(whole)


@pytest.mark.parametrize('replay', [False, True])
def test_a_resumed_iteration_loop_draws_what_the_whole_run_does(replay):
    whole = iteration_loop(0, 6)
    assert iteration_loop(3, 6, replay) == whole[3:]
    assert len(set(map(str, whole))) == len(whole)


def test_the_model_does_not_move_the_data():
    assert [data for data, _ in epoch_loop(0, 2)] == \
        [data for data, _ in epoch_loop(0, 2, model_draws=5)]


def test_an_iterator_keeps_its_own_methods():
    class Batches:
        skipped = 7

        def __next__(self):
            return 1

    loop = SimpleNamespace(dataloader_iterator=Batches())
    RandomStreamsHook().before_train_epoch(SimpleNamespace(seed=0, iter=0, train_loop=loop))
    assert loop.dataloader_iterator.skipped == 7 and next(loop.dataloader_iterator) == 1
    assert iter(loop.dataloader_iterator) is loop.dataloader_iterator


def test_registered_by_name():
    assert isinstance(HOOKS.build(dict(type='mmskd.RandomStreamsHook')), RandomStreamsHook)


@pytest.mark.parametrize('iteration, warns', [(0, False), (4, True), (6, False)])
def test_gathered_gradients_are_lost_with_a_warning(iteration, warns, monkeypatch):
    said = []
    monkeypatch.setattr('mmskd.engine.hooks.random_streams_hook.print_log',
                        lambda text, *args: said.append(text))
    RandomStreamsHook().before_train(SimpleNamespace(
        iter=iteration, optim_wrapper=SimpleNamespace(_accumulative_counts=3)))
    RandomStreamsHook().before_train(SimpleNamespace(iter=iteration, optim_wrapper=None))
    assert len(said) == warns
    assert not warns or 'accumulative_counts=3: the run goes on from iteration 4' in said[0]
