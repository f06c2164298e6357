"""Kill trainings by SIGKILL and resume them.

They must end as one that was not interrupted, bit by bit.

Methods: none, PS-KD, PS-KD with averaged weights and save_best, distillation with trained
projections, the second stage, USKD, and PS-KD for poses; loops by epoch and by iteration;
``max_keep_ckpts`` 1 and 2. Each is killed within a step, within a validation, while a checkpoint is
written (half written, flushed, renamed, before the old one is deleted), and between a refresh of
the past self and the next checkpoint. Compared are the last checkpoints, all of them but times and
paths, and the files that are left.
"""
import argparse
import itertools
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

import tiny

METHODS = {
    'baseline': ('detector.py', ''),
    'pskd': ('detector.py', "custom_hooks = [dict(type='mmskd.PSKDHook')]"),
    'pskd_ema_best': ('detector.py',
                      "custom_hooks = [dict(type='mmskd.PSKDHook'), dict(type='EMAHook', "
                      'momentum=0.2)]'),
    'distill': ('detector.py',
                "custom_hooks = [dict(type='mmskd.DistillHook', teacher=dict(config='teacher.py', "
                "checkpoint='teacher/epoch_1.pth'), losses=[dict(type='mmskd.ClassDistillLoss'), "
                "dict(type='mmskd.FeatureDistillLoss')])]"),
    'head_distill': ('detector.py', "custom_hooks = [dict(type='mmskd.HeadDistillHook', "
                     "checkpoint='trained/epoch_1.pth')]"),
    'uskd': ('classifier.py',
             "custom_hooks = [dict(type='mmskd.USKDHook', layer='middle', channels=8, "
             "num_classes=5, loss_module='criterion')]"),
    'pose_pskd': ('pose.py', "custom_hooks = [dict(type='mmskd.PSKDHook')]"),
}
TEACHER = ("_base_ = 'detector.py'\n"
           'model = dict(neck=dict(out_channels=16), bbox_head=dict(in_channels=16))')
MOMENTS = dict(step='within a step', validation='within a validation',
               write='while a checkpoint is written', refresh='after a refresh')
LOOPS = {'epoch': '', 'iter': tiny.BY_ITERATION}
TIMES = ('time', 'data_time', 'eta')


class Kill(NamedTuple):
    """When a process is killed: at the ``number``-th event of a kind."""
    moment: str
    number: int


class Case(NamedTuple):
    """One training: its method, its kind of loop, and how many checkpoints it keeps."""
    method: str
    loop: str
    keep: int

    @property
    def name(self) -> str:
        return f'{self.method}-{self.loop}-{self.keep}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tiny.add_arguments(parser)
    args = parser.parse_args()
    with tiny.working_folder(args.folder):
        for config, folder in write_configs():
            ending = tiny.run(tiny.tool('train.py', config, '--work-dir', folder,
                                        '--cfg-options', 'train_cfg.max_epochs=1'))
            assert ending.code == 0, ending.output
        failures, killed, lost, moments = tiny.Failures(), 0, 0, Counter()
        wholes: Dict[Case, Dict[str, int]] = {}
        for index, (case, moment, draw) in enumerate(
                trials(random.Random(args.seed), args.count or 140)):
            if case not in wholes:
                wholes[case] = train_whole(case)
            events = wholes[case].get(moment, 0)
            kill = Kill(moment, 1 + int(draw * events))
            problem = kill_and_resume(case, kill, Path(f'killed-{index}'))
            killed += 1
            moments[MOMENTS[moment]] += 1
            lost += problem is not None and 'lost' in problem
            if problem:
                failures.append(
                    f'{case.name}, killed at {kill.moment} {kill.number} of {events}: {problem}')
            shutil.rmtree(f'killed-{index}', ignore_errors=True)
            counts = {'kills': killed, 'modes': len(wholes), **dict(sorted(moments.items())),
                      'bit-equal': killed - len(failures), 'lost': lost}
            tiny.write_down('kill', args, counts, failures)
    tiny.finish('kill', args, counts, failures)


def write_configs() -> List[tuple]:
    """The configs of all cases; returns those of the teachers and where they are trained."""
    Path('teacher.py').write_text(TEACHER)
    for (method, (base, text)), (loop, loop_text), keep in itertools.product(
            METHODS.items(), LOOPS.items(), (1, 2)):
        Path(f'{Case(method, loop, keep).name}.py').write_text(
            '\n'.join([f"_base_ = '{base}'", loop_text, text]))
    return [('teacher.py', 'teacher'), ('detector.py', 'trained')]


def moments_of(case: Case) -> List[str]:
    found = ['step', 'write']
    if case.method != 'uskd':
        found.append('validation')
    if 'pskd' in case.method:
        found.append('refresh')
    return found


def trials(rng: random.Random, count: int) -> Iterator[tuple]:
    """Cases, moments, and where within the moment.

    Every combination once before any comes again.
    """
    cases = [Case(*each) for each in itertools.product(METHODS, LOOPS, (1, 2))]
    every = [(case, moment) for case in cases for moment in moments_of(case)]
    while count > 0:
        rng.shuffle(every)
        for case, moment in every[:count]:
            yield case, moment, rng.random()
        count -= len(every)


def train(case: Case, folder: Path, *argv: Any) -> Callable[[], None]:
    best = ['default_hooks.checkpoint.save_best=auto'] if case.method.endswith('best') else []
    return tiny.tool('train.py', f'{case.name}.py', '--work-dir', folder, *argv, '--cfg-options',
                     f'default_hooks.checkpoint.max_keep_ckpts={case.keep}', *best)


def train_whole(case: Case) -> Dict[str, int]:
    """Train without a kill; returns how many events of each kind there were."""
    counts = Path(f'{case.name}.counts')
    shutil.rmtree(case.name, ignore_errors=True)

    def call() -> None:
        watch = Watch(None)
        watch.install()
        train(case, Path(case.name))()
        counts.write_text(' '.join(f'{key}={value}' for key, value in watch.seen.items()))

    ending = tiny.run(call)
    assert ending.code == 0, ending.output
    return {
        key: int(value) for key, value in (pair.split('=') for pair in counts.read_text().split())
    }


def kill_and_resume(case: Case, kill: Kill, folder: Path) -> Optional[str]:
    """What went wrong; None if nothing did."""
    shutil.rmtree(folder, ignore_errors=True)

    def call() -> None:
        Watch(kill).install()
        train(case, folder)()

    ending = tiny.run(call)
    if ending.code != -signal.SIGKILL:
        return f'it was not killed, but ended with {ending.code}: {ending.last_line}'
    had = any(folder.glob('*.pth'))
    ending = tiny.run(train(case, folder, '--resume', 'auto-or-start'))
    if ending.code != 0:
        return f'{"lost" if had else "failed"}: {ending.last_line}'
    if had and 'the training starts' in ending.output:
        return 'lost: there was a checkpoint, and it begins anew'
    expected, found = Path(case.name), folder
    if files(expected) != files(found):
        return f'the files are {files(found)}, not {files(expected)}'
    first, second = last_state(expected), last_state(found)
    different = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return f'{len(different)} entries differ, as {different[0]}' if different else None


def files(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py')


def last_state(folder: Path) -> Dict[str, Any]:
    """All that is in the last checkpoint of a run, by the way to it; without times and paths."""
    from mmskd.checkpoint import last_checkpoint, load_checkpoint_safely
    checkpoint = load_checkpoint_safely(last_checkpoint(str(folder)))
    for key in ('cfg', 'time', 'experiment_name'):
        checkpoint['meta'].pop(key, None)
    return dict(leaves(checkpoint, '', str(folder)))


def leaves(node: Any, key: str, folder: str) -> Iterator[tuple]:
    from mmengine.logging import HistoryBuffer
    from torch import Tensor
    if isinstance(node, HistoryBuffer):
        node = {'history': node.data[0].tolist(), 'counts': node.data[1].tolist()}
    if isinstance(node, dict):
        node = node.items()
    elif isinstance(node, (list, tuple)):
        node = enumerate(node)
    elif isinstance(node, Tensor):
        yield key, (str(node.dtype), tuple(node.shape), node.contiguous().numpy().tobytes())
        return
    else:
        yield key, node.replace(folder, '') if isinstance(node, str) else repr(node)
        return
    for name, child in node:
        if str(name).rpartition('/')[2] not in TIMES and name not in ('cfg', 'experiment_name'):
            yield from leaves(child, f'{key}.{name}', folder)


class Watch:
    """Counts the events of each kind in this process, and kills it at one of them."""

    def __init__(self, kill: Optional[Kill]):
        self.kill, self.seen = kill, {}

    def event(self, moment: str) -> None:
        self.seen[moment] = self.seen.get(moment, 0) + 1
        if self.kill == Kill(moment, self.seen[moment]):
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        from mmengine.optim import OptimWrapper
        from mmengine.runner import loops

        from mmskd.checkpoint import saving
        from mmskd.models.teachers import PastSelf
        # Within a step: before the forward pass, before and after the update
        for loop in (loops.EpochBasedTrainLoop, loops.IterBasedTrainLoop):
            self.around(loop, 'run_iter', 'step', before=True)
        self.around(OptimWrapper, 'step', 'step', before=True, after=True)
        self.around(loops.ValLoop, 'run_iter', 'validation', before=True, after=True)
        self.around(PastSelf, 'refresh', 'refresh', after=True)
        for name in ('replace', 'fsync', 'remove'):
            self.around(saving.os, name, 'write', before=True, after=True)
        saving.open = self.half_written

    def around(self, owner: Any, name: str, moment: str, before: bool = False,
               after: bool = False) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if before:
                self.event(moment)
            result = original(*args, **kwargs)
            if after:
                self.event(moment)
            return result

        setattr(owner, name, call)

    def half_written(self, path: Any, mode: str = 'r', **kwargs: Any) -> Any:
        """Open a file whose bytes are written in two parts."""
        file = open(path, mode, **kwargs)
        if 'w' not in mode:
            return file
        watch = self

        class Halves:

            def __enter__(self) -> 'Halves':
                return self

            def __exit__(self, *error: Any) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                file.write(data[:len(data) // 2])
                file.flush()
                watch.event('write')
                file.write(data[len(data) // 2:])

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return Halves()


if __name__ == '__main__':
    main()
