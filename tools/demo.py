"""Teach a small pose estimator in three ways, over several seeds, and say which way helps.

On 800 generated stick figures, ten of which have labels: from these labels alone; from no labels,
but from what a larger model sees in all figures (DWPose's logit loss); and from the ten labels with
PS-KD (its own past self teaches). The larger model is trained first, with all labels, in the place
of one that somebody has published. Each run is one of tools/train.py, and as many of them run side
by side as there are cores.

Prints what each way comes to, with 95 % intervals over the seeds, draws the same figures as each
way sees them, and writes a report whose file it names last. A run that was interrupted goes on
where it stopped; one that is complete is used as it is.
"""
import argparse
import functools
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from mmskd.datasets import is_complete
from mmskd.ending import add_traceback, end_in_a_line
from mmskd.errors import UsageError
from mmskd.evaluation.report import pictures
from mmskd.evaluation.report.page import write_report
from mmskd.evaluation.report.predictions import predictions_of
from mmskd.evaluation.report.runs import Run as Logs
from mmskd.evaluation.report.statistics import Interval, mean_interval, paired_difference
from mmskd.optional import HAS_MMPOSE

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs' / 'demo'
TEACHER = CONFIGS / 'simcc_figures_teacher.py'
ARMS = {
    'baseline': CONFIGS / 'simcc_figures_few.py',
    'DWPose': CONFIGS / 'simcc_figures_unlabelled.py',
    'PS-KD': CONFIGS / 'simcc_figures_few.py'
}
BASELINE = next(iter(ARMS))
# Column of the table: key in the validation log, and whether more is better
METRICS = {'PCK': ('PCK', True), 'AUC': ('AUC', True), 'EPE': ('EPE', False)}
NUM_PICTURES = 4
NEWS_SECONDS = 15  # between two lines about the progress where there is no terminal


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', type=Path, default=TOOLS.parent / 'data' / 'figures',
                        help='generated here if it is not there; default: data/figures')
    parser.add_argument('--work-dir', type=Path, default=TOOLS.parent / 'work_dirs' / 'demo',
                        help='for logs, checkpoints and pictures; default: work_dirs/demo')
    parser.add_argument('--seed', type=int, default=0, help='the first seed; default: 0')
    parser.add_argument('--seeds', type=int, default=3, help='how many; default: 3')
    parser.add_argument('--jobs', type=int, default=min(os.cpu_count() or 1, 8),
                        help='trainings side by side, each on one thread; default: one a core')
    parser.add_argument('--fresh', action='store_true', help='delete earlier runs and start again')
    parser.add_argument('--quiet', action='store_true', help='print only the table and the paths')
    add_traceback(parser)
    args = parser.parse_args()
    if args.seeds < 1 or args.jobs < 1:
        parser.error('--seeds and --jobs: at least 1')
    return args


def main() -> None:
    """Train, compare, draw."""
    args = parse_args()
    # Leave in the ordinary way when told to stop, so that the trainings are stopped as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('demo.py: terminated'))
    if not HAS_MMPOSE:
        end_in_a_line('demo.py', UsageError('mmpose is not installed, whose models this teaches'),
                      args.traceback)
    if not is_complete(args.data_dir):
        make_data(args.data_dir, args.quiet)
    teacher = Run('teacher', args.seed, args)
    runs = [Run(arm, seed, args, teacher) for seed in range(args.seed, args.seed + args.seeds)
            for arm in ARMS]
    seconds = train([teacher, *runs], args.jobs, Console(quiet=args.quiet, highlight=False),
                    args.fresh)
    results = collect(teacher, runs, seconds)
    (args.work_dir / 'demo.json').write_text(json.dumps(results, indent=1) + '\n')
    console = Console()
    console.print(summary(results))
    for line in verdicts(results):
        console.print(line, highlight=False)
    picture = args.work_dir / 'figures.png'
    try:
        draw_figures([run for run in runs if run.seed == args.seed], picture)
        report = write_report([run.folder for run in runs], args.work_dir / 'report',
                              quiet=args.quiet)
    except UsageError as error:
        end_in_a_line('demo.py', error, args.traceback)
    print('Written:')
    for path in [picture, args.work_dir / 'demo.json', *(run.folder for run in runs)]:
        print(f'  {os.path.relpath(path)}')
    print(f'Report, to open in a browser: {os.path.relpath(report)}')


def make_data(data_dir: Path, quiet: bool) -> None:
    """Generate the figures; stops the program where the generator refuses to."""
    command = [sys.executable, TOOLS / 'make_demo_data.py', data_dir, '--kind', 'stick-figures']
    done = subprocess.run(command + ['--quiet'] * quiet)
    if done.returncode:
        sys.exit(done.returncode)


@functools.lru_cache
def read(config: Path) -> Config:
    """A config, which several runs have."""
    return Config.fromfile(config)


def figures_in(dataset: dict, data_dir: Path) -> int:
    """How many figures an epoch has."""
    if dataset['type'] == 'RepeatDataset':
        return dataset['times'] * figures_in(dataset['dataset'], data_dir)
    if dataset.get('indices'):
        return len(dataset['indices'])
    return len(json.loads((data_dir / 'annotations' / 'train.json').read_text())['annotations'])


class Run:
    """One training: its folder, the flags that it is started with, and what it has logged so far.

    Args:
        arm (str): One of ``ARMS``, or ``'teacher'``.
        seed (int): Its ``randomness.seed``.
        args (argparse.Namespace): Where its data and its folder are.
        teacher (Run, optional): The run whose checkpoint teaches it. Defaults to None.
    """

    def __init__(self, arm: str, seed: int, args: argparse.Namespace,
                 teacher: Optional['Run'] = None):
        self.arm, self.seed = arm, seed
        self.config = ARMS.get(arm, TEACHER)
        self.teacher = teacher if arm == 'DWPose' else None
        self.folder = args.work_dir / f'{arm}_s{seed}'
        self.output = self.folder / 'train.log'
        config = read(self.config)
        repeated = config.train_dataloader.dataset.type == 'RepeatDataset'
        self.options = [
            f'randomness.seed={seed}',
            *(f'{part}.data_root={args.data_dir}'
              for part in (f'train_dataloader.dataset{".dataset" * repeated}',
                           'val_dataloader.dataset', 'test_dataloader.dataset'))
        ]
        self.max_epochs = config.train_cfg.max_epochs
        self.iterations = self.max_epochs * math.ceil(
            figures_in(config.train_dataloader.dataset, args.data_dir) /
            config.train_dataloader.batch_size)
        self.checkpoint = self.folder / f'epoch_{self.max_epochs}.pth'
        self.process: Optional[subprocess.Popen] = None

    def command(self) -> List[str]:
        """How it is started: a stock config, and a flag for the method."""
        method = {'PS-KD': ['--pskd'], 'DWPose': ['--distill-from', TEACHER, self.teacher and
                                                  self.teacher.checkpoint]}.get(self.arm, [])
        return [str(part) for part in (
            sys.executable, TOOLS / 'train.py', self.config, *method, '--work-dir', self.folder,
            '--resume', 'auto-or-start', '--cfg-options', *self.options)]

    def start(self) -> None:
        """Train in a process of its own, on one thread."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.output.open('a') as output:
            self.process = subprocess.Popen(
                self.command(), stdout=output, stderr=subprocess.STDOUT,
                env=dict(os.environ, OMP_NUM_THREADS='1'))

    def stop(self) -> None:
        """End its process, if it has one."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def logs(self) -> tuple:
        """{iteration: scalars} of training, {epoch: scalars} of validation."""
        train: Dict[int, dict] = {}
        val: Dict[int, dict] = {}
        for path in sorted(self.folder.glob('*/vis_data/scalars.json')):
            for line in path.read_text().splitlines():
                try:
                    scalars = json.loads(line)
                except ValueError:  # a line that is being written
                    continue
                (train if 'loss' in scalars else val)[scalars['step']] = scalars
        return train, val

    def done(self) -> int:
        """How many iterations it has logged."""
        return max(self.logs()[0], default=0)

    def is_finished(self) -> bool:
        """Whether the last checkpoint and its validation are there."""
        return self.checkpoint.is_file() and self.max_epochs in self.logs()[1]

    def check(self) -> None:
        """Stop the program if the process ended before the training did."""
        if not self.is_finished():
            tail = self.output.read_text().splitlines()[-15:]
            sys.exit('\n'.join([*tail, f'{self.folder.name}: the training stopped with exit code '
                                f'{self.process.returncode}; see {os.path.relpath(self.output)}. '
                                'Call again to go on, or with --fresh to start again']))


def train(runs: List[Run], jobs: int, console: Console, fresh: bool) -> float:
    """Train what is not complete, as many at a time as there are jobs, and show how far it is.

    Returns:
        float: Seconds that it took, 0 if all were complete.
    """
    for run in runs:
        if fresh and run.folder.exists():
            shutil.rmtree(run.folder)
    waiting = [run for run in runs if not run.is_finished()]
    if len(waiting) < len(runs):
        console.print(
            f'{len(runs) - len(waiting)} of {len(runs)} runs are complete and used as they are '
            '(--fresh trains again)')
    if not waiting:
        return 0.
    started, all_of_them, running = time.monotonic(), list(waiting), []
    progress = Follow(all_of_them, console)
    try:
        with progress:
            while waiting or running:
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    run.check()
                ready = [run for run in waiting if run.teacher is None or run.teacher.is_finished()]
                for run in ready[:jobs - len(running)]:
                    waiting.remove(run)
                    running.append(run)
                    run.start()
                progress.show(running)
                time.sleep(0.5)
    finally:
        for run in running:
            run.stop()
    return time.monotonic() - started


class Follow:
    """Shows the progress of all runs together: a bar, or plain lines without a terminal."""

    def __init__(self, runs: List[Run], console: Console):
        self.runs, self.console = runs, console
        self.left = TimeLeft(sum(run.iterations for run in runs))
        self.bar = Progress(
            TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[status]}'),
            console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task('training', total=self.left.total, status='starting')
        self.said = -math.inf

    def __enter__(self) -> 'Follow':
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show(self, running: List[Run]) -> None:
        """Say how far it is; without a terminal every now and then."""
        if not self.console.is_terminal and time.monotonic() - self.said < NEWS_SECONDS:
            return
        self.said = time.monotonic()
        done = sum(run.done() for run in self.runs)
        finished = sum(run.is_finished() for run in self.runs)
        status = f'{finished} of {len(self.runs)} runs done, {self.left(done)}'
        names = ', '.join(run.folder.name for run in running)
        self.bar.update(self.task, completed=done, status=f'{status} ({names})')
        if not self.console.is_terminal:
            self.console.print(f'{status}; training {names or "nothing"}', soft_wrap=True)


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


def collect(teacher: Run, runs: List[Run], seconds: float) -> dict:
    """What the runs measured after their last epochs, and where."""
    arms: Dict[str, dict] = {arm: {} for arm in ARMS}
    for run in runs:
        arms[run.arm][str(run.seed)] = measured(run)
    machine = dict(processor=platform.machine(), cores=os.cpu_count(),
                   python=platform.python_version(), torch=torch.__version__)
    return dict(seeds=sorted({run.seed for run in runs}), metrics=list(METRICS), arms=arms,
                teacher=measured(teacher), seconds=round(seconds, 1), machine=machine)


def measured(run: Run) -> Dict[str, float]:
    """The columns of the table for one run."""
    last = run.logs()[1][run.max_epochs]
    return {name: last[key] for name, (key, _) in METRICS.items()}


def compared(results: dict, arm: str, metric: str) -> Interval:
    """The mean difference of an arm to the first one, pair by pair of the same seed."""
    mine, theirs = ({seed: run[metric] for seed, run in results['arms'][name].items()}
                    for name in (arm, BASELINE))
    return paired_difference(mine, theirs)


def summary(results: dict) -> Table:
    """Means with 95 % intervals over the seeds."""
    seeds = results['seeds']
    table = Table(
        title=f'Generated stick figures, validation, {len(seeds)} seeds from {seeds[0]} on')
    table.add_column('run')
    for metric in METRICS:
        table.add_column(metric, justify='right')
    for arm, found in results['arms'].items():
        table.add_row(arm, *(shown(mean_interval([run[metric] for run in found.values()]))
                             for metric in METRICS))
    table.add_row('(teacher)', *(f'{results["teacher"][metric]:.3f}' for metric in METRICS))
    return table


def shown(interval: Interval) -> str:
    """``0.612 ± 0.020``; one value has no interval."""
    return f'{interval.mean:.3f}' + (f' ± {interval.margin:.3f}' if interval.n > 1 else '')


def verdicts(results: dict) -> List[str]:
    """A line for each arm and metric: better, worse, or no difference that the seeds could show."""
    lines = []
    for arm in ARMS:
        if arm == BASELINE:
            continue
        parts = []
        for metric, (_, more_is_better) in METRICS.items():
            found = compared(results, arm, metric)
            word = 'no clear difference' if found.n > 1 else 'one seed'
            if found.excludes_zero:
                word = 'better' if (found.mean > 0) == more_is_better else 'worse'
            parts.append(f'{metric} {found.mean:+.3f}' +
                         (f' ± {found.margin:.3f}' if found.n > 1 else '') + f' ({word})')
        lines.append(f'{arm} against the baseline: {", ".join(parts)}')
    return lines


def draw_figures(runs: List[Run], path: Path) -> None:
    """Draw the same validation images as the labels have them and as each arm sees them."""
    predictions = {run.arm: predictions_of(Logs(run.folder), quiet=True) for run in runs}
    first = next(iter(predictions.values()))
    crowded = np.argsort(-np.bincount(first.images, minlength=len(first.image_ids)), kind='stable')
    images = [int(image) for image in crowded[:NUM_PICTURES]]
    columns = {'labels': first.gt_keypoints}
    columns.update({arm: each.keypoints for arm, each in predictions.items()})
    figure = Figure(figsize=(3.1 * len(columns), 2.6 * len(images)), layout='constrained')
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for line, image in zip(axes, images):
        pixels = pictures.load_image(first.image_paths[image])
        for axis, keypoints in zip(line, columns.values()):
            axis.imshow(pixels)
            axis.axis('off')
            for person in np.flatnonzero(first.images == image):
                draw_figure(axis, keypoints[person], first.links)
    for axis, title in zip(axes[0], columns):
        axis.set_title(title)
    figure.savefig(path, dpi=100)


def draw_figure(axis, points: np.ndarray, links) -> None:
    """Draw limbs and joints."""
    for link in links:
        for colour, width in (('white', 3.2), ('#0072B2', 1.6)):
            axis.plot(*points[list(link)].T, color=colour, linewidth=width, solid_capstyle='round')
    axis.scatter(*points.T, s=9, color='#D55E00', edgecolors='white', linewidths=0.5, zorder=3)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('demo.py: interrupted; call again to go on')
