"""Train a small RetinaNet on generated shapes with and without PS-KD, and compare the two.

Prints one table of what the two runs measured, draws their detections and their curves, and writes
a report of them, whose file it names last. A run that was interrupted goes on where it stopped; one
that is complete is used as it is.
"""
import argparse
import contextlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torchvision.ops import nms

from mmskd.datasets import is_complete
from mmskd.datasets.shapes import CLASSES, PALETTE
from mmskd.ending import add_traceback, end_in_a_line
from mmskd.errors import UsageError
from mmskd.evaluation.report.page import write_report

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs' / 'demo'
RUNS = {'baseline': 'retinanet_shapes.py', 'PS-KD': 'pskd_retinanet_shapes.py'}
STYLES = {
    'baseline': dict(color='#0072B2', linestyle='--', marker='o'),
    'PS-KD': dict(color='#D55E00', linestyle='-', marker='s'),
}
# Column of the table: key in the validation log
METRICS = {
    'mAP': 'coco/bbox_mAP',
    'AP50': 'coco/bbox_mAP_50',
    'NLL': 'calibration/NLL',
    'ECE': 'calibration/ECE',
}
NUM_PICTURES = 4
SCORE_THRESHOLD = 0.3  # of the detections that are drawn
OVERLAP_THRESHOLD = 0.6  # of two boxes with more IoU than that the better one is drawn


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data-dir', type=Path, default=TOOLS.parent / 'data' / 'shapes',
                        help='generated here if it is not there; default: data/shapes')
    parser.add_argument('--work-dir', type=Path, default=TOOLS.parent / 'work_dirs' / 'demo',
                        help='for logs, checkpoints and pictures; default: work_dirs/demo')
    parser.add_argument('--fresh', action='store_true', help='delete earlier runs and start again')
    parser.add_argument('--quiet', action='store_true', help='print only the table and the paths')
    add_traceback(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    # Leave in the ordinary way when told to stop, so that the training is stopped as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('demo.py: terminated'))
    progress_console = Console(quiet=args.quiet)
    if not is_complete(args.data_dir):
        make_data(args.data_dir, args.quiet)
    runs = [Run(name, args.data_dir, args.work_dir) for name in RUNS]
    for run in runs:
        run.train(progress_console, args.fresh)
    pictures = [args.work_dir / 'detections.png', args.work_dir / 'curves.png']
    draw_detections(runs, args.data_dir, pictures[0])
    draw_curves(runs, pictures[1])
    Console().print(summary(runs))
    print('Written:')
    for path in pictures + [run.checkpoint for run in runs] + [run.output for run in runs]:
        print(f'  {os.path.relpath(path)}')
    try:
        report = write_report([run.folder for run in runs], args.work_dir / 'report',
                              quiet=args.quiet)
    except UsageError as error:
        end_in_a_line('demo.py', error, args.traceback)
    print(f'Report, to open in a browser: {os.path.relpath(report)}')


def make_data(data_dir: Path, quiet: bool):
    """Generate the shapes; stops the program where the generator refuses to."""
    command = [sys.executable, TOOLS / 'make_demo_data.py', data_dir]
    done = subprocess.run(command + ['--quiet'] * quiet)
    if done.returncode:
        sys.exit(done.returncode)


class Run:
    """One training run: its config, its folder, and what it has logged so far.

    Args:
        name (str): A key of ``RUNS``.
        data_dir (Path): The generated shapes.
        work_dir (Path): The folder of the demonstration; the run gets one inside it.
    """

    def __init__(self, name: str, data_dir: Path, work_dir: Path):
        self.name = name
        self.config = CONFIGS / RUNS[name]
        self.folder = work_dir / self.config.stem
        self.output = self.folder / 'train.log'
        self.data_options = [
            f'{part}_dataloader.dataset.data_root={data_dir}' for part in ('train', 'val', 'test')
        ] + [f'{part}_evaluator.{i}.ann_file={data_dir}/annotations/val.json'
             for part in ('val', 'test') for i in range(2)]
        config = Config.fromfile(self.config)
        images = json.loads((data_dir / 'annotations' / 'train.json').read_text())['images']
        self.iters_per_epoch = math.ceil(len(images) / config.train_dataloader.batch_size)
        self.max_epochs = config.train_cfg.max_epochs
        self.checkpoint = self.folder / f'epoch_{self.max_epochs}.pth'

    def logs(self):
        """The scalars that the run wrote, those of a resumed run over those of before.

        Returns:
            tuple: {iteration: scalars} of training, {epoch: scalars} of validation.
        """
        train, val = {}, {}
        for path in sorted(self.folder.glob('*/vis_data/scalars.json')):
            for line in path.read_text().splitlines():
                try:
                    scalars = json.loads(line)
                except ValueError:  # a line that is being written
                    continue
                (train if 'loss' in scalars else val)[scalars['step']] = scalars
        return train, val

    def is_finished(self) -> bool:
        """Whether the last checkpoint and its validation are there."""
        return self.checkpoint.is_file() and self.max_epochs in self.logs()[1]

    def train(self, console: Console, fresh: bool):
        """Train, or go on with a run that was interrupted; stops the program if that fails."""
        if fresh and self.folder.exists():
            shutil.rmtree(self.folder)
        if self.is_finished():
            console.print(f'{self.name}: complete, used as it is (--fresh trains again)')
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, TOOLS / 'train.py', self.config, '--work-dir', self.folder,
                   '--resume', 'auto-or-start', '--cfg-options', *self.data_options]
        with self.output.open('a') as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            try:
                self.follow(process, console)
            finally:
                process.terminate()
                process.wait()
        if not self.is_finished():
            tail = self.output.read_text().splitlines()[-15:]
            sys.exit('\n'.join([*tail, f'{self.name}: the training stopped with exit code '
                                f'{process.returncode}; see {os.path.relpath(self.output)}. '
                                'Call again to go on, or with --fresh to start again']))

    def follow(self, process: subprocess.Popen, console: Console):
        """Show the progress until the process ends: a bar, or plain lines without a terminal."""
        columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn(
            'iterations, {task.fields[status]}')
        total, reported = self.max_epochs * self.iters_per_epoch, None
        left = TimeLeft(total)
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(self.name, total=total, status='starting')
            while process.poll() is None:
                train, val = self.logs()
                status = left(max(train, default=0))
                if val:
                    status = f'mAP {shown(val[max(val)], "mAP")}, {status}'
                progress.update(task, completed=max(train, default=0), status=status)
                if not console.is_terminal and len(val) != reported:
                    reported = len(val)
                    console.print(f'{self.name}: epoch {max(val, default=0)} of {self.max_epochs}, '
                                  f'{status}')
                time.sleep(0.5)

    def seconds_per_epoch(self) -> float:
        """Mean training time of an epoch, validation left out."""
        train, _ = self.logs()
        return self.iters_per_epoch * float(np.mean([line['time'] for line in train.values()]))


class TimeLeft:
    """Estimates the time to the end from the pace since the first call that saw progress."""

    def __init__(self, total: int):
        self.total = total
        self.start = None

    def __call__(self, done: int) -> str:
        if done in (0, self.total):
            return 'finishing' if done else 'starting'
        now = time.monotonic()
        if self.start is None:
            self.start = now, done
        elapsed, advanced = now - self.start[0], done - self.start[1]
        if advanced == 0:
            return 'estimating the time left'
        return f'about {math.ceil(elapsed / advanced * (self.total - done))} s left'


def summary(runs) -> Table:
    """The runs' measurements on the validation images after the last epoch."""
    table = Table(title='Generated shapes, validation')
    table.add_column('run')
    columns = ['mAP', 'AP50', 's / epoch', 'NLL', 'ECE']
    for column in columns:
        table.add_column(column, justify='right')
    for run in runs:
        last = run.logs()[1][run.max_epochs]
        values = {name: shown(last, name) for name in METRICS}
        values['s / epoch'] = f'{run.seconds_per_epoch():.1f}'
        table.add_row(run.name, *(values[column] for column in columns))
    return table


def shown(scalars: dict, name: str) -> str:
    """A measured value for the table; a validation in which nothing was detected has none."""
    value = scalars.get(METRICS[name])
    return 'none' if value is None else f'{value:.3f}'


def draw_curves(runs, path: Path):
    """Draw alpha_t, the training loss and the validation mAP over the epochs."""
    figure = Figure(figsize=(12, 3.5), layout='constrained')
    axes = figure.subplots(1, 3)
    titles = ['weight of the past self', 'training loss (targets differ)', 'validation mAP']
    for axis, title, label in zip(axes, titles, [r'$\alpha_t$', 'loss', 'mAP']):
        axis.set(title=title, xlabel='epoch', ylabel=label)
    for run in runs:
        train, val = run.logs()
        steps = sorted(train)
        epochs = [step / run.iters_per_epoch for step in steps]
        style = dict(STYLES[run.name], label=run.name)
        line = dict(style, marker=None)
        axes[0].plot(epochs, [train[step].get('pskd_alpha', 0.0) for step in steps], **line)
        axes[1].plot(epochs, [train[step]['loss'] for step in steps], **line)
        axes[2].plot(sorted(val), [val[epoch].get(METRICS['mAP'], math.nan) for epoch in sorted(val)],
                     **style)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def draw_detections(runs, data_dir: Path, path: Path):
    """Draw the ground truth and each run's detections on a few validation images."""
    content = json.loads((data_dir / 'annotations' / 'val.json').read_text())
    truth = {image['id']: [] for image in content['images']}
    for item in content['annotations']:
        x, y, w, h = item['bbox']
        truth[item['image_id']].append(((x, y, x + w, y + h), item['category_id'] - 1, None))
    chosen = [image for image in content['images'] if len(truth[image['id']]) >= 3][:NUM_PICTURES]
    files = [str(data_dir / 'val' / image['file_name']) for image in chosen]
    columns = {'ground truth': [truth[image['id']] for image in chosen]}
    columns.update({run.name: detect(run, files) for run in runs})

    figure = Figure(figsize=(12, 3.3 * len(files)), layout='constrained')
    axes = figure.subplots(len(files), len(columns), squeeze=False)
    for column, (title, found) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        for axis, file, boxes in zip(axes[:, column], files, found):
            axis.imshow(Image.open(file))
            axis.axis('off')
            draw_boxes(axis, boxes)
    figure.savefig(path, dpi=100)


def detect(run: Run, files):
    """The detections of a finished run, for each file a list of (box, label, score).

    The detector may give a look-alike's label to a box as well; only its best label is kept.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it says what it loads
        model = init_detector(str(run.config), str(run.checkpoint), device='cpu')
    found = []
    for sample in inference_detector(model, files):
        instances = sample.pred_instances[sample.pred_instances.scores > SCORE_THRESHOLD]
        kept = instances[nms(instances.bboxes, instances.scores, OVERLAP_THRESHOLD)].numpy()
        found.append(list(zip(kept.bboxes, kept.labels, kept.scores)))
    return found


def draw_boxes(axis, boxes):
    """Draw (box, label, score) with the class's colour and name; a score of None is left out."""
    for (x1, y1, x2, y2), label, score in boxes:
        colour = np.array(PALETTE[label]) / 255
        name = list(CLASSES)[label].replace('_', ' ')
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, lw=2))
        axis.text(x1, max(y1 - 1, 7), name if score is None else f'{name} {score:.2f}', fontsize=8,
                  clip_on=True, bbox=dict(facecolor=colour, edgecolor='none', pad=1))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('demo.py: interrupted; call again to go on')
