"""A hook that writes down what each process of a distributed run ends with."""
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class RankRecorder(Hook):
    """Saves the weights, the past self and all losses of this rank at the end of the training."""

    priority = 'HIGH'

    def before_train(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: value.item() for key, value in outputs.items()})

    def after_train(self, runner):
        from mmskd.engine.hooks import PSKDHook
        pskd = next(hook for hook in runner.hooks if isinstance(hook, PSKDHook))
        torch.save(
            dict(weights={name: value.detach() for name, value in runner.model.named_parameters()},
                 past=pskd._past.state_dict(), losses=self.losses,
                 disagreement=pskd.disagreement, wrapper=type(runner.model).__name__,
                 unused=runner.model.find_unused_parameters),
            Path(runner.work_dir) / f'rank{get_rank()}.pt')
