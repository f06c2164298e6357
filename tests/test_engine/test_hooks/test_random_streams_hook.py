import random
from types import SimpleNamespace

import numpy as np
import torch

from mmskd.engine.hooks import RandomStreamsHook
from mmskd.registry import HOOKS


def draw() -> list:
    return [random.random(), np.random.rand(), torch.rand(1).item()]


def run(first: int, last: int, model_draws: int = 1, validate: bool = False) -> list:
    """The draws of the data pipeline and the model in iterations first..last of an epoch loop."""
    hook, log = RandomStreamsHook(), []
    for epoch in range(first, last):
        runner = SimpleNamespace(seed=3, epoch=epoch, iter=epoch * 2)
        draw()  # whatever the process did before
        hook.before_train_epoch(runner)
        for _ in range(2):
            data = draw()
            hook.before_train_iter(runner, 0)
            log.append((data, [draw() for _ in range(model_draws)]))
            hook.after_train_iter(runner, 0)
            runner.iter += 1
            if validate:
                hook.before_val_epoch(runner)
                draw()
                hook.after_val_epoch(runner)
    return log


def test_a_resumed_run_draws_what_the_whole_run_does():
    whole = run(0, 4)
    assert run(2, 4) == whole[4:]
    assert len({str(entry) for entry in whole}) == len(whole)


def test_the_model_and_the_validation_do_not_move_the_data():
    data = [entry[0] for entry in run(0, 2)]
    assert [entry[0] for entry in run(0, 2, model_draws=5)] == data
    assert [entry[0] for entry in run(0, 2, validate=True)] == data


def test_registered_by_name():
    assert isinstance(HOOKS.build(dict(type='mmskd.RandomStreamsHook')), RandomStreamsHook)
