"""What a run's checkpoint predicts on a split of its data, made once and kept beside the run.

They are kept as arrays in an npz file and read with ``allow_pickle=False``, as long as the
checkpoint, the config and the annotations are what they were made from. The ``results.pkl`` of
``tools/test.py --out`` is never read: it is a pickle, which may run anything, and does not say
which checkpoint it is of.
"""
import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
from itertools import product
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, EVALUATOR, MODELS, init_default_scope
from mmengine.runner import Runner

from mmskd.annotations import check_data
from mmskd.checkpoint import load_checkpoint_safely, load_weights
from mmskd.config import project_of
from mmskd.errors import UsageError
from mmskd.progress import track

from ..calibrated_samples import calibrate_sample
from ..calibrators import Calibrator
from ..ground_truth import label_names, objects_of, parts_of
from ..matching import Detections, Objects
from .runs import Run, metrics_of, time_of

FORMAT = 2  # of the cache; raise it when the meaning of an array changes
CACHE = 'report'  # folder inside the run's


class Predictions:
    """Predictions and ground truth of one model on one split, in plain arrays.

    N predictions and M objects on I images; for poses, P people (or animals) with K keypoints each
    and as many predictions. Coordinates are pixels of the original image. Images are in the order
    of their ids, and of the data set where these are equal, as in the files of a combined one;
    objects (people) are in an order that depends on themselves alone. So two models' are alike
    where they have seen the same data.

    Attributes:
        task (str): ``'detection'`` or ``'pose'``.
        names (list[str]): Classes, in the order of the labels, or keypoints.
        links (list[list[int]]): Pairs of keypoints that the skeleton connects; empty for detection.
        sigmas (list[float]): Deviations of the keypoints for the OKS, where the data set has them.
        metrics (dict[str, float]): What the run's own evaluators say; nan where undefined.
        failure (str): Why they say nothing; empty if they do.
        arrays (dict[str, ndarray]): ``image_ids`` and ``image_paths`` (I,), and for detection
            ``boxes`` (N, 4; x1, y1, x2, y2), ``scores`` (N,), ``labels`` (N,), ``images`` (N,;
            index into image_ids), ``gt_boxes`` (M, 4), ``gt_labels``, ``gt_ignored``,
            ``gt_crowds``, ``gt_areas`` and ``gt_images`` (M,); for pose ``keypoints`` (P, K, 2),
            ``scores`` (P, K), ``images`` (P,), ``gt_keypoints`` (P, K, 2), ``gt_visible`` (P, K),
            ``gt_boxes`` (P, 4), ``gt_areas`` and ``gt_head_sizes`` (P,; nan where the data set has
            none).
    """

    def __init__(self, task: str, names: List[str], arrays: Dict[str, np.ndarray],
                 metrics: Optional[Dict[str, float]] = None,
                 links: Sequence[Sequence[int]] = (), sigmas: Sequence[float] = ()):
        self.task = task
        self.names = names
        self.links = links
        self.sigmas = sigmas
        self.arrays = arrays
        self.metrics = metrics or {}
        self.failure = ''

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__['arrays'][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def detections(self) -> Detections:
        """Detections: Of a detector."""
        return Detections(self.boxes.astype(np.float64), self.scores.astype(np.float64),
                          self.labels, self.images)

    @property
    def objects(self) -> Objects:
        """Objects: That a detector should find."""
        return Objects(self.gt_boxes, self.gt_labels, self.gt_images, self.gt_ignored,
                       self.gt_crowds, self.gt_areas)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write to an npz file, with what it was made from."""
        meta = dict(format=FORMAT, fingerprint=fingerprint, task=self.task, names=self.names,
                    links=self.links, sigmas=self.sigmas, metrics=self.metrics,
                    failure=self.failure)
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
        predictions = cls(meta['task'], meta['names'], arrays, meta['metrics'], meta['links'],
                          meta['sigmas'])
        predictions.failure = meta['failure']
        return predictions


class DataSets:
    """Data sets that are read once, however many runs use them."""

    def __init__(self) -> None:
        self._read: Dict[str, BaseDataset] = {}

    def get(self, cfg: Config, split: str) -> BaseDataset:
        """The data set of a split.

        Raises:
            UsageError: If it is not there, or of a kind that cannot be judged.
        """
        dataset = cfg[f'{split}_dataloader'].dataset
        if dataset.get('data_mode') == 'bottomup':
            raise UsageError('bottom-up pose estimation is not supported, only top-down')
        if dataset.get('bbox_file'):
            # Keypoints of detected boxes have no ground truth to be judged by
            dataset.bbox_file = ''
        check_data(cfg, [split])
        key = repr(dataset)
        if key not in self._read:
            init_default_scope(cfg.get('default_scope') or project_of(cfg))
            with contextlib.redirect_stdout(io.StringIO()):
                self._read[key] = DATASETS.build(dataset)
                if hasattr(self._read[key], 'full_init'):
                    self._read[key].full_init()
        return self._read[key]


def predictions_of(run: Run, split: str = 'val', which: str = 'last', quiet: bool = False,
                   datasets: Optional[DataSets] = None) -> Predictions:
    """The predictions of a run's checkpoint; from the cache, if that has them.

    Args:
        run (Run): The run.
        split (str): ``'val'`` or ``'test'``. Defaults to ``'val'``.
        which (str): ``'last'`` or ``'best'`` checkpoint. Defaults to ``'last'``.
        quiet (bool): Show no progress bar. Defaults to False.
        datasets (DataSets, optional): Data sets that were read already. Defaults to None.

    Raises:
        UsageError: If there is no checkpoint, or it is an earlier training's or does not fit the
            config; if the config has no such split, or its data is not there; if something that
            is predicted is not a number.
    """
    checkpoint = run.checkpoint(which)
    if checkpoint is None:
        raise UsageError(f'{run.folder} holds no {which} checkpoint' + (
            ' of its last training' if run.trainings > 1 else ''))
    if not run.cfg.get(f'{split}_dataloader'):
        raise UsageError(f'the config of {run.folder} has no {split}_dataloader')
    cfg = Config(run.cfg.to_dict())
    dataset = (datasets or DataSets()).get(cfg, split)
    fingerprint = fingerprint_of(checkpoint, cfg, split, dataset, str(run.started))
    path = run.folder / CACHE / f'{split}_{checkpoint.stem}.npz'
    predictions = Predictions.load(path, fingerprint)
    if predictions is None:
        state = load_checkpoint_safely(str(checkpoint), map_location='cpu')
        _check_age(state, checkpoint, run)
        predictions = _predict(cfg, checkpoint, state, split, dataset, f'{run.name}, {split}',
                               quiet)
        with contextlib.suppress(OSError):  # somebody else's folder: made again next time
            predictions.save(path, fingerprint)
    check_finite(predictions)
    return predictions


def fingerprint_of(checkpoint: Path, cfg: Config, split: str, dataset: BaseDataset,
                 started: str) -> str:
    """Changes with the checkpoint, the model, the split and what its data set has read."""
    digest = hashlib.sha256(started.encode())
    _digest_file(digest, checkpoint)
    parts = [cfg.get(key) for key in ('model', 'data_preprocessor', f'{split}_dataloader',
                                      f'{split}_evaluator')]
    digest.update(repr(parts).encode())
    for part in parts_of(dataset):
        # What mmdet leaves out, as ignored objects, is in the file alone
        if os.path.isfile(getattr(part, 'ann_file', None) or ''):
            _digest_file(digest, part.ann_file)
        if getattr(part, 'serialize_data', False):
            digest.update(part.data_bytes)
        else:
            digest.update(pickle.dumps(getattr(part, 'data_list', None)))
    for path in [*annotation_files(parts[-1]), *(calibrator_files(cfg) if split == 'test' else [])]:
        if os.path.isfile(path):
            _digest_file(digest, path)
    return digest.hexdigest()


def _digest_file(digest, path) -> None:
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)


def calibrator_files(cfg: Config) -> List[str]:
    """The files of the calibrators that map a run's scores when it is tested."""
    return [hook['calibrator'] for hook in cfg.get('custom_hooks') or []
            if str(hook.get('type')).rpartition('.')[2].startswith('CalibratedScores')]


def annotation_files(node: Any) -> Iterator[str]:
    """The files that the evaluators of a config read."""
    if isinstance(node, dict):
        if isinstance(node.get('ann_file'), str):
            yield node['ann_file']
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from annotation_files(child)


def _check_age(state: dict, checkpoint: Path, run: Run) -> None:
    """Refuse what an earlier training in the same folder has left."""
    meta = state.get('meta') or {}
    saved = time_of(meta.get('time'))
    if saved and run.started and saved < run.started:
        raise UsageError(f'{checkpoint} was saved at {saved}, before the last training in this '
                         f'folder began ({run.started}): it is an earlier one\'s')
    seed = meta.get('seed')
    if run.seed is not None and seed is not None and seed != run.seed:
        raise UsageError(f'{checkpoint} is of seed {seed}, the last training in this folder of '
                         f'seed {run.seed}: it is another one\'s')


def check_finite(predictions: Predictions) -> None:
    """Refuse what cannot be judged.

    Raises:
        UsageError: If a predicted box, keypoint or score is not a number.
    """
    for key in ('boxes', 'keypoints', 'scores'):
        bad = ~np.isfinite(predictions.arrays.get(key, np.zeros(0)))
        if bad.any():
            raise UsageError(f'{bad.sum()} of the {bad.size} numbers of its predicted {key} are '
                             'not finite, as of a training that diverged')


def _predict(cfg: Config, checkpoint: Path, state: dict, split: str, dataset: BaseDataset,
             title: str, quiet: bool) -> Predictions:
    task = 'pose' if project_of(cfg) == 'mmpose' else 'detection'
    # Metrics report to the current logger; the page shows what they say
    MMLogger.get_instance('mmskd_report').setLevel(logging.WARNING)
    init_default_scope(cfg.get('default_scope') or project_of(cfg))
    # In the order of the data set, by which images are told apart
    loader_cfg = dict(cfg[f'{split}_dataloader'], dataset=dataset, drop_last=False,
                      sampler=dict(type='DefaultSampler', shuffle=False))
    loader_cfg.pop('batch_sampler', None)
    with contextlib.redirect_stdout(io.StringIO()):
        loader = Runner.build_dataloader(loader_cfg, seed=0)
        evaluator = _build_evaluator(cfg.get(f'{split}_evaluator'))
        model = _load_model(cfg, checkpoint, state)
    evaluator.dataset_meta = dataset.metainfo
    calibrators = [Calibrator.load(path) for path in calibrator_files(cfg) if split == 'test']
    records, failure = [], ''
    for batch in track(loader, title, quiet):
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            samples = model.test_step(batch)
            for calibrator, sample in product(calibrators, samples):
                calibrate_sample(sample, calibrator)
            failure = failure or _failure_of(evaluator.process, samples, batch)
        records += [describe(task, sample) for sample in samples]
    metrics: Dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        failure = failure or _failure_of(
            lambda: metrics.update(metrics_of(evaluator.evaluate(len(dataset)))))
    predictions = collate(task, records, dataset, metrics)
    predictions.failure = failure
    return predictions


def _failure_of(function: Callable, *args) -> str:
    """What an evaluator has to say where it fails: its run can be judged all the same."""
    try:
        function(*args)
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    return ''


def _build_evaluator(cfg: Any):
    if isinstance(cfg, dict) and 'metrics' in cfg:
        return EVALUATOR.build(dict(dict(type='Evaluator'), **cfg))
    return EVALUATOR.build(dict(type='Evaluator', metrics=cfg or []))


def _load_model(cfg: Config, checkpoint: Path, state: dict) -> torch.nn.Module:
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    load_weights(model, str(checkpoint), state)
    return model.to(get_device()).eval()


# ------------------------------------------------------------------ samples to arrays


def describe(task: str, sample) -> Dict[str, Any]:
    """A data sample with predictions as a small dict of arrays, for :func:`collate`.

    Args:
        task (str): ``'detection'`` or ``'pose'``.
        sample (DetDataSample or PoseDataSample): What a model predicted.
    """
    found = sample.pred_instances
    if task == 'detection':  # the objects are the data set's; the sample's may be resized
        return dict(image_id=sample.img_id, boxes=_array(found.bboxes).reshape(-1, 4),
                    scores=_array(found.scores), labels=_array(found.labels))
    truth, raw = sample.gt_instances, sample.get('raw_ann_info') or {}
    visible = _array(truth.keypoints_visible)
    people = len(visible)
    return dict(
        image_id=sample.img_id, image_path=sample.img_path,
        keypoints=_array(found.keypoints)[..., :2], scores=_array(found.keypoint_scores),
        gt_keypoints=_array(truth.keypoints)[..., :2],
        gt_visible=(visible[..., 0] if visible.ndim == 3 else visible) > 0,
        gt_boxes=_array(truth.bboxes).reshape(-1, 4),
        gt_areas=np.full(people, (raw.get('area') if isinstance(raw, dict) else 0) or np.nan),
        gt_head_sizes=_array(truth.get('head_size', np.full(people, np.nan))).reshape(-1))


def collate(task: str, records: Sequence[Dict[str, Any]], dataset: BaseDataset,
            metrics: Optional[Dict[str, float]] = None) -> Predictions:
    """All records as one.

    Args:
        task (str): ``'detection'`` or ``'pose'``.
        records (sequence[dict]): What :func:`describe` returned for each item of the data set, in
            its order.
        dataset (BaseDataset): Where they are from.
        metrics (dict, optional): What the run's evaluators say. Defaults to None.

    Raises:
        UsageError: If there is none, or they are not in the order of the data set.
    """
    if not records:
        raise UsageError('the data set is empty')
    return (_collate_poses if task == 'pose' else _collate_detections)(records, dataset, metrics)


def _collate_detections(records, dataset, metrics) -> Predictions:
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    if [record['image_id'] for record in records] != [info['img_id'] for info in infos]:
        raise UsageError('its images are not predicted in the order of the data set')
    names, objects = label_names(dataset), objects_of(dataset)
    arrays = {key: np.concatenate([record[key] for record in records])
              for key in ('boxes', 'scores', 'labels')}
    highest = int(arrays['labels'].max(initial=-1))
    if highest >= len(names):
        raise UsageError(f'it predicts label {highest}, but of its classes the annotations have '
                         f'{len(names)} only: {", ".join(names)}')
    order, place = _order_of([info['img_id'] for info in infos])
    arrays['images'] = np.repeat(place, [len(record['scores']) for record in records])
    arrays['image_ids'] = np.array([infos[i]['img_id'] for i in order])
    arrays['image_paths'] = np.array([str(infos[i]['img_path']) for i in order])
    truth = dict(gt_boxes=objects.boxes, gt_labels=objects.labels, gt_images=place[objects.images],
                 gt_ignored=objects.ignored, gt_crowds=objects.crowds, gt_areas=objects.areas)
    rows = np.lexsort((*truth['gt_boxes'].T, truth['gt_labels'], truth['gt_images']))
    arrays.update({key: values[rows] for key, values in truth.items()})
    rows = np.argsort(arrays['images'], kind='stable')
    arrays.update({key: arrays[key][rows] for key in ('boxes', 'scores', 'labels', 'images')})
    return Predictions('detection', names, arrays, metrics)


def _collate_poses(records, dataset, metrics) -> Predictions:
    # The same id may be another image's in another file of a combined data set
    keys = [(record['image_id'], str(record['image_path'])) for record in records]
    images = list(dict.fromkeys(keys))
    order, place = _order_of([image_id for image_id, _ in images])
    where = dict(zip(images, place))
    arrays = {key: np.concatenate([record[key] for record in records]) for key in records[0]
              if key not in ('image_id', 'image_path')}
    arrays['images'] = np.repeat([where[key] for key in keys],
                                 [len(record['scores']) for record in records])
    rows = np.lexsort((*arrays['gt_keypoints'].reshape(len(arrays['images']), -1).T,
                       *arrays['gt_boxes'].T, arrays['images']))
    arrays = {key: values[rows] for key, values in arrays.items()}
    arrays['image_ids'] = np.array([images[i][0] for i in order])
    arrays['image_paths'] = np.array([images[i][1] for i in order])
    meta = dataset.metainfo
    names = [meta['keypoint_id2name'][i] for i in range(meta['num_keypoints'])]
    sigmas = meta.get('sigmas')
    return Predictions('pose', names, arrays, metrics,
                       [list(map(int, link)) for link in meta.get('skeleton_links', [])],
                       [] if sigmas is None else [float(sigma) for sigma in sigmas])


def _order_of(image_ids: Sequence) -> Tuple[np.ndarray, np.ndarray]:
    """Which image comes where in the order of the ids, and where each image comes."""
    order = np.argsort(np.array(image_ids), kind='stable')
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return order, place


def _array(values: Any) -> np.ndarray:
    if not torch.is_tensor(values) and hasattr(values, 'tensor'):  # mmdet's box types
        values = values.tensor
    if torch.is_tensor(values):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
