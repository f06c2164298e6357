"""Random numbers that a resumed run draws as if it had never been interrupted."""
import random
from typing import Optional

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from mmskd.registry import HOOKS


@HOOKS.register_module()
class RandomStreamsHook(Hook):
    """Makes ``--resume`` exact: the same weights as a run that was not interrupted.

    MMEngine seeds a run once, at its start, and a checkpoint holds no random state. So a resumed run
    augments its images and samples its RoIs differently. This hook derives the random state from the
    seed and the position in the run instead, for each rank. What the data pipeline draws in the
    main process is a stream of its own, begun anew each epoch (in an iteration-based loop: once, since MMEngine
    replays that loop's data when it resumes); what the model draws begins anew each iteration.

    Worker processes are seeded by MMEngine whenever they start. With ``persistent_workers=True`` and random
    augmentation they carry a random state through the epochs that nothing can restore: set it to False
    where an exact resume matters.

    ``tools/train.py`` adds this hook where the config sets ``randomness.seed``; without a fixed seed there is
    nothing to be exact about.
    """

    priority = 'LOWEST'

    def __init__(self):
        self._data_state: Optional[tuple] = None

    def before_train_epoch(self, runner) -> None:
        """Begin the data stream of this epoch."""
        _seed(runner.seed, 0, runner.epoch)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """The batch is loaded: lay the data stream aside, begin the model's."""
        self._data_state = _state()
        _seed(runner.seed, 1, runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Go on with the data stream."""
        _restore(self._data_state)

    def before_val_epoch(self, runner) -> None:
        """Validation is not to move the data stream."""
        self._data_state = _state()

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Go on with the data stream."""
        _restore(self._data_state)


def _seed(seed: int, stream: int, position: int) -> None:
    entropy = np.random.SeedSequence([seed, stream, position, get_rank()])
    numpy_seed, python_seed, torch_seed = entropy.generate_state(3)
    np.random.seed(numpy_seed)
    random.seed(int(python_seed))
    torch.manual_seed(int(torch_seed))


def _state() -> tuple:
    return np.random.get_state(), random.getstate(), torch.get_rng_state()


def _restore(state: tuple) -> None:
    numpy_state, python_state, torch_state = state
    np.random.set_state(numpy_state)
    random.setstate(python_state)
    torch.set_rng_state(torch_state)
