"""What a training step costs: stock, with PS-KD, with PS-KD in bfloat16, and in head distillation.

Times forward, backward and nothing else, on random images; the variants take turns, so that a busy
machine slows all of them.
"""
import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from typing import Callable, Dict, Optional

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from rich.console import Console
from rich.table import Table

from mmskd.config import load_config
from mmskd.engine.hooks import HeadDistillHook, PSKDHook
from mmskd.models.head_distill import heads_to_distill


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a detector, as a file or as mmdet::...')
    parser.add_argument('--size', type=int, default=320, help='side of the images, default: 320')
    parser.add_argument('--batch', type=int, default=2, help='images a step, default: 2')
    parser.add_argument('--steps', type=int, default=10, help='steps a variant, default: 10')
    return parser.parse_args()


def random_batch(images: int, size: int, device: str):
    """Noise with five boxes an image."""
    samples = []
    for _ in range(images):
        corner = torch.rand(5, 2) * size / 2
        sample = DetDataSample(metainfo=dict(
            img_shape=(size, size), batch_input_shape=(size, size), ori_shape=(size, size),
            pad_shape=(size, size), scale_factor=(1., 1.), img_id=0))
        sample.gt_instances = InstanceData(bboxes=torch.cat([corner, corner + size / 4], 1),
                                           labels=torch.zeros(5, dtype=torch.long))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample.to(device))
    return torch.randn(images, 3, size, size, device=device), samples


def pskd(model, **options) -> Hook:
    """Attach a past self, as in the middle of a training."""
    hook = PSKDHook(**options)
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    return hook


def head_distillation(model, checkpoint: str) -> Hook:
    """Freeze all but the heads, and let trained ones teach them."""
    hook = HeadDistillHook(checkpoint)
    hook.attach(model)
    return hook


def variants(model, folder: str) -> Dict[str, Optional[Callable]]:
    """What attaches a hook to the model, by the name of what it does."""
    found = {'stock': None, 'PS-KD': pskd, 'PS-KD, bfloat16': partial(pskd, precision='bfloat16')}
    try:
        heads_to_distill(model)
    except ValueError as error:
        print(error)
    else:
        checkpoint = os.path.join(folder, 'model.pth')
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        found['head distillation'] = partial(head_distillation, checkpoint=checkpoint)
    return found


def step_seconds(model, batch, attach) -> float:
    """One forward and backward pass; what attaching costs is not counted."""
    hook = attach(model) if attach else None
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    model.train().zero_grad()
    synchronize()
    start = time.perf_counter()
    try:
        losses = model(*batch, mode='loss')
        loss, _ = model.parse_losses(losses)
        loss.backward()
        synchronize()
    finally:
        if hook:
            hook.detach()
    return time.perf_counter() - start


def main() -> None:
    args = parse_args()
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = MODELS.build(load_config(args.config).model).to(get_device()).train()
    batch = random_batch(args.batch, args.size, get_device())
    with tempfile.TemporaryDirectory() as folder:
        attach = variants(model, folder)
        seconds = {}
        for name in attach:  # the first steps allocate
            try:
                for _ in range(2):
                    step_seconds(model, batch, attach[name])
            except NotImplementedError as error:  # some of mmcv's operators know no half precision
                print(f'{name} is left out: {error}')
            else:
                seconds[name] = []
        for _ in range(args.steps):
            for name in seconds:
                seconds[name].append(step_seconds(model, batch, attach[name]))
    table = Table(title=f'{args.config}, {args.batch} images of {args.size}x{args.size}, '
                  f'{get_device()}, {torch.get_num_threads()} threads, median of {args.steps}')
    for column in ('', 'ms a step', 'against stock'):
        table.add_column(column, justify='left' if not column else 'right')
    stock = statistics.median(seconds['stock'])
    for name, values in seconds.items():
        median = statistics.median(values)
        table.add_row(name, f'{median * 1e3:.0f}', f'{median / stock - 1:+.1%}')
    Console().print(table)


if __name__ == '__main__':
    main()
