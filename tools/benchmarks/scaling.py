"""How the cost of PS-KD moves with image size, batch, priors, model and processes.

One thing is varied at a time, from a RetinaNet-R18 on two images of 320x320 pixels (a RetinaNet-R50
on two of 800x800 on a GPU). Each point is measured as step_cost.py does it: stock and PS-KD take
turns in one process. Two processes train under DDP, over NCCL with a GPU for each, else over gloo;
the time is that of the first.

    python tools/benchmarks/scaling.py --out results/scaling.json --plot results/scaling.png
    python tools/benchmarks/scaling.py batch processes --steps 20
"""
import argparse
import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import torch
import torch.multiprocessing
from mmengine.model import MMDistributedDataParallel
from torch import distributed

sys.path.insert(0, str(Path(__file__).parent))

from step_cost import RETINANET, Setting, Work, machine, measure, measure_ready, prepare  # noqa: E402

WAYS = 'stock', 'PS-KD'
# of the neck
DEPTHS = {18: [64, 128, 256, 512], 50: [256, 512, 1024, 2048], 101: [256, 512, 1024, 2048]}


def work(size: int, depth: int, batch: int = 2, priors: int = 9) -> Work:
    """A RetinaNet; ``priors`` is how many there are at a place, a multiple of 3."""
    title = f'RetinaNet-R{depth}, {size}x{size}, batch {batch}, {priors} priors a place'
    changes = (('backbone.depth', depth), ('neck.in_channels', DEPTHS[depth]),
               ('bbox_head.anchor_generator.scales_per_octave', priors // 3))
    return Work(title, RETINANET, WAYS, (size, size), batch, changes=changes)


BASE = {'cpu': dict(size=320, depth=18), 'cuda': dict(size=800, depth=50)}
SIZES = {'cpu': (192, 320, 512), 'cuda': (320, 800, 1280)}
BATCHES = {'cpu': (1, 2, 4), 'cuda': (1, 2, 8)}


def axes(device: str) -> Dict[str, List[Tuple[Any, Work]]]:
    """The places on each axis, and what is trained there."""
    def along(name: str, values: Sequence[int]) -> List[Tuple[Any, Work]]:
        return [(value, work(**{**BASE[device], name: value})) for value in values]

    base = work(**BASE[device])
    return {'size': along('size', SIZES[device]), 'batch': along('batch', BATCHES[device]),
            'priors': along('priors', (3, 9, 18)), 'depth': along('depth', tuple(DEPTHS)),
            'processes': [(1, base), (2, base)]}


LABELS = {
    'size': 'sides of the images, pixels', 'batch': 'images in a step',
    'priors': 'priors at a place', 'depth': 'layers of the backbone', 'processes': 'processes'
}


def point(axis: str, value: Any, what: Work, args: argparse.Namespace) -> dict:
    """The ratio at one place of an axis.

    Returns:
        dict: ``value``, ``seconds`` of the stock step, ``ratio`` and ``ratio_range`` (quartiles) of
            PS-KD.
    """
    if axis == 'processes' and value > 1:
        ways = in_processes(what, value, args)
    else:
        ways = measure(what, args.steps, args.warmup, args.device)['ways']
    return dict(value=value, seconds=ways['stock']['seconds'], ratio=ways['PS-KD']['ratio'],
                ratio_range=ways['PS-KD']['ratio_range'])


def in_processes(what: Work, number: int, args: argparse.Namespace) -> dict:
    """As :func:`step_cost.measure`, in several processes that average their gradients."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, 'ways.json')
        torch.multiprocessing.spawn(
            _process, (number, port, what, args, torch.get_num_threads(), out), nprocs=number)
        return json.loads(Path(out).read_text())


def _process(rank: int, number: int, port: int, what: Work, args: argparse.Namespace, threads: int,
             out: str) -> None:
    torch.set_num_threads(max(1, threads // number))
    own_gpu = args.device == 'cuda' and torch.cuda.device_count() >= number
    if args.device == 'cuda':
        torch.cuda.set_device(rank if own_gpu else 0)
    distributed.init_process_group('nccl' if own_gpu else 'gloo', f'tcp://127.0.0.1:{port}',
                                   rank=rank, world_size=number)
    with tempfile.TemporaryDirectory() as folder:
        ready = {}
        for way in what.ways:
            losses_of, setting = prepare(what, way, args.device, folder)
            ready[way] = _averaged(losses_of, setting)
        ways = measure_ready(ready, args.steps, args.warmup, args.device)
    if rank == 0:
        Path(out).write_text(json.dumps(ways))
    distributed.destroy_process_group()


def _averaged(losses_of: Any, setting: Setting) -> tuple:
    """The model of a step in DDP, as a Runner has it."""
    devices = [torch.cuda.current_device()] if setting.batch[0].is_cuda else None
    wrapped = MMDistributedDataParallel(setting.model, device_ids=devices)
    inputs, samples = setting.batch

    def step():
        return wrapped(inputs, [sample.clone() for sample in samples], mode='loss')

    return step, setting


def plot(report: dict, path: Path) -> None:
    """A picture with one diagram for each axis."""
    from matplotlib.figure import Figure
    drawn = report['axes']
    figure = Figure(figsize=(3 * len(drawn), 3), layout='constrained')
    for place, (axis, points) in zip(figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0],
                                     drawn.items()):
        values = range(len(points))
        ratios = [each['ratio'] for each in points]
        errors = [[abs(each['ratio'] - each['ratio_range'][side])
                   for each in points]
                  for side in (0, 1)]
        place.errorbar(values, ratios, errors, marker='o', capsize=3)
        place.set_xticks(values, [str(each['value']) for each in points])
        place.set_xlabel(LABELS[axis])
        place.axhline(1, color='grey', linewidth=0.8)
    figure.axes[0].set_ylabel('PS-KD step / stock step')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('axes', nargs='*', metavar='AXIS',
                        help=f'which of {", ".join(LABELS)}; default: all')
    parser.add_argument('--steps', type=int, default=10, help='of each way, default: 10')
    parser.add_argument('--warmup', type=int, default=2, help='steps before them, default: 2')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--out', type=Path, help='write the report here, as JSON')
    parser.add_argument('--plot', type=Path, help='draw it here')
    args = parser.parse_args()
    unknown = [axis for axis in args.axes if axis not in LABELS]
    if unknown:
        parser.error(f'there is no axis {unknown[0]}; there are {", ".join(LABELS)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU here')
    return args


def main() -> None:
    args = parse_args()
    report: Dict[str, Any] = dict(machine=machine(args.device), axes={})
    places = axes(args.device)
    for axis in args.axes or places:
        points = report['axes'][axis] = []
        for value, what in places[axis]:
            points.append(point(axis, value, what, args))
            low, high = points[-1]['ratio_range']
            print(f'{axis} {value}: {points[-1]["seconds"]:.3f} s, ratio {points[-1]["ratio"]:.3f} '
                  f'({low:.3f} - {high:.3f})', flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + '\n')
    if args.plot:
        plot(report, args.plot)


if __name__ == '__main__':
    main()
