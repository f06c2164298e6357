"""Fits calibrators to a trained model's predictions, on images that nothing is measured on."""
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmskd.checkpoint import load_weights
from mmskd.errors import UsageError
from mmskd.progress import track

from .calibrators import Calibrator
from .ground_truth import image_files
from .held_out import random_half, shared_images
from .offline import calibration_metric


class Predicted(NamedTuple):
    """What a model predicts on a split.

    Attributes:
        metric (BaseMetric): The calibration metric, with the split's annotations.
        gathered (Gathered or GatheredKeypoints): Predictions and ground truth.
        samples (list): The data samples.
        files (list[str]): The image of each of them.
    """
    metric: BaseMetric
    gathered: Any
    samples: List
    files: List[str]

    def select(self, keep: np.ndarray) -> 'Predicted':
        """Only the samples of a mask."""
        of = [i for i, one in enumerate(keep) if one]
        return Predicted(self.metric, self.gathered.select(keep),
                         [self.samples[i] for i in of], [self.files[i] for i in of])

    def values(self, thresholds: Calibrator, calibrated: bool) -> Dict[str, float]:
        """The metric's values, with scores as they are or as the calibrator maps them.

        Args:
            thresholds (Calibrator): Holds the thresholds of detections, for both.
            calibrated (bool): Whether it maps the scores.
        """
        self.metric.thresholds = thresholds
        self.metric.calibrator = thresholds if calibrated else None
        return {f'{self.metric.prefix}/{key}': value
                for key, value in self.metric.values(self.gathered).items()}


def build_model(cfg: Config, checkpoint: str) -> torch.nn.Module:
    """The trained model, on the device at hand, ready to predict.

    Raises:
        UsageError: If it is not a checkpoint of this model.
    """
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    try:
        load_weights(model, checkpoint)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return model.to(get_device()).eval()


def build_splits(cfg: Config, fit: str, measure: Optional[str]) -> Dict[str, DataLoader]:
    """The loaders of the splits to fit and to measure on, with their images in order.

    Args:
        cfg (Config): A config.
        fit (str): ``'val'`` or ``'test'``.
        measure (str, optional): The other, or None not to measure.

    Raises:
        UsageError: If the splits share images, so that nothing would be held out.
    """
    splits = dict.fromkeys([fit] if measure is None else [fit, measure])
    loaders = {split: Runner.build_dataloader(
        dict(cfg[f'{split}_dataloader'], sampler=dict(type='DefaultSampler', shuffle=False)),
        seed=0) for split in splits}
    if measure is not None:
        files, others = (image_files(loaders[split].dataset) for split in (fit, measure))
        shared = shared_images(files, others)
        if shared:
            raise UsageError(
                f'{len(shared)} of the {len(set(files))} images of {fit} are images of {measure} '
                f'(test_dataloader is often val_dataloader), {shared[0]} among them: nothing would '
                f'be held out. --halves SEED fits on a random half of the images of {fit} and '
                'measures on the other')
    return loaders


def predict(model: torch.nn.Module, cfg: Config, split: str, loader: DataLoader,
            options: Optional[dict] = None, quiet: bool = False) -> Predicted:
    """What a model predicts on a split.

    Args:
        model (nn.Module): As :func:`build_model` returned.
        cfg (Config): Its config.
        split (str): ``'val'`` or ``'test'``.
        loader (DataLoader): One of those that :func:`build_splits` returned.
        options (dict, optional): Settings of the metric that come before those of the config.
            Defaults to None.
        quiet (bool): Show no progress bar. Defaults to False.
    """
    metric = calibration_metric(cfg, split, options)
    samples = []
    with torch.no_grad():
        for batch in track(loader, split, quiet):
            samples += [sample.cpu() for sample in model.test_step(batch)]
    gathered = metric.gather_from(loader.dataset, [sample.to_dict() for sample in samples])
    return Predicted(metric, gathered, samples, gathered.files)


def predict_apart(model: torch.nn.Module, cfg: Config, loaders: Dict[str, DataLoader],
                  halves: Optional[int] = None, options: Optional[dict] = None,
                  quiet: bool = False) -> Tuple[Predicted, Optional[Predicted]]:
    """Predictions to fit a calibrator to, and others to measure it on.

    Args:
        model (nn.Module): As :func:`build_model` returned.
        cfg (Config): Its config.
        loaders (dict[str, DataLoader]): As :func:`build_splits` returned.
        halves (int, optional): Seed with which the images of the first are split in two, one half
            to fit on and one to measure on. Defaults to None.
        options (dict, optional): As in :func:`predict`.
        quiet (bool): Show no progress bar. Defaults to False.

    Returns:
        tuple[Predicted, Predicted or None]: To fit on; to measure on, if there is anything.
    """
    fitted, *measured = (predict(model, cfg, split, loader, options, quiet)
                         for split, loader in loaders.items())
    if halves is None:
        return fitted, measured[0] if measured else None
    chosen = random_half(fitted.files, halves)
    return fitted.select(chosen), fitted.select(~chosen)
