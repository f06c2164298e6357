"""Hooks for distributed runs: one writes down what each process ends with, one kills a process."""
import os
import signal
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class RankRecorder(Hook):
    """Saves what this rank ends with: weights, all losses, and what the teaching hook holds."""

    priority = 'HIGH'  # before the hook lets go of it

    def before_train(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: value.item() for key, value in outputs.items()})

    def after_train(self, runner):
        teaching = {type(hook).__name__: hook for hook in runner.hooks}
        record = dict(
            weights={name: value.detach() for name, value in runner.model.named_parameters()},
            losses=self.losses, wrapper=type(runner.model).__name__,
            unused=runner.model.find_unused_parameters)
        if 'PSKDHook' in teaching:
            pskd = teaching['PSKDHook']
            record.update(past=pskd._past.state_dict(), disagreement=pskd.disagreement)
        if 'DistillHook' in teaching:
            record.update(projections=teaching['DistillHook'].state())
        torch.save(record, Path(runner.work_dir) / f'rank{get_rank()}.pt')


@HOOKS.register_module(force=True)
class DyingRank(Hook):
    """Kills rank 1 before an iteration, unless torchrun has started it again."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.iter, get_rank()) == (self.iteration, 1) and os.environ[
                'TORCHELASTIC_RESTART_COUNT'] == '0':
            os.kill(os.getpid(), signal.SIGKILL)
