"""A classifier of a few numbers, for configs of the stress tools."""
from typing import Optional

import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import Tensor, nn
from torch.utils.data import Dataset


@MODELS.register_module(force=True)
class TinyClassifier(BaseModel):
    """Two layers, and cross entropy of 5 classes."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Linear(8, 5)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, inputs: Tensor, labels: Optional[Tensor] = None, mode: str = 'tensor'):
        logits = self.last(self.middle(inputs).mean((2, 3)))
        return dict(loss=self.criterion(logits, labels)) if mode == 'loss' else logits


@DATASETS.register_module(force=True)
class Stripes(Dataset):
    """Noisy images whose class is the number of bright stripes.

    The noise is drawn anew each time.
    """

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict:
        image = torch.rand(3, 16, 16)
        image[:, :index % 5 * 3] += 1
        return dict(inputs=image, labels=torch.tensor(index % 5))
