"""A real classifier learns real digits, by itself, from a teacher, and from its own soft labels."""
import pytest
import torch
from mmengine.registry import DATASETS
from torch.utils.data import TensorDataset

from tests.support import classifiers

sklearn_datasets = pytest.importorskip('sklearn.datasets')

CLASSES, TRAIN = 10, 600
NKD = dict(type='mmskd.NKDHook', loss_module='criterion')
USKD = dict(type='mmskd.USKDHook', layer='net.stage3', channels=classifiers.CHANNELS,
            num_classes=CLASSES, loss_module='criterion')


@DATASETS.register_module(force=True)
class Digits(TensorDataset):
    """scikit-learn's digits, enlarged to 32x32: ``TRAIN`` images, or the others."""

    def __init__(self, train: bool = True):
        digits = sklearn_datasets.load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
        chosen = order[:TRAIN] if train else order[TRAIN:]
        images = torch.tensor(digits.images, dtype=torch.float32)[chosen].unsqueeze(1) / 8 - 1
        images = torch.nn.functional.interpolate(images, scale_factor=4, mode='bilinear')
        super().__init__(images.expand(-1, 3, -1, -1), torch.tensor(digits.target)[chosen])

    def __getitem__(self, index: int) -> dict:
        image, label = super().__getitem__(index)
        return dict(inputs=image, labels=label)


def train(work_dir, hooks=(), iterations=200, seed=0):
    """Train the tiny classifier; its weights are saved as ``iter_<iterations>.pth``."""
    cfg = classifiers.config(
        work_dir, list(hooks), loop='iter', length=iterations,
        model__num_classes=CLASSES, train_dataloader__dataset=dict(type='Digits'),
        train_dataloader__batch_size=64, randomness__seed=seed,
        optim_wrapper__optimizer=dict(_delete_=True, type='AdamW', lr=5e-3, weight_decay=0.05),
        param_scheduler=dict(_delete_=True, type='CosineAnnealingLR', by_epoch=False,
                             T_max=iterations),
        default_hooks__checkpoint__interval=iterations)
    cfg.dump(str(work_dir.with_suffix('.py')))
    return classifiers.train(cfg)


@torch.no_grad()
def accuracy(model):
    images, labels = Digits(train=False).tensors
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def test_learns_with_each(tmp_path):
    teacher = train(tmp_path / 'teacher', iterations=120)
    assert accuracy(teacher.model) > 0.85
    knowledge = dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(
        tmp_path / 'teacher/iter_120.pth'))
    for name, hook in (('nkd', dict(NKD, teacher=knowledge)), ('uskd', USKD)):
        runner = train(tmp_path / name, [hook], iterations=120)
        values, _ = runner.message_hub.get_scalar(f'train/loss_{name}').data
        assert accuracy(runner.model) > 0.85
        assert values[-10:].mean() < 0.7 * values[:10].mean()
