"""A classifier that trains in minutes on a CPU: network, data set and metric, in MMEngine's terms.

For measurements of what a softmax gains, where mmpretrain is not wanted. Configs import it by
``custom_imports = dict(imports=['benchmarks.small_classifier'])``, which tools/train.py finds.
"""
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.utils.data import Dataset

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10
PADDING = 4  # pixels on each side, before the crop


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 and in_channels == channels else \
            nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                          nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


@MODELS.register_module()
class SmallResNet(BaseModel):
    """A residual network for images of 32x32 pixels, with cross entropy.

    Args:
        num_classes (int): Number of classes.
        widths (sequence[int]): Channels of the stages ``layer1``, ``layer2``, ...; the resolution
            halves from one to the next. Defaults to (32, 64, 128), 0.31 M parameters.
        blocks (int): Residual blocks a stage. Defaults to 1.
        label_smoothing (float): Of the loss. Defaults to 0.0.
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = (32, 64, 128), blocks: int = 1,
                 label_smoothing: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
                                  nn.BatchNorm2d(widths[0]), nn.ReLU())
        channels, self.stages = widths[0], []
        for number, width in enumerate(widths, 1):
            layers = []
            for block in range(blocks):
                stride = 2 if number > 1 and block == 0 else 1
                layers.append(ResidualBlock(channels, width, stride))
                channels = width
            self.stages.append(f'layer{number}')
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, inputs: Tensor, labels: Optional[Tensor] = None, mode: str = 'tensor'):
        """Logits (N, C); with ``mode='loss'`` the loss, with ``'predict'`` a dict per image."""
        # In this layout a CPU takes a fifth less time
        x = self.stem(inputs.contiguous(memory_format=torch.channels_last))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits = self.fc(x.mean((2, 3)))
        if mode == 'loss':
            return dict(loss=self.criterion(logits, labels))
        if mode == 'predict':
            return [dict(logits=each, label=label) for each, label in zip(logits, labels)]
        return logits


@DATASETS.register_module()
class ArrayImages(Dataset):
    """Images of 32x32 pixels in a npz file.

    Args:
        ann_file (str): File with ``x_<split>`` (N, 32, 32, 3) uint8 RGB and ``y_<split>`` (N,).
        split (str): ``'train'`` or ``'test'``.
        augment (bool): Mirror, and shift by up to 4 pixels. Defaults to False.
        indices (int, optional): Only the first so many. Defaults to None: all.
    """

    def __init__(self, ann_file: str, split: str, augment: bool = False,
                 indices: Optional[int] = None):
        with np.load(ann_file, allow_pickle=False) as content:
            images, labels = content[f'x_{split}'][:indices], content[f'y_{split}'][:indices]
            self.metainfo = dict(classes=[str(name) for name in content['classes']])
        images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        self.images = (images - torch.tensor(MEAN)[:, None, None]) / \
            torch.tensor(STD)[:, None, None]
        self.labels = torch.from_numpy(labels).long()
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Dict[str, Tensor]:
        image = self.images[index]
        if self.augment:
            if torch.rand(()) < 0.5:
                image = image.flip(-1)
            top, left = torch.randint(2 * PADDING + 1, (2, )).tolist()
            size = image.shape[-1]
            image = F.pad(image, [PADDING] * 4)[:, top:top + size, left:left + size]
        return dict(inputs=image, labels=self.labels[index])


@METRICS.register_module()
class SoftmaxMetric(BaseMetric):
    """Error and calibration of a softmax classifier, as it is and with temperature scaling.

    The temperature (Guo et al., ICML 2017) is fitted to one half of the images and measured on the
    other, both ways round, so that no image is used for both.

    Keys, with the prefix ``softmax``: ``error``, ``NLL`` (nats), ``ECE`` (confidence of the first
    class, bins of equal width), and ``NLL_T``, ``ECE_T`` with temperature.

    Args:
        n_bins (int): Bins of the calibration error. Defaults to 15.
    """

    default_prefix = 'softmax'

    def __init__(self, n_bins: int = 15, **kwargs):
        super().__init__(**kwargs)
        self.n_bins = n_bins

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the logits and the label of each image."""
        self.results += [(sample['logits'].float().cpu().numpy(), int(sample['label']))
                         for sample in data_samples]

    def compute_metrics(self, results: List[Tuple[np.ndarray, int]]) -> Dict[str, float]:
        """The keys that the class names."""
        logits = np.stack([logits for logits, _ in results]).astype(np.float64)
        labels = np.array([label for _, label in results])
        scaled, half = np.empty_like(logits), np.arange(len(labels)) % 2 == 0
        for fitted in (half, ~half):
            scaled[~fitted] = logits[~fitted] / softmax_temperature(logits[fitted], labels[fitted])
        return dict(
            error=float((logits.argmax(1) != labels).mean()),
            NLL=softmax_nll(logits, labels), ECE=softmax_ece(logits, labels, self.n_bins),
            NLL_T=softmax_nll(scaled, labels), ECE_T=softmax_ece(scaled, labels, self.n_bins))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def softmax_nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log likelihood of the labels, in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def softmax_ece(logits: np.ndarray, labels: np.ndarray, n_bins: int) -> float:
    """Mean over the images of how far confidence and accuracy of their bin are apart."""
    confidence = np.exp(log_softmax(logits)).max(1)
    hits = logits.argmax(1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = [abs((confidence - hits)[bins == number].sum()) for number in range(n_bins)]
    return float(sum(gaps) / len(labels))


def softmax_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What to divide logits by so that the labels are most likely, between 0.05 and 20."""
    found = minimize_scalar(lambda log_t: softmax_nll(logits / np.exp(log_t), labels),
                            bounds=(np.log(0.05), np.log(20)), method='bounded')
    return float(np.exp(found.x))
