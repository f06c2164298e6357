"""Whole runs of a model of 30 numbers: milliseconds each."""
from pathlib import Path

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset


class TinyModel(BaseModel):
    """Its weights depend on everything that came before."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, inputs, mode='tensor'):
        out = self.layers(torch.stack(inputs) if isinstance(inputs, list) else inputs)
        return dict(loss=(out - torch.rand_like(out)).pow(2).mean()) if mode == 'loss' else [out]


class TinyData(Dataset):

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([index / 8, torch.rand(()).item()]))


class Scores(BaseMetric):
    """Gives the scores that it is told to, one after each validation.

    Args:
        scores (dict): The score after so many iterations, an even number; after others there is
            none.
    """

    def __init__(self, scores: dict):
        super().__init__()
        self.scores = scores

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        from mmengine.logging import MessageHub
        # The iteration that is under way, or, before a resumed run begins, those that are done
        done = (MessageHub.get_current_instance().get_info('iter') + 1) // 2 * 2
        return dict(score=self.scores[done]) if done in self.scores else {}


def tiny_runner(work_dir: Path, loop: str = 'epoch', length: int = 4,
                hook: str = 'mmskd.SafeCheckpointHook', scores: dict = None, custom_hooks=(),
                resume: bool = False, load_from: str = None, **options) -> Runner:
    """A Runner with a checkpoint and a validation after each epoch (two iterations).

    Args:
        work_dir (Path): Where it writes.
        loop (str): 'epoch' or 'iter'.
        length (int): In epochs, or pairs of iterations.
        hook (str): What saves.
        scores (dict): See :class:`Scores`; without them nothing is validated.
        options: Of the hook.
    """
    tiny_runner.count = getattr(tiny_runner, 'count', 0) + 1
    by_epoch = loop == 'epoch'
    model, data = TinyModel(), TinyData()
    sampler = DefaultSampler(data, seed=0) if by_epoch else InfiniteSampler(data, seed=0)
    validation = {} if scores is None else dict(
        val_dataloader=DataLoader(data, 4), val_evaluator=[Scores(scores)], val_cfg=dict())
    every = dict(by_epoch=by_epoch, val_interval=1 if by_epoch else 2)
    return Runner(
        model, str(work_dir), experiment_name=f'tiny-{tiny_runner.count}',
        train_dataloader=DataLoader(data, 4, sampler=sampler),
        train_cfg=dict(every, max_epochs=length) if by_epoch else dict(every, max_iters=2 * length),
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), .1, momentum=.9)),
        param_scheduler=dict(type='LinearLR', start_factor=.1, by_epoch=False, end=2 * length),
        default_hooks=dict(checkpoint=dict(
            type=hook, interval=1 if by_epoch else 2, by_epoch=by_epoch, **options)),
        custom_hooks=[dict(type='mmskd.RandomStreamsHook'), *custom_hooks],
        log_processor=dict(by_epoch=by_epoch), log_level='ERROR', randomness=dict(seed=0),
        resume=resume, load_from=load_from, **validation)
