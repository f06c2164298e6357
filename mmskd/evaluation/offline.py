"""What the tools that measure calibration have in common."""
from typing import Any, Dict, Optional, Sequence

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS
from rich.table import Table

from mmskd.config import CALIBRATION_METRICS, metrics_of, project_of, type_name
from mmskd.registry import METRICS

from .measures import COUNTS, MEASURES, OWN_THR
from .metrics.samples import check_repeats


def calibration_metric(cfg: Config, split: str, options: Optional[dict] = None) -> BaseMetric:
    """The calibration metric for a model.

    Args:
        cfg (Config): A config of MMDetection or MMPose. If its evaluator has the metric, that
            metric's settings hold; if not, the defaults, with the ``ann_file`` of the evaluator's
            other metrics.
        split (str): ``'val'`` or ``'test'``, whose evaluator to look at.
        options (dict, optional): Settings that come first. Defaults to None.

    Raises:
        ValueError: If an option is not the metric's, or has a wrong value.
    """
    name = CALIBRATION_METRICS[project_of(cfg)]
    metrics = metrics_of(cfg.get(f'{split}_evaluator'))
    settings = next((dict(metric) for metric in metrics if type_name(metric) == name), None)
    if settings is None:
        files = [metric['ann_file'] for metric in metrics if metric.get('ann_file')]
        settings = dict(ann_file=files[0]) if files and name == 'DetCalibrationMetric' else {}
    try:
        return METRICS.build(dict(settings, **{**(options or {}), 'type': f'mmskd.{name}'}))
    except TypeError as error:
        raise ValueError(str(error)) from error


def check_poses(results: Sequence[Any]) -> None:
    """Look for a pose of the same image and annotation twice, in what a results file holds.

    It changes no mean, but two tests in one file are no test. While a model is tested the same may
    come from two data sets of the same images.

    Raises:
        UsageError: If there is one.
    """
    instances = [sample for sample in results if isinstance(sample, dict) and
                 isinstance(sample.get('id'), (int, np.integer))]
    check_repeats([f'{sample.get("img_path") or sample.get("img_id")} (instance {sample["id"]})'
                   for sample in instances], 'PoseCalibrationMetric')


def dataset_meta(dataset: dict) -> dict:
    """Class names, or keypoint names and sigmas, of a data set of which no file need be there."""
    return DATASETS.build(dict(dataset, lazy_init=True)).metainfo


def metrics_table(columns: Dict[str, Dict[str, float]]) -> Table:
    """A table with a row for each metric, and the given columns of values by their headings."""
    table = Table('')
    for heading in columns:
        table.add_column(heading, justify='right')
    for key in next(iter(columns.values())):
        name = key.rpartition('/')[2]
        name = name[:-len(OWN_THR)] if name.endswith(OWN_THR) else name
        digits = 0 if name in COUNTS else 4
        table.add_row(key, *(f'{values[key]:.{digits}f}' for values in columns.values()))
    return table


def incomparable(values: Dict[str, float], task: str) -> str:
    """Which of the values do not compare models, in a line; empty if all do.

    Args:
        values (dict[str, float]): As a calibration metric returned them.
        task (str): ``'detection'`` or ``'pose'``.
    """
    names = [key.rpartition('/')[2] for key in values]
    averages = [name for name in names if name in MEASURES[task] and MEASURES[task][name].better
                and not MEASURES[task][name].comparable]
    lines = []
    if averages:
        lines.append(f'{", ".join(averages)}: averages over what is emitted, which do not compare '
                     'models')
    if any(name.endswith(OWN_THR) for name in names):
        lines.append(f'{OWN_THR}: at thresholds that were found on these very images; thresholds='
                     'FILE takes them from what tools/analysis/calibrate.py wrote')
    return '\n'.join(lines)
