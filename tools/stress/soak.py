"""Train for thousands of iterations with PS-KD: memory, open files and threads must not grow.

A hundred times the past self is refreshed, and twenty times a checkpoint is saved and the model
validated. After a quarter of the run, what is measured may not grow any more.
"""
import argparse
import gc
import os
import threading
from pathlib import Path
from typing import Dict, List

import tiny

CONFIG = """
_base_ = 'detector.py'
custom_imports = dict(imports=['soak'])
train_dataloader = dict(
    batch_size=2, sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={length}, val_interval={often})
param_scheduler = [dict(type='ConstantLR', factor=0.01)]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval={often}, by_epoch=False))
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type='mmskd.PSKDHook', interval={refresh}), dict(type='EMAHook'),
                dict(type='Measure', interval={measure})]
"""
MEGABYTES = 40  # of growth; an iteration that leaked its predictions would add hundreds
KILOBYTE = 1024


def measure() -> Dict[str, int]:
    """What this process holds."""
    gc.collect()
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return dict(megabytes=pages * os.sysconf('SC_PAGE_SIZE') // KILOBYTE**2,
                files=len(os.listdir('/proc/self/fd')), threads=threading.active_count(),
                objects=len(gc.get_objects()))


def register() -> None:
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    @HOOKS.register_module(force=True)
    class Measure(Hook):
        """Writes down what the process holds."""

        priority = 'LOWEST'

        def __init__(self, interval: int):
            self.interval = interval

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if (runner.iter + 1) % self.interval == 0:
                with open('measured.txt', 'a') as file:
                    file.write(' '.join(f'{key}={value}' for key, value in measure().items())
                               + '\n')


def read_measured() -> List[Dict[str, int]]:
    return [{key: int(value) for key, value in (pair.split('=') for pair in line.split())}
            for line in Path('measured.txt').read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tiny.add_arguments(parser)
    args = parser.parse_args()
    length = args.count or 2000
    failures = tiny.Failures()
    with tiny.working_folder(args.folder):
        Path('soak_config.py').write_text(CONFIG.format(
            length=length, often=max(1, length // 20), refresh=max(1, length // 100),
            measure=max(1, length // 40)))
        Path('measured.txt').unlink(missing_ok=True)
        ending = tiny.run(tiny.tool('train.py', 'soak_config.py', '--work-dir', 'soaked'),
                          seconds=7200)
        if ending.code:
            failures.append(f'it ended with {ending.code}: {ending.last_line}')
        measured = read_measured()
        saved = len(list(Path('soaked').glob('*.pth')))
    settled = measured[len(measured) // 4:]
    growth = {key: settled[-1][key] - settled[0][key] for key in settled[0]}
    if growth['megabytes'] > MEGABYTES:
        failures.append(f'memory grew by {growth["megabytes"]} MB: '
                        f'{[each["megabytes"] for each in measured]}')
    for key in ('files', 'threads'):
        if growth[key] > 0:
            failures.append(f'{growth[key]} more {key}')
    # an iteration that leaked an object would add its number
    if growth['objects'] > 500 + length // 2:
        failures.append(f'{growth["objects"]} more objects')
    if saved != 1:
        failures.append(f'{saved} checkpoints are left of max_keep_ckpts=1')
    tiny.finish(
        'soak', args, {
            'iterations': length, 'MB more': growth['megabytes'], 'files more': growth['files'],
            'threads more': growth['threads']
        }, failures)


if __name__ == '__main__':
    main()
else:
    register()
