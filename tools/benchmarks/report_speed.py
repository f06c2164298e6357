"""How long a report takes with cached predictions, on as many images and classes as COCO has.

Writes a run whose data set, checkpoint and predictions are made up, and times
tools/analysis/report.py on it: nothing is predicted, and everything is judged and drawn.
"""
import argparse
import cProfile
import json
import pstats
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from mmskd.evaluation.report.page import write_report
from mmskd.evaluation.report.predictions import (
    CACHE,
    DataSets,
    Predictions,
    collate,
    fingerprint_of,
)
from mmskd.evaluation.report.runs import Run

SIZE = (640, 480)  # pixels
CONFIG = """
default_scope = 'mmdet'
model = dict(type='RetinaNet')
randomness = dict(seed={seed})
train_cfg = dict(by_epoch=True, max_epochs=12)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', data_root={root!r}, ann_file='val.json', test_mode=True,
                 data_prefix=dict(img='images/'), metainfo=dict(classes={classes!r}), pipeline=[]))
val_evaluator = dict(type='CocoMetric', ann_file={ann_file!r})
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=5000, help='default: 5000')
    parser.add_argument('--classes', type=int, default=80, help='default: 80')
    parser.add_argument('--objects', type=int, default=7, help='an image, default: 7')
    parser.add_argument('--detections', type=int, default=100, help='an image, default: 100')
    parser.add_argument('--runs', type=int, default=1, help='default: 1')
    parser.add_argument('--profile', action='store_true', help='say what takes how long')
    return parser.parse_args()


def write_data(root: Path, args: argparse.Namespace, rng: np.random.Generator) -> Path:
    """A few images under many names, and an annotation file."""
    (root / 'images').mkdir(parents=True)
    for i in range(8):
        pixels = rng.integers(0, 255, (SIZE[1] // 16, SIZE[0] // 16, 3), np.uint8)
        Image.fromarray(pixels).resize(SIZE).save(root / 'images' / f'{i}.jpg')
    n = args.images * args.objects
    corner, sides = rng.uniform(0, .6, (n, 2)) * SIZE, rng.lognormal(4, .8, (n, 2)).clip(8, 250)
    # As in COCO, a few classes have most of the objects
    labels = np.minimum(rng.geometric(min(4 / args.classes, 0.5), n), args.classes)
    images = rng.integers(0, args.images, n)
    path = root / 'val.json'
    path.write_text(json.dumps(dict(
        images=[dict(id=i, file_name=f'{i % 8}.jpg', width=SIZE[0], height=SIZE[1])
                for i in range(args.images)],
        categories=[dict(id=c + 1, name=f'class {c}') for c in range(args.classes)],
        annotations=[
            dict(id=i + 1, image_id=int(images[i]), category_id=int(labels[i]), iscrowd=0,
                 bbox=[*corner[i].tolist(), *sides[i].tolist()], area=float(sides[i].prod()))
            for i in range(n)])))
    return path


def write_run(folder: Path, data: Path, seed: int, args: argparse.Namespace) -> Path:
    """The work dir of a training that never was, without predictions."""
    logs = folder / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    (logs / 'config.py').write_text(CONFIG.format(
        seed=seed, root=str(data.parent), ann_file=str(data),
        classes=tuple(f'class {c}' for c in range(args.classes))))
    lines = []
    for epoch in range(1, 13):
        lines += [dict(epoch=epoch, iter=100 * epoch, step=100 * epoch, loss=1 / epoch),
                  {'step': epoch, **{f'coco/bbox_mAP{end}': .4 - .3 / epoch for end in (
                      '', '_50', '_75', '_s', '_m', '_l')}}]
    (logs / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    torch.save(dict(state_dict={}, meta=dict(seed=seed)), folder / 'epoch_12.pth')
    return folder


def write_predictions(folder: Path, seed: int, args: argparse.Namespace) -> Predictions:
    """Keep made up detections where the report looks for them."""
    run, rng = Run(folder), np.random.default_rng(seed)
    cfg = Config(run.cfg.to_dict())
    dataset = DataSets().get(cfg, 'val')
    empty = dict(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32),
                 labels=np.zeros(0, np.int64))
    truth = collate('detection', [dict(empty, image_id=i) for i in range(args.images)], dataset)
    n, m = args.images * args.detections, len(truth.gt_labels)
    of = np.concatenate([np.arange(m)[:n], rng.integers(0, m, max(n - m, 0))])
    good = np.arange(n) < m
    boxes = truth.gt_boxes[of] + rng.normal(0, np.where(good, 6, 40)[:, None], (n, 4))
    order = np.argsort(truth.gt_images[of], kind='stable')
    predictions = Predictions('detection', truth.names, dict(
        truth.arrays, boxes=boxes[order].astype(np.float32), images=truth.gt_images[of][order],
        scores=np.where(good, rng.beta(4, 2, n), rng.beta(1, 8, n))[order].astype(np.float32),
        labels=np.where(good | (rng.random(n) < .3), truth.gt_labels[of],
                        rng.integers(0, args.classes, n))[order]), {'coco/bbox_mAP': .4})
    predictions.save(folder / CACHE / 'val_epoch_12.npz', fingerprint_of(
        folder / 'epoch_12.pth', cfg, 'val', dataset, str(run.started)))
    return predictions


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name) / 'data', args, np.random.default_rng(0))
        folders = [write_run(Path(name) / f'run_s{seed}', data, seed, args)
                   for seed in range(args.runs)]
        for seed, folder in enumerate(folders):
            predictions = write_predictions(folder, seed, args)
        profile = cProfile.Profile()
        start = time.perf_counter()
        if args.profile:
            profile.enable()
        path = write_report(folders, Path(name) / 'report')
        profile.disable()
        seconds = time.perf_counter() - start
        if args.profile:
            pstats.Stats(profile).sort_stats('cumtime').print_stats('mmskd', 40)
        assert 'id="reliability_0"' in path.read_text(), 'the cached predictions were not used'
        print(f'{args.runs} runs of {args.images} images, {args.classes} classes, '
              f'{len(predictions.gt_labels)} objects and {len(predictions.scores)} detections: '
              f'{seconds:.1f} s, a page of {path.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
