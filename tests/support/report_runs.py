"""Work dirs as trainings leave them, with predictions that nobody trained for."""
import json
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

import numpy as np

from mmskd.datasets import write_demo_data
from mmskd.evaluation.report.predictions import Predictions
from mmskd.evaluation.report.runs import Run

CONFIG = """
default_scope = '{scope}'
model = dict(type='{model}')
optim_wrapper = dict(optimizer=dict(lr={lr}))
randomness = dict(seed={seed})
train_cfg = dict(by_epoch=True, max_epochs={epochs})
val_dataloader = dict(dataset=dict(type='{scope}'))
val_evaluator = {evaluator}
work_dir = '{name}'
"""
SHAPES = ['circle', 'square', 'triangle', 'rhombus', 'star']


def write_run(folder: Path, seed: Optional[int] = 0, lr: float = 0.1, scope: str = 'mmdet',
              epochs: int = 12, logged: Optional[Sequence[Dict[str, float]]] = None,
              evaluator: Sequence[dict] = (), stamp: str = '20260101_000000', **more) -> Path:
    """A work dir with a config and logs.

    Args:
        folder (Path): Where.
        seed (int, optional): Defaults to 0.
        lr (float): By which groups differ. Defaults to 0.1.
        scope (str): ``'mmdet'`` or ``'mmpose'``. Defaults to ``'mmdet'``.
        epochs (int): That the config asks for. Defaults to 12.
        logged (sequence[dict], optional): Metrics of the epochs that were trained, each with its
            ``loss``. Defaults to None, for a loss in each of ``epochs``.
        evaluator (sequence[dict]): Of the config. Defaults to none.
        stamp (str): When it was started.
        more: Further settings of the config.
    """
    vis = folder / stamp / 'vis_data'
    vis.mkdir(parents=True)
    text = CONFIG.format(name=folder.name, seed=seed, lr=lr, scope=scope, epochs=epochs,
                         evaluator=list(evaluator), model=f'{scope}Model')
    (vis / 'config.py').write_text(text + ''.join(f'{k} = {v!r}\n' for k, v in more.items()))
    logged = [dict(loss=1 / e) for e in range(1, epochs + 1)] if logged is None else logged
    lines = []
    for epoch, metrics in enumerate(logged, 1):
        metrics = dict(metrics)
        lines.append(dict(epoch=epoch, iter=10 * epoch, step=10 * epoch,
                          loss=metrics.pop('loss', 1.)))
        if metrics:
            lines.append(dict(metrics, step=epoch))
    (vis / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folder


def detections(seed: int = 0, skill: float = 0.7, images: int = 4, objects: int = 40,
               names: Sequence[str] = SHAPES, paths: Sequence[str] = (), size=(160, 128),
               truth_seed: int = 0) -> Predictions:
    """Objects, the same for each ``truth_seed``, and what a detector makes of them.

    Args:
        seed (int): Of the detector.
        skill (float): From 0 to 1. Defaults to 0.7.
        images (int): Defaults to 4.
        objects (int): On all images together. Defaults to 40.
        names (sequence[str]): Classes.
        paths (sequence[str]): Of the images.
        size (tuple[int, int]): Width and height of the images.
        truth_seed (int): Of the objects. Defaults to 0.
    """
    truth, rng = np.random.default_rng(truth_seed), np.random.default_rng(seed + 1000)
    corner = truth.uniform(0, 0.7, (objects, 2)) * size
    gt_boxes = np.concatenate([corner, corner + truth.uniform(10, 45, (objects, 2))], axis=1)
    gt_images = np.sort(truth.integers(0, images, objects))
    gt_labels = truth.integers(0, len(names), objects)
    found = rng.random(objects) < 0.5 + skill / 2
    of = np.concatenate([np.flatnonzero(found), rng.integers(0, objects, 2 * objects)])
    good = np.arange(len(of)) < found.sum()
    noise = np.where(good, 6 * (1 - skill), 25)[:, None] * rng.normal(size=(len(of), 4))
    boxes = np.sort((gt_boxes[of] + noise).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    scores = np.where(good, rng.beta(5, 5 * (1 - skill) + .5, len(of)), rng.beta(1, 6, len(of)))
    mixed = rng.random(len(of)) > 0.6 + 0.4 * skill
    labels = np.where(mixed, (gt_labels[of] + 1) % len(names), gt_labels[of])
    order = np.argsort(gt_images[of], kind='stable')
    return Predictions('detection', list(names), dict(
        image_ids=np.arange(images),
        image_paths=np.array(list(paths) or [f'{i}.png' for i in range(images)]),
        boxes=boxes[order].astype(np.float32), scores=scores[order].astype(np.float32),
        labels=labels[order], images=gt_images[of][order], gt_boxes=gt_boxes, gt_labels=gt_labels,
        gt_images=gt_images, gt_ignored=np.zeros(objects, bool), gt_crowds=np.zeros(objects, bool),
        gt_areas=np.prod(gt_boxes[:, 2:] - gt_boxes[:, :2], axis=1)))


def poses(seed: int = 0, skill: float = 0.7, people: int = 12, keypoints: int = 6,
          paths: Sequence[str] = (), size=(160, 128), scale: float = 1.) -> Predictions:
    """People, and what an estimator makes of them.

    Args:
        seed (int): Of the estimator.
        skill (float): From 0 to 1. Defaults to 0.7.
        people (int): Each on an image of its own. Defaults to 12.
        keypoints (int): Of each. Defaults to 6.
        paths (sequence[str]): Of the images.
        size (tuple[int, int]): Width and height of the images.
        scale (float): Of the scores; above 1 some are no probabilities. Defaults to 1.
    """
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed + 1000)
    points = truth.uniform(0.1, 0.9, (people, keypoints, 2)) * size
    off = rng.normal(0, 1 + 12 * (1 - skill), points.shape)
    near = np.exp(-np.linalg.norm(off, axis=-1) / 12)
    return Predictions('pose', [f'keypoint_{k}' for k in range(keypoints)], dict(
        image_ids=np.arange(people), images=np.arange(people),
        image_paths=np.array([str(paths[i % len(paths)]) if len(paths) else f'{i}.png'
                              for i in range(people)]),
        gt_keypoints=points.astype(np.float32), keypoints=(points + off).astype(np.float32),
        scores=(scale * np.clip(near + rng.normal(0, .1, near.shape), 0, 1)).astype(np.float32),
        gt_visible=truth.random((people, keypoints)) < .9,
        gt_boxes=np.concatenate([points.min(1), points.max(1)], 1).astype(np.float32),
        gt_areas=np.full(people, np.nan), gt_head_sizes=np.full(people, np.nan)),
        links=[[k, k + 1] for k in range(keypoints - 1)], sigmas=[0.05] * keypoints)


def pictures(folder: Path, kind: str = 'shapes', number: int = 4) -> list:
    """Files of generated images."""
    if not folder.exists():
        write_demo_data(folder, kind=kind, train=1, val=number)
    return sorted(map(str, (folder / 'val').iterdir()))


def study(root: Path, skills: Dict[str, float], seeds: Sequence[Optional[int]], make: Callable,
          scope: str = 'mmdet', metric: str = 'coco/bbox_mAP') -> Dict[str, Predictions]:
    """Work dirs of groups that differ in their skill, and the predictions of each.

    Args:
        root (Path): Where.
        skills (dict[str, float]): Of each group, by its name.
        seeds (sequence[int or None]): A run for each.
        make (callable): Makes predictions of (seed, skill).
        scope (str): Defaults to ``'mmdet'``.
        metric (str): What is logged.
    """
    found = {}
    for number, (name, skill) in enumerate(skills.items()):
        for i, seed in enumerate(seeds):
            rng = np.random.default_rng(97 * number + i)
            steps = np.arange(1, 13)
            curve = skill * (1 - np.exp(-steps / 4)) + rng.normal(0, .01, 12)
            logged = [{'loss': float(2 / e + rng.normal(0, .02)), metric: float(value)}
                      for e, value in zip(steps, curve)]
            folder = write_run(root / f'{name}_s{i}', seed, lr=0.1 * (number + 1), scope=scope,
                               logged=logged)
            predictions = make(i, skill)
            predictions.metrics = {metric: float(curve[-1])}
            found[str(folder)] = predictions
    return found


def predict_from(found: Dict[str, Predictions], monkeypatch) -> None:
    """Let a report take predictions from here instead of from checkpoints."""
    from mmskd.evaluation.report import members

    def predictions_of(run: Run, *args) -> Predictions:
        assert members.UsageError  # what the real one raises
        return found[str(run.folder)]

    monkeypatch.setattr(members, 'predictions_of', predictions_of)
