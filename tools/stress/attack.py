"""Give crafted files to every door of mmskd that reads one: nothing in them may run.

Doors: everything that reads a checkpoint or a results file, on the command line and in a config;
and the shell scripts, with paths and options that a shell could execute. What a file would run if
it could is to leave a mark.
"""
import argparse
import builtins
import itertools
import os
import pickle
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import tiny

MARK = 'a_mark_of_what_ran'
SHELL = f'touch {MARK}'


class Calls:
    """Is pickled as a call, and as what a pickle may do with the result of one."""

    def __init__(self, function: Callable, *args: Any, state: Any = None, items: Any = ()):
        self.call = function, args, state, None, iter(items)

    def __reduce__(self) -> tuple:
        return self.call


def payloads() -> Dict[str, Callable[[], Any]]:
    """What is put into a checkpoint, by name."""
    import numpy as np
    import torch
    from mmengine.config import Config
    from mmengine.logging import HistoryBuffer
    from mmengine.optim import OneCycleParamScheduler
    reconstruct = np.zeros(0).__reduce__()[0]
    statement = f'open("{MARK}", "w")'
    return {
        'system': lambda: Calls(os.system, SHELL),
        'popen': lambda: Calls(subprocess.Popen, ['touch', MARK]),
        'eval': lambda: Calls(eval, statement),
        'exec': lambda: Calls(builtins.exec, statement),
        'import': lambda: Calls(__import__, 'antigravity'),
        'config': lambda: Calls(Config.fromstring, statement, '.py'),
        'apply': lambda: Calls(map, os.system, [SHELL]),
        'getattr of globals': lambda: Calls(getattr, HistoryBuffer.mean, '__globals__'),
        'getattr of init': lambda: Calls(getattr, HistoryBuffer, '__init__'),
        'getattr of a scheduler': lambda: Calls(getattr, OneCycleParamScheduler, '__init__'),
        'statistics': lambda: Calls(
            HistoryBuffer, state=dict(max_length=1, statistics_methods=dict(mean=os.system))),
        'history that is called': lambda: Calls(HistoryBuffer, [os.system], [1]),
        'objects in an array': lambda: np.array([Calls(os.system, SHELL)], dtype=object),
        'memory': lambda: Calls(np.ndarray, (1, ), np.dtype('O'), b'A' * 8),
        'filled array': lambda: Calls(reconstruct, np.ndarray,
                                      (0, ), b'b', state=(1, (1, ), 'O', False, b'A' * 8)),
        'module': lambda: torch.nn.Linear(1, 1),
        'storage': lambda: Calls(torch.load, 'inner.pth'),
        'tensor that is called': lambda: Calls(torch.Tensor.apply_, torch.zeros(1),
                                               Calls(os.system, SHELL)),
        'path': lambda: Path('x'),
        'scheduler': lambda: Calls(OneCycleParamScheduler),
    }


def write_checkpoint(path: str, content: Any, zipped: bool) -> None:
    """A checkpoint that looks like one, with something in it."""
    import torch

    from mmskd.checkpoint import load_checkpoint_safely
    checkpoint = load_checkpoint_safely('trained.pth')
    if content is None:  # what a resumed run would execute, if it were asked
        checkpoint['meta']['config'] = f'x = 1\nopen("{MARK}", "w")'
    else:
        checkpoint = dict(crafted=content, **checkpoint)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)


def write_program(path: str) -> None:
    """A TorchScript program in the place of a checkpoint."""
    import torch
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)


CHECKPOINT_DOORS = {
    '--resume': ('train.py', ['detector.py', '--resume', 'c.pth']),
    '--resume of a folder': ('train.py', ['detector.py', '--resume', '--work-dir', 'attacked']),
    'load_from': ('train.py', ['detector.py', '--cfg-options', 'load_from=c.pth']),
    '--distill-from': ('train.py', ['detector.py', '--distill-from', 'detector.py', 'c.pth']),
    '--head-distill': ('train.py', ['detector.py', '--head-distill', 'c.pth']),
    'Pretrained': ('train.py', ['pretrained.py']),
    'test.py': ('test.py', ['detector.py', 'c.pth']),
    'publish_model.py': ('publish_model.py', ['c.pth', 'published.pth']),
    'convert_dwpose_checkpoint.py': ('convert_dwpose_checkpoint.py', ['c.pth', 'converted.pth']),
    'calibrate.py': ('analysis/calibrate.py', ['detector.py', 'c.pth', '--out', 'calibrator.json']),
    'calibration_study.py': ('analysis/calibration_study.py', [
        '--run', 'detector.py', 'c.pth', '--out', 'study.json', '--fit', 'val', '--halves', '0'
    ]),
    'report.py': ('analysis/report.py', ['attacked']),
}
RESULTS_DOORS = {
    'eval_calibration.py': ('analysis/eval_calibration.py', ['results.pkl', 'detector.py']),
}
PRETRAINED = (
    "_base_ = 'detector.py'\nmodel = dict(backbone=dict(init_cfg=dict(_delete_=True, "
    "type='Pretrained', checkpoint='c.pth')))")
WORDS = [
    f'$({SHELL})', f'`{SHELL}`', f'a; {SHELL} #', f'"; {SHELL}; "', f"'; {SHELL}; '",
    f'a && {SHELL}', f'a | {SHELL}', f'> {MARK}', 'a b', '*'
]
SCRIPTS = ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
FAKE = '#!/bin/bash\nprintf "%s\\n" "$@" > arguments.txt\n'


def through_a_door(tool: str, argv: list) -> Optional[str]:
    """What went wrong when a tool was given a crafted file."""
    for folder in ('attacked', 'work_dirs'):
        shutil.rmtree(folder, ignore_errors=True)
    if 'attacked' in argv:  # a run whose checkpoint is the crafted file
        shutil.copytree('made', 'attacked')
        shutil.copy('c.pth', 'attacked/epoch_1.pth')
    ending = tiny.run(tiny.tool(tool, *argv))
    if Path(MARK).exists():
        Path(MARK).unlink()
        return 'it ran'
    return f'it crashed: {ending.last_line}' if ending.code < 0 else None


def through_a_script(script: str, word: str, place: str) -> Optional[str]:
    """What went wrong when a script was given words that a shell could execute."""
    for name in ('fake-python', 'srun'):
        Path(name).write_text(FAKE)
        Path(name).chmod(0o755)
    environment = dict(os.environ, PYTHON=str(Path('fake-python').resolve()),
                       PATH=f'{Path.cwd()}{os.pathsep}{os.environ["PATH"]}')
    argv = ['part', 'job', 'config.py', 'folder'
            ] if script.startswith('slurm') else ['config.py', '2', '2']
    if place == 'SRUN_ARGS':
        environment['SRUN_ARGS'] = word
    elif place == 'option':
        argv.append(word)
    else:
        argv[argv.index('config.py')] = word
    Path('arguments.txt').unlink(missing_ok=True)
    subprocess.run(['bash', str(tiny.TOOLS / script), *argv], env=environment, capture_output=True)
    if Path(MARK).exists():
        Path(MARK).unlink()
        return 'it ran'
    given = Path('arguments.txt').read_text().split('\n') if Path('arguments.txt').exists() else []
    if place != 'SRUN_ARGS':
        return None if word in given else 'the word was changed'
    return None if all(part in given for part in word.split()) else 'the words were changed'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tiny.add_arguments(parser)
    args = parser.parse_args()
    with tiny.working_folder(args.folder):
        ending = tiny.run(
            tiny.tool('train.py', 'detector.py', '--work-dir', 'made', '--cfg-options',
                      'train_cfg.max_epochs=1'))
        assert ending.code == 0, ending.output
        os.replace('made/epoch_1.pth', 'trained.pth')
        Path('pretrained.py').write_text(PRETRAINED)
        known = payloads()
        attacks = [(door, name, zipped) for door in CHECKPOINT_DOORS for name in known
                   for zipped in (True, False)]
        attacks += [(door, name, True) for door in CHECKPOINT_DOORS
                    for name in ('meta.config', 'program')]
        attacks += [(door, name, True) for door in RESULTS_DOORS for name in known]
        attacks += [(script, word, place) for script, word, place in itertools.product(
            SCRIPTS, WORDS, ('config', 'option', 'SRUN_ARGS'))
            if place != 'SRUN_ARGS' or script.startswith('slurm')]
        if args.count:
            attacks = random.Random(args.seed).sample(attacks, args.count)
        failures = tiny.Failures()
        for door, name, how in attacks:
            if door in SCRIPTS:
                problem = through_a_script(door, name, how)
            elif door in RESULTS_DOORS:
                content = [dict(pred_instances=dict(x=known[name]()))]
                Path('results.pkl').write_bytes(pickle.dumps(content))
                problem = through_a_door(*RESULTS_DOORS[door])
            else:
                if name == 'program':
                    write_program('c.pth')
                else:
                    write_checkpoint('c.pth', None if name == 'meta.config' else known[name](), how)
                problem = through_a_door(*CHECKPOINT_DOORS[door])
            if problem:
                failures.append(f'{door} with {name} ({how}): {problem}')
        doors = len({door for door, _, _ in attacks})
    ran = sum('it ran' in failure for failure in failures)
    tiny.finish('attack', args, dict(attacks=len(attacks), doors=doors, ran=ran), failures)


if __name__ == '__main__':
    main()
