"""Train on disks that are full within the first, second or third checkpoint.

The error must say so, and nothing be lost.

Each disk is a tmpfs of its own, in a mount namespace that ends with this program. When it is full
the run must end in one line that names the file, what is needed and what is free; when there is
room again, ``--resume`` must end as a run that never stopped.
"""
import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Optional

import kill
import tiny

INSIDE = 'MMSKD_INSIDE_A_MOUNT_NAMESPACE'
CASES = [
    kill.Case('pskd', 'epoch', 2),
    kill.Case('pskd_ema_best', 'iter', 2),
    kill.Case('pose_pskd', 'epoch', 2)
]
# in checkpoints; a third one, of which two are kept, is the most that is ever needed
ROOMS = (1.5, 2.5, 0.7)
CANNOT = 77  # exit code of a test that cannot be done here


def enter_namespace() -> None:
    """Go on in a namespace in which a file system may be mounted."""
    if INSIDE in os.environ:
        return
    command = ['unshare', '--mount'] + ([] if os.getuid() == 0 else ['--user', '--map-root-user'])
    possible = subprocess.run([*command, 'true'], capture_output=True).returncode == 0
    if not possible:
        print('disk: a file system cannot be mounted here')
        sys.exit(CANNOT)
    os.environ[INSIDE] = '1'
    os.execvp(command[0], [*command, sys.executable, *sys.argv])


def mount(folder: Path, size: int) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)], check=True)


def fill_and_resume(case: kill.Case, size: int, folder: Path) -> Optional[str]:
    """What went wrong on a disk of so many bytes; None if nothing did."""
    mount(folder, size)
    try:
        work_dir = folder / 'run'
        ending = tiny.run(kill.train(case, work_dir))
        if not re.search(
                rf'^train.py: no room for \S*{re.escape(str(work_dir))}\S*: '
                '.*MB are free. Make room',
                ending.last_line) or 'Traceback' in ending.output:
            return f'it ended with {ending.code}: {ending.last_line}'
        if ending.code != 1:
            return f'its exit code was {ending.code}'
        subprocess.run(['mount', '-o', f'remount,size={20 * size}', str(folder)], check=True)
        ending = tiny.run(kill.train(case, work_dir, '--resume', 'auto-or-start'))
        if ending.code:
            return f'resumed, it ended with {ending.code}: {ending.last_line}'
        first, second = kill.last_state(Path(case.name)), kill.last_state(work_dir)
        different = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        return f'{len(different)} entries differ, as {different[0]}' if different else None
    finally:
        subprocess.run(['umount', str(folder)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tiny.add_arguments(parser)
    args = parser.parse_args()
    enter_namespace()
    failures, trials = tiny.Failures(), 0
    with tiny.working_folder(args.folder):
        kill.write_configs()
        for case in CASES:
            kill.train_whole(case)
            size = max(path.stat().st_size for path in Path(case.name).glob('*.pth'))
            for room in ROOMS:
                if args.count and trials >= args.count:
                    break
                trials += 1
                problem = fill_and_resume(case, int(room * size), Path(f'disk-{case.name}-{room}'))
                if problem:
                    failures.append(f'{case.name} with room for {room} checkpoints: {problem}')
    tiny.finish('disk', args,
                {'disks': trials, 'named, and exact when resumed': trials - len(failures)},
                failures)


if __name__ == '__main__':
    main()
