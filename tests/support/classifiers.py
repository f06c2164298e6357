"""A small torchvision classifier in MMEngine's loops: no mmdet, mmpose or mmpretrain is needed."""
from pathlib import Path
from typing import Dict, Optional

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models import ShuffleNetV2

NUM_CLASSES, CHANNELS = 5, 16
"""Of the tiny classifier; CHANNELS are those of its layer ``net.stage3``."""


@MODELS.register_module(force=True)
class TinyClassifier(BaseModel):
    """ShuffleNetV2 with few channels, and cross entropy."""

    def __init__(self, num_classes: int = NUM_CLASSES):
        super().__init__()
        self.net = ShuffleNetV2([1, 1, 1], [8, 8, CHANNELS, 32, 32], num_classes)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, inputs: Tensor, labels: Optional[Tensor] = None, mode: str = 'tensor'):
        logits = self.net(inputs)
        return dict(loss=self.criterion(logits, labels)) if mode == 'loss' else logits


@HOOKS.register_module(force=True)
class USKDRecorder(Hook):
    """Saves what this process of a run with USKD ends with: weights, classifier and all losses."""

    priority = 'HIGH'

    def before_train(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: value.item() for key, value in outputs.items()})

    def after_train(self, runner):
        uskd = next(hook for hook in runner.hooks if type(hook).__name__ == 'USKDHook')
        torch.save(dict(weights=dict(runner.model.named_parameters()), losses=self.losses,
                        classifier=dict(uskd.classifier.named_parameters()),
                        wrapped=is_model_wrapper(uskd._called)),
                   Path(runner.work_dir) / f'rank{get_rank()}.pt')


@DATASETS.register_module(force=True)
class Stripes(Dataset):
    """Noisy 32x32 images whose class is the number of bright stripes; the same on each call."""

    def __init__(self, length: int = 16):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        label = index % NUM_CLASSES
        image = 0.3 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        image[:, :, :4 * label:4] += 1
        return dict(inputs=image, labels=torch.tensor(label))


@METRICS.register_module(force=True)
class GivenScores(BaseMetric):
    """Gives the scores that it is told to: the n-th after the n-th pair of iterations of the
    training.
    """

    def __init__(self, scores: list, **others: list):
        super().__init__()
        self.scores = dict(score=scores, **others)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        # The iteration that is under way, or, before a resumed run begins, those that are done
        done = (MessageHub.get_current_instance().get_info('iter') + 1) // 2
        return {name: values[done - 1] for name, values in self.scores.items()}


def validation(scores: list, by_epoch: bool = True, **checkpoint) -> dict:
    """Changes of a config: a validation after each 2 iterations, which gives these scores and keeps
    the best.

    Args:
        scores (list[float]): One for each.
        by_epoch (bool): Whether the run counts epochs. Defaults to True.
        checkpoint: Options of SafeCheckpointHook, besides those that :func:`config` gives it.
    """
    return dict(
        val_dataloader=dict(batch_size=8, num_workers=0, dataset=dict(type='Stripes', length=8),
                            collate_fn=dict(type='default_collate'),
                            sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=dict(type='GivenScores', scores=scores), val_cfg=dict(),
        train_cfg__val_interval=1 if by_epoch else 2,
        default_hooks__checkpoint=dict(dict(type='mmskd.SafeCheckpointHook', save_best='score',
                                            rule='greater'), **checkpoint))


def config(work_dir: Path, hooks: list = (), loop: str = 'epoch', length: int = 4,
           **changes) -> Config:
    """A config of the tiny classifier: 2 iterations an epoch, a checkpoint after each 2.

    Args:
        work_dir (Path): Where the run writes.
        hooks (list[dict]): Custom hooks, besides the one that makes a resume exact.
        loop (str): 'epoch' or 'iter'.
        length (int): Epochs or iterations.
        changes: Anything else, by dotted key (dots written as two underscores).
    """
    by_epoch = loop == 'epoch'
    cfg = Config(dict(
        default_scope='mmengine',
        model=dict(type='TinyClassifier'),
        train_dataloader=dict(
            batch_size=8, num_workers=0, dataset=dict(type='Stripes'),
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=length) if by_epoch else
        dict(by_epoch=False, max_iters=length),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=length),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 2,
                            by_epoch=by_epoch)),
        log_processor=dict(by_epoch=by_epoch, window_size=1),
        custom_hooks=[*hooks, dict(type='mmskd.RandomStreamsHook')],
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        randomness=dict(seed=0), experiment_name=work_dir.name, log_level='ERROR',
        work_dir=str(work_dir)))
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def runner(cfg: Config) -> Runner:
    """A Runner of its own: each gets an experiment name that no other has had."""
    runner.count = getattr(runner, 'count', 0) + 1
    cfg = Config(cfg.to_dict())
    cfg.experiment_name = f'{cfg.experiment_name}-{runner.count}'
    return Runner.from_cfg(cfg)


def train(cfg: Config) -> Runner:
    """Train to the end."""
    finished = runner(cfg)
    finished.train()
    return finished


def batch(size: int = 8) -> Dict[str, Tensor]:
    """Images (N, 3, 32, 32) and labels (N,)."""
    samples = [Stripes()[index] for index in range(size)]
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
