"""Random numbers that a resumed run draws as if it had never been interrupted."""
import logging
import random
from typing import Any, Callable, Iterator

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log

from mmskd.registry import HOOKS

DATA, MODEL = 0, 1


@HOOKS.register_module()
class RandomStreamsHook(Hook):
    """Makes ``--resume`` exact: the same weights as a run that was not interrupted.

    MMEngine seeds a run once, at its start, and a checkpoint holds no random state. So a resumed
    run augments its images and samples its RoIs differently. This hook derives the random state
    from the seed and the position in the run instead, on each rank: what the data pipeline draws
    for an iteration in the main process, and what the model draws in it, begin anew each iteration.

    Worker processes are seeded by MMEngine whenever they start. With ``persistent_workers=True``
    and random augmentation they carry a random state through the epochs that nothing can restore:
    set it to False where an exact resume matters. Gradients that are accumulated are in no
    checkpoint either: resume between two updates of the weights is not exact, and warns.

    ``tools/train.py`` adds this hook where the config sets ``randomness.seed``; without a fixed
    seed there is nothing to be exact about.
    """

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Say where a resumed run cannot be exact: gathered gradients are in no checkpoint."""
        every = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if runner.iter % every:
            print_log(
                f'optim_wrapper.accumulative_counts={every}: the run goes on from iteration '
                f'{runner.iter}, between two updates of the weights. The gradients that were '
                'gathered since the last one are in no checkpoint, so it will not be exactly what '
                f'it would have been; from a multiple of {every} iterations it would', 'current',
                logging.WARNING)

    def before_train_epoch(self, runner) -> None:
        """Seed the first batch of an epoch.

        In an iteration-based loop, each batch when it is loaded.
        """
        _seed(runner.seed, DATA, runner.iter)
        loop = runner.train_loop
        if hasattr(loop, 'dataloader_iterator'):
            # That loop validates between batches, and skips batches when it resumes, in one way
            # or another depending on MMEngine's version: only here is the position known.
            loop.dataloader_iterator = SeededIterator(
                loop.dataloader_iterator, lambda: _seed(runner.seed, DATA, runner.iter))

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """The batch is loaded: seed the model."""
        _seed(runner.seed, MODEL, runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Seed the next batch."""
        _seed(runner.seed, DATA, runner.iter + 1)


class SeededIterator:
    """An iterator that calls something before each step; all else is as in the original."""

    def __init__(self, iterator: Iterator, before: Callable[[], None]):
        self._iterator = iterator
        self._before = before

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        # The forks' loop makes its iterator with the first batch, for which torch draws a number
        getattr(self._iterator, '_ensure_iterator', int)()
        self._before()
        return next(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


def _seed(seed: int, stream: int, position: int) -> None:
    entropy = np.random.SeedSequence([seed, stream, position, get_rank()])
    numpy_seed, python_seed, torch_seed = entropy.generate_state(3)
    np.random.seed(numpy_seed)
    random.seed(int(python_seed))
    torch.manual_seed(int(torch_seed))
