"""What a run's checkpoint predicts on a split of its data, made once and kept beside the run.

They are kept as arrays in an npz file and read with ``allow_pickle=False``. The ``results.pkl`` of
``tools/test.py --out`` is never read: it is a pickle, which may run anything, and does not say
which checkpoint it is of.
"""
import contextlib
import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import EVALUATOR, MODELS, init_default_scope
from mmengine.runner import Runner

from mmskd.config import project_of
from mmskd.checkpoint import load_checkpoint_safely
from mmskd.config import check_data
from mmskd.errors import UsageError
from mmskd.progress import track

from .runs import Run

FORMAT = 1  # of the cache; raise it when the meaning of an array changes
CACHE = 'report'  # folder inside the run's


class Predictions:
    """Predictions and ground truth of one model on one split, in plain arrays.

    N predictions and M objects on I images; for poses, P people (or animals) with K keypoints each
    and as many predictions. Coordinates are pixels of the original image.

    Attributes:
        task (str): ``'detection'`` or ``'pose'``.
        names (list[str]): Classes or keypoints.
        links (list[list[int]]): Pairs of keypoints that the skeleton connects; empty for detection.
        metrics (dict[str, float]): What the run's own evaluators say.
        arrays (dict[str, ndarray]): ``image_ids`` and ``image_paths`` (I,), and for detection
            ``boxes`` (N, 4; x1, y1, x2, y2), ``scores`` (N,), ``labels`` (N,), ``images`` (N,;
            index into image_ids), ``gt_boxes`` (M, 4), ``gt_labels``, ``gt_ignored`` and
            ``gt_images`` (M,); for pose ``keypoints`` (P, K, 2), ``scores`` (P, K), ``images``
            (P,), ``gt_keypoints`` (P, K, 2), ``gt_visible`` (P, K) and ``gt_boxes`` (P, 4).
    """

    def __init__(self, task: str, names: List[str], links: List[List[int]],
                 arrays: Dict[str, np.ndarray], metrics: Optional[Dict[str, float]] = None):
        self.task = task
        self.names = names
        self.links = links
        self.arrays = arrays
        self.metrics = metrics or {}

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__['arrays'][name]
        except KeyError:
            raise AttributeError(name) from None

    def save(self, path: Path, fingerprint: str) -> None:
        """Write to an npz file, with what it was made from."""
        meta = dict(format=FORMAT, fingerprint=fingerprint, task=self.task, names=self.names,
                    links=self.links, metrics=self.metrics)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix('.partial.npz')  # an interrupted write leaves the old file
        np.savez_compressed(partial, meta=np.array(json.dumps(meta)), **self.arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Optional['Predictions']:
        """Read what :meth:`save` wrote; None if there is nothing, or it is of something else."""
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            meta = json.loads(str(arrays.pop('meta')))
        except Exception:  # damaged: as if it were not there
            return None
        if (meta.get('format'), meta.get('fingerprint')) != (FORMAT, fingerprint):
            return None
        return cls(meta['task'], meta['names'], meta['links'], arrays, meta['metrics'])


def predictions_of(run: Run, split: str = 'val', which: str = 'last',
                   quiet: bool = False) -> Predictions:
    """The predictions of a run's checkpoint; from the cache, if that has them.

    Args:
        run (Run): The run.
        split (str): ``'val'`` or ``'test'``. Defaults to ``'val'``.
        which (str): ``'last'`` or ``'best'`` checkpoint. Defaults to ``'last'``.
        quiet (bool): Show no progress bar. Defaults to False.

    Raises:
        UsageError: If there is no checkpoint, the config has no such split, its data is not there,
            or the checkpoint does not fit the config.
    """
    checkpoint = run.checkpoint(which)
    if checkpoint is None:
        raise UsageError(f'{run.folder} holds no {which} checkpoint')
    if not run.cfg.get(f'{split}_dataloader'):
        raise UsageError(f'the config of {run.folder} has no {split}_dataloader')
    fingerprint = _fingerprint(checkpoint, run.cfg, split)
    path = run.folder / CACHE / f'{split}_{checkpoint.stem}.npz'
    predictions = Predictions.load(path, fingerprint)
    if predictions is None:
        predictions = _predict(run.cfg, checkpoint, split, f'{run.name}, {split}', quiet)
        with contextlib.suppress(OSError):  # somebody else's folder: made again next time
            predictions.save(path, fingerprint)
    return predictions


def _fingerprint(checkpoint: Path, cfg: Config, split: str) -> str:
    """Changes with the checkpoint, the model and the split."""
    digest = hashlib.sha256()
    with open(checkpoint, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    parts = [cfg.get(key) for key in ('model', 'data_preprocessor', f'{split}_dataloader',
                                      f'{split}_evaluator')]
    digest.update(repr(parts).encode())
    return digest.hexdigest()


def _predict(cfg: Config, checkpoint: Path, split: str, title: str, quiet: bool) -> Predictions:
    cfg = Config(cfg.to_dict())
    task = 'pose' if project_of(cfg) == 'mmpose' else 'detection'
    loader_cfg = cfg[f'{split}_dataloader']
    _check_dataset(loader_cfg.dataset)
    check_data(cfg, [split])
    # Metrics report to the current logger; the page shows what they say
    MMLogger.get_instance('mmskd_report').setLevel(logging.WARNING)
    init_default_scope(cfg.get('default_scope') or project_of(cfg))
    with contextlib.redirect_stdout(io.StringIO()):
        loader = Runner.build_dataloader(loader_cfg, seed=0)
        evaluator = _build_evaluator(cfg.get(f'{split}_evaluator'))
        model = _load_model(cfg, checkpoint)
    dataset = loader.dataset
    evaluator.dataset_meta = dataset.metainfo
    describe = describer(task, dataset)
    records = []
    for batch in track(loader, title, quiet):
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            samples = model.test_step(batch)
            evaluator.process(data_samples=samples, data_batch=batch)
        records += map(describe, samples)
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = evaluator.evaluate(len(dataset))
    metrics = {key: float(value) for key, value in metrics.items()
               if isinstance(value, (int, float, np.number))}
    return collate(task, records, dataset.metainfo, metrics)


def _check_dataset(dataset: Config) -> None:
    if dataset.get('data_mode') == 'bottomup':
        raise UsageError('bottom-up pose estimation is not supported, only top-down')
    if dataset.get('bbox_file'):
        # Keypoints of detected boxes have no ground truth to be judged by
        dataset.bbox_file = ''


def _build_evaluator(cfg: Any):
    if isinstance(cfg, dict) and 'metrics' in cfg:
        return EVALUATOR.build(dict(dict(type='Evaluator'), **cfg))
    return EVALUATOR.build(dict(type='Evaluator', metrics=cfg or []))


def _load_model(cfg: Config, checkpoint: Path) -> torch.nn.Module:
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    state = load_checkpoint_safely(str(checkpoint), map_location='cpu')
    try:
        model.load_state_dict(state.get('state_dict', state))
    except RuntimeError as error:
        raise UsageError(f'{checkpoint} does not fit the config of its run: {error}') from error
    return model.to(get_device()).eval()


# ------------------------------------------------------------------ samples to arrays


def describer(task: str, dataset: BaseDataset):
    """What turns a data sample with predictions into a small dict of arrays.

    Args:
        task (str): ``'detection'`` or ``'pose'``.
        dataset (BaseDataset): Where the samples are from.

    Returns:
        callable: For :func:`collate`.
    """
    if task == 'pose':
        return _describe_pose
    # From the data set: a sample's own boxes may be those of the resized image
    infos = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        infos[info['img_id']] = [info['img_path'], info.get('instances', [])]
    return lambda sample: _describe_detections(sample, *infos[sample.img_id])


def _describe_detections(sample, path: str, objects: List[dict]) -> Dict[str, Any]:
    found = sample.pred_instances
    return dict(
        image_id=sample.img_id, image_path=path,
        boxes=_array(found.bboxes).reshape(-1, 4), scores=_array(found.scores),
        labels=_array(found.labels),
        gt_boxes=np.array([obj['bbox'] for obj in objects], np.float32).reshape(-1, 4),
        gt_labels=np.array([obj['bbox_label'] for obj in objects], np.int64),
        gt_ignored=np.array([obj.get('ignore_flag', 0) for obj in objects], bool))


def _describe_pose(sample) -> Dict[str, Any]:
    found, truth = sample.pred_instances, sample.gt_instances
    visible = _array(truth.keypoints_visible)
    return dict(
        image_id=sample.img_id, image_path=sample.img_path,
        keypoints=_array(found.keypoints)[..., :2], scores=_array(found.keypoint_scores),
        gt_keypoints=_array(truth.keypoints)[..., :2],
        gt_visible=(visible[..., 0] if visible.ndim == 3 else visible) > 0,
        gt_boxes=_array(truth.bboxes).reshape(-1, 4))


def collate(task: str, records: Iterable[Dict[str, Any]], metainfo: dict,
            metrics: Optional[Dict[str, float]] = None) -> Predictions:
    """All records as one.

    Args:
        task (str): ``'detection'`` or ``'pose'``.
        records (iterable[dict]): From what :func:`describer` returned.
        metainfo (dict): The data set's.
        metrics (dict, optional): What the run's evaluators say. Defaults to None.

    Raises:
        UsageError: If there is none.
    """
    records = list(records)
    if not records:
        raise UsageError('the data set is empty')
    paths = {record['image_id']: record['image_path'] for record in records}
    position = {image_id: i for i, image_id in enumerate(paths)}
    where = np.array([position[record['image_id']] for record in records], np.int64)
    arrays = {key: np.concatenate([record[key] for record in records]) for key in records[0]
              if key not in ('image_id', 'image_path')}
    arrays['image_ids'] = np.array(list(paths))
    arrays['image_paths'] = np.array([str(path) for path in paths.values()])
    arrays['images'] = np.repeat(where, [len(record['scores']) for record in records])
    if task == 'pose':
        names = [metainfo['keypoint_id2name'][i] for i in range(metainfo['num_keypoints'])]
        links = [list(map(int, link)) for link in metainfo.get('skeleton_links', [])]
        return Predictions(task, names, links, arrays, metrics)
    arrays['gt_images'] = np.repeat(where, [len(record['gt_labels']) for record in records])
    return Predictions(task, list(metainfo['classes']), [], arrays, metrics)


def _array(values: Any) -> np.ndarray:
    if not torch.is_tensor(values) and hasattr(values, 'tensor'):  # mmdet's box types
        values = values.tensor
    if torch.is_tensor(values):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
