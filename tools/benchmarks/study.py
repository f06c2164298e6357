"""Train every combination of config, method and seed of a study, and keep what was measured.

    python tools/benchmarks/study.py tools/benchmarks/studies/detectors.yaml --jobs 2
    python tools/benchmarks/study_report.py results/studies/detectors.json

One json file grows as the runs end. Started again, the study leaves alone what is done, goes on
with what was interrupted, and trains what is missing. A run that failed or diverged stands in the
file as such. tools/benchmarks/studies/README.md says what a study may hold.
"""
import argparse
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mmskd.ending import add_traceback, end_in_a_line
from mmskd.environment import find_version
from mmskd.errors import UsageError
from mmskd.evaluation.report.runs import Run as Logs

sys.path.insert(0, str(Path(__file__).parent))

from study_definition import ROOT, TOOLS, Checkpoints, Key, Study, one_thread  # noqa: E402

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes from one study there
    fcntl = None

PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmpose', 'numpy', 'timm')
POLL_SECONDS = 0.5
STATUS_SECONDS = 300  # between two lines about the progress where there is no terminal
GRACE_SECONDS = 20    # for a training that was told to stop


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('study', type=Path, help='yaml file that names configs, methods and seeds')
    parser.add_argument('--jobs', type=int, default=1,
                        help='trainings side by side, each on one thread; default: 1')
    parser.add_argument('--work-dir', type=Path,
                        help='for logs and checkpoints, default: work_dirs/studies/<study>')
    parser.add_argument('--out', type=Path,
                        help='json file that grows, default: results/studies/<study>.json')
    parser.add_argument('--retry', action='store_true', help='train failed and diverged runs again')
    parser.add_argument('--redo', action='store_true',
                        help='train runs again whose config, method or data has changed since')
    parser.add_argument('--list', action='store_true', help='say what is done and what is to do')
    add_traceback(parser)
    return parser.parse_args()


class Results:
    """The json file of a study, written anew after each run.

    Args:
        path (Path): The file; read if it is there.
        study (Study): Whose it is.

    Raises:
        UsageError: If the file is there and is of no study, or of another.
    """

    def __init__(self, path: Path, study: Study):
        self.path = path
        self.content = dict(study=study.name, definition=study.definition, environments=[], runs=[])
        if path.is_file():
            try:
                found = json.loads(path.read_text())
                name, _ = found['study'], found['definition'].get('average_last')
                [_key(run) for run in found['runs']]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(f'{path} does not hold the results of a study') from error
            if name != study.name:
                raise UsageError(f'{path} holds the results of the study {name}, not of '
                                 f'{study.name}: name another file with --out')
            averaged = found['definition'].get('average_last', 1)
            if found['runs'] and averaged != study.average_last:
                raise UsageError(f'{path} holds means of the last {averaged} validations, and '
                                 f'average_last is {study.average_last}: name another file with '
                                 '--out')
            self.content.update(found, definition=study.definition)

    def __getitem__(self, key: Key) -> Optional[dict]:
        return next((run for run in self.content['runs'] if _key(run) == key), None)

    def add(self, run: dict) -> None:
        """Put a run in the place of what stood there for it, and write the file."""
        environment = run.pop('environment')
        known = self.content['environments']
        if environment not in known:
            known.append(environment)
        run['environment'] = known.index(environment)
        runs = [other for other in self.content['runs'] if _key(other) != _key(run)] + [run]
        self.content['runs'] = sorted(runs, key=_key)
        write_json(self.content, self.path)


def _key(run: dict) -> Key:
    return Key(run['config'], run['method'], run['seed'])


def write_json(content: Any, path: Path) -> None:
    """Write a file such that it is whole whenever it is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False)
    temporary = path.with_name(f'.{path.name}.tmp')
    with temporary.open('w') as file:
        file.write(text + '\n')
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Job:
    """A run that is being trained, and then tested where the study asks for that.

    Args:
        study (Study): Whose it is.
        key (Key): Which run.
        work_dir (Path): Folder of the study.
        lock (int, optional): File descriptor for the processes to hold until they end.
        trained (dict, optional): What is known of a run that only lacks its test.
    """

    def __init__(self, study: Study, key: Key, work_dir: Path, lock: Optional[int] = None,
                 trained: Optional[dict] = None):
        self.study = study
        self.key = key
        self.folder = work_dir / str(key)
        self.lock = lock
        self.trained = trained
        self.process: Optional[subprocess.Popen] = None
        self.phase = 'train'
        method = study.method(key, Checkpoints(key, work_dir))
        self.cfg = study.config(key, method)
        self.flags = method['flags']
        self.fingerprint = study.fingerprint(key)
        self.source = git_state()
        self._config_file = self.folder / 'study' / f'{key.config}.py'
        self._spent_file = self.folder / 'study' / 'spent.json'

    def start(self) -> None:
        """Begin to train, or go on where an earlier start was interrupted."""
        if self.trained:
            self._launch_test()
            return
        self._config_file.parent.mkdir(parents=True, exist_ok=True)
        fingerprint_file(self.folder).write_text(self.fingerprint)
        self.cfg.dump(self._config_file)
        resume = ['--resume'] if (self.folder / 'last_checkpoint').is_file() else []
        self._launch('train.py', '--work-dir', str(self.folder), *resume, *self.flags)

    def _launch_test(self) -> None:
        self.phase = 'test'
        self._launch('test.py', str(Logs(self.folder).checkpoint()),
                     '--work-dir', str(self.folder / 'test'))

    def _launch(self, tool: str, *arguments: str) -> None:
        self._spend(starts=1)
        self._started = time.monotonic()
        with open(self.folder / f'{self.phase}.log', 'a') as log:
            self.process = subprocess.Popen(
                [sys.executable, str(TOOLS / tool), str(self._config_file), *arguments],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=one_thread(),
                pass_fds=[] if self.lock is None else [self.lock], start_new_session=True)

    def _spent(self) -> dict:
        if self._spent_file.is_file():
            return json.loads(self._spent_file.read_text())
        return dict(starts=0, ends=0, seconds=0., cpu_seconds=0.)

    def _spend(self, **more: float) -> None:
        """Add to what the training has taken over all its starts; the test is not counted."""
        if self.phase == 'train':
            spent = self._spent()
            write_json({key: value + more.get(key, 0) for key, value in spent.items()},
                       self._spent_file)

    def poll(self) -> bool:
        """Whether the run is over; goes from training to test."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            return False
        self._note_end(status, usage)
        if self.phase == 'train' and self.process.returncode == 0 and self.study.tests(self.key) \
                and self.verdict()[0] == 'done':
            self._launch_test()
            return False
        return True

    def _note_end(self, status: int, usage: Any) -> None:
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self._spend(ends=1, seconds=time.monotonic() - self._started,
                    cpu_seconds=usage.ru_utime + usage.ru_stime)

    def stop(self) -> None:
        """End the process; the run can go on from its last checkpoint."""
        if self.process.returncode is not None:
            return
        self.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        pid = 0
        while pid == 0:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid == 0:
                if time.monotonic() > deadline:
                    self.process.kill()
                time.sleep(0.1)
        self._note_end(status, usage)

    def verdict(self) -> Tuple[str, str]:
        """``'done'``, ``'failed'`` or ``'diverged'``, and the reason."""
        log = self.folder / f'{self.phase}.log'
        ended = f'exit code {self.process.returncode}: {last_line(log)}'
        try:
            logs = Logs(self.folder)
        except UsageError:
            return 'failed', ended
        wrong = [step for step, line in sorted(logs.train.items())
                 if not math.isfinite(line.get('loss', 0.))]
        if wrong:
            return 'diverged', f'the loss is no number from iteration {wrong[0]} on'
        if self.process.returncode != 0:
            return 'failed', ended
        length, last = run_length(logs.cfg), max(logs.val, default=None)
        if last is None or last != length and not logs.stops_itself:
            return 'failed', f'{length} was not validated, the last is {last}'
        return 'done', ''

    def record(self) -> dict:
        """What the json file is to hold of a run that is over."""
        status, reason = self.verdict()
        spent = self._spent()
        complete = spent['starts'] == spent['ends']  # else a part of it was killed
        # With the runs whose checkpoints it starts from by name: where they lie is this machine's
        flags = self.study.method(self.key, Checkpoints(self.key))['flags']
        run = dict(
            config=self.key.config, method=self.key.method, seed=self.key.seed, status=status,
            reason=reason, flags=shlex.join(flags), config_hash=self.fingerprint,
            **self.source, finished=datetime.now(timezone.utc).isoformat(timespec='seconds'),
            starts=spent['starts'],
            seconds=round(spent['seconds'], 2) if complete else None,
            cpu_seconds=round(spent['cpu_seconds'], 2) if complete else None,
            environment=environment())
        if self.trained:  # the commit, machine and time are those of the training
            run = dict(self.trained, status=status, reason=reason)
        if status == 'done':
            logs, primary = Logs(self.folder), self.study.metrics[0]
            tests = self.study.tests(self.key)
            tested = self._test_metrics() if tests else {}
            run['metrics'] = {
                name: dict(summary(logs.val, name, self.study.average_last),
                           **({'test': number(tested.get(name))} if tests else {}))
                for name in self.study.metrics}
            run['curve'] = [[step, number(line.get(primary))]
                            for step, line in sorted(logs.val.items())]
            if run['metrics'][primary]['last'] is None:
                run.update(status='failed', reason=f'the last validation gave no {primary}')
        return run

    def _test_metrics(self) -> dict:
        files = sorted((self.folder / 'test').glob('*/*.json'))
        return json.loads(files[-1].read_text()) if files else {}

    def share_done(self) -> float:
        """How much of the training is done, from 0 to 1, as the last line that was logged says."""
        logs = sorted(self.folder.glob('*/vis_data/scalars.json'))
        for line in reversed(logs[-1].read_text().splitlines() if logs else []):
            try:
                scalars = json.loads(line)
            except ValueError:  # a line that is being written
                continue
            if 'loss' in scalars:
                done = scalars['epoch'] - 0.5 if 'epoch' in scalars else scalars['step']
                return min(1., done / run_length(self.cfg))
        return 0.


def fingerprint_file(folder: Path) -> Path:
    """What tells, from the start on, of which config, method and data a training is."""
    return folder / 'study' / 'fingerprint'


def run_length(cfg: Config) -> int:
    """Epochs, or iterations in an iteration-based loop."""
    return cfg.train_cfg.get('max_epochs') or cfg.train_cfg.get('max_iters')


def number(value: Any) -> Optional[float]:
    """A metric as json has it: None where it is not finite, or -1, COCO's "no such objects"."""
    if isinstance(value, (int, float)) and math.isfinite(value) and value != -1:
        return float(value)
    return None


def summary(validations: Dict[int, dict], name: str, count: int) -> Dict[str, Optional[float]]:
    """The last value of a metric, and the mean of the last few."""
    steps = sorted(validations)[-count:]
    values = [number(validations[step].get(name)) for step in steps]
    mean = None if None in values else sum(values) / len(values)
    return dict(last=values[-1], mean=mean)


def last_line(path: Path) -> str:
    lines = path.read_text(errors='replace').split('\n') if path.is_file() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), 'no output')


def git_state() -> Dict[str, Any]:
    """The commit of the code, and whether files that are in git differ from it."""

    def git(*arguments: str) -> Optional[str]:
        done = subprocess.run(['git', '-C', str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        changes = git('status', '--porcelain', '--untracked-files=no', '--', '.', ':!results')
        return dict(commit=git('rev-parse', 'HEAD'), changed=None if changes is None
                    else bool(changes))
    except FileNotFoundError:  # no git here
        return dict(commit=None, changed=None)


def environment() -> Dict[str, Any]:
    """What the numbers may depend on beside code, config and data."""
    import torch
    model = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        names = [line.partition(':')[2].strip() for line in cpuinfo.read_text().splitlines()
                 if line.startswith('model name')]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = {name: find_version(name)[0] for name in PACKAGES}
    return dict(python=platform.python_version(), system=platform.system(), processor=model,
                cores=os.cpu_count(), threads_per_run=1, gpu=gpu,
                packages={name: version for name, version in packages.items() if version})


class Progression:
    """Says how far a study is and how long it may still take.

    Args:
        results (Results): What is known of finished runs.
        jobs (int): Runs side by side.
    """

    def __init__(self, results: Results, jobs: int):
        self.results = results
        self.jobs = jobs

    def seconds_left(self, pending: List[Key], running: Dict[Key, Tuple[float, float]]
                     ) -> Optional[float]:
        """An estimate from the runs of the same config, else of all.

        Args:
            pending (list[Key]): Runs that have not begun.
            running (dict): Run -> (seconds since it began, share that is done).

        Returns:
            float or None: None as long as nothing is known.
        """
        known: Dict[str, List[float]] = {}
        for run in self.results.content['runs']:
            if run['status'] == 'done' and run['seconds']:
                known.setdefault(run['config'], []).append(run['seconds'])
        for key, (seconds, share) in running.items():
            if share > 0.1:
                known.setdefault(key.config, []).append(seconds / share)
        if not known:
            return None
        means = {config: sum(values) / len(values) for config, values in known.items()}
        overall = sum(means.values()) / len(means)
        left = sum(means.get(key.config, overall) for key in pending)
        left += sum(means.get(key.config, overall) * (1 - share)
                    for key, (_, share) in running.items())
        return left / self.jobs


def clock(seconds: Optional[float]) -> str:
    if seconds is None:
        return 'time left not known yet'
    minutes = math.ceil(seconds / 60)
    return f'about {minutes // 60} h {minutes % 60} min left'


class Scheduler:
    """Trains what is missing, ``jobs`` runs at a time.

    Args:
        study (Study): What to train.
        results (Results): Where to write.
        work_dir (Path): Folder of the runs.
        jobs (int): Runs side by side.
        console (Console): For the progress.
        lock (int, optional): File descriptor that the processes are to hold.
    """

    def __init__(self, study: Study, results: Results, work_dir: Path, jobs: int,
                 console: Console, lock: Optional[int] = None):
        self.study = study
        self.results = results
        self.work_dir = work_dir
        self.jobs = jobs
        self.console = console
        self.lock = lock
        self.running: Dict[Key, Tuple[Job, float]] = {}
        self.to_test: List[Key] = []

    def run(self, to_train: List[Key], to_test: List[Key]) -> None:
        """Train and test these runs; on the way out, whatever the reason, processes are ended."""
        self.to_test = to_test
        pending = to_test + to_train
        total, progression = len(self.study.runs), Progression(self.results, self.jobs)
        columns = TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[status]}')
        shown = time.monotonic()
        with Progress(*columns, console=self.console,
                      disable=not self.console.is_terminal) as progress:
            task = progress.add_task(self.study.name, total=total, status='')
            try:
                while pending or self.running:
                    over = self._poll() + self._start(pending)
                    if over or time.monotonic() - shown > STATUS_SECONDS \
                            or self.console.is_terminal:
                        shares = {key: (time.monotonic() - began, job.share_done())
                                  for key, (job, began) in self.running.items()}
                        left = total - len(pending) - len(shares)
                        status = (f'{left} of {total} runs, '
                                  f'{clock(progression.seconds_left(pending, shares))}')
                        progress.update(task, completed=left + sum(s for _, s in shares.values()),
                                        status=status)
                        if not self.console.is_terminal and self.running:
                            now = ', '.join(f'{key} {share:.0%}' for key, (_, share)
                                            in shares.items())
                            self.console.print(f'{datetime.now():%H:%M} {status}; now {now}',
                                               soft_wrap=True)
                            shown = time.monotonic()
                    time.sleep(POLL_SECONDS)
            finally:
                for job, _ in self.running.values():
                    job.stop()

    def _poll(self) -> int:
        """Record the runs that are over; returns how many."""
        over = [key for key, (job, _) in self.running.items() if job.poll()]
        for key in over:
            job, _ = self.running.pop(key)
            self._add(job.record())
        return len(over)

    def _start(self, pending: List[Key]) -> int:
        """Start runs, and give up those whose teacher failed; returns how many were started."""
        started = 0
        for key in list(pending):
            needed = {need: self.results[need] for need in self.study.needs(key)}
            waiting = any(need in pending or need in self.running for need in needed)
            lost = [] if waiting else [need for need, run in needed.items()
                                       if run['status'] != 'done']
            if lost:
                pending.remove(key)
                self._add(dict(
                    config=key.config, method=key.method, seed=key.seed, status='failed',
                    reason=f'it starts from {lost[0]}, which {needed[lost[0]]["status"]}',
                    environment=environment(), **git_state()))
                continue
            if waiting or len(self.running) >= self.jobs:
                continue
            job = Job(self.study, key, self.work_dir, self.lock, self._trained(key))
            job.start()
            self.running[key] = job, time.monotonic()
            pending.remove(key)
            started += 1
        return started

    def _trained(self, key: Key) -> Optional[dict]:
        if key not in self.to_test:
            return None
        run = self.results[key]
        return dict(run, environment=self.results.content['environments'][run['environment']])

    def _add(self, run: dict) -> None:
        self.results.add(run)
        first = self.study.metrics[0]
        values = run.get('metrics', {}).get(first)
        what = f'{first} {values["last"]:.4f}' if run['status'] == 'done' else \
            f'{run["status"]}: {run["reason"]}'
        self.console.print(f'{_key(run)}: {what}', soft_wrap=True, highlight=False)


def to_do(study: Study, results: Results, work_dir: Path, retry: bool, redo: bool) -> List[Key]:
    """The runs to train: missing ones, those to train again, and those that start from such.

    So are those that such a run starts from and whose checkpoint is gone; what others made of that
    checkpoint stays.

    Raises:
        UsageError: If a run in the file was made from another config, method or data, and ``redo``
            does not say to train it again.
    """
    pending = []
    for key in study.runs:
        study.fingerprint(key)  # whatever is wrong with one is said before the first is trained
    for key in study.runs:
        run, folder = results[key], work_dir / str(key)
        stale = outdated(study, key, work_dir) if run is None else \
            'config_hash' in run and run['config_hash'] != study.fingerprint(key)
        if stale and not redo:
            raise UsageError(
                f'{results.path if run else folder} has {key} from another config, '
                'method, teacher or data: --redo trains such runs again, or give the study '
                'another name')
        again = run is not None and run['status'] != 'done' and retry
        restarted = any(need in pending for need in study.needs(key))
        if run is None or stale or again or restarted:
            pending.append(key)
    ordered: List[Key] = []

    def add(key: Key) -> None:
        for need in study.needs(key):
            done = results[need] is not None and results[need]['status'] == 'done'
            if need in pending or done and not has_checkpoint(work_dir / str(need)):
                add(need)
        if key not in ordered:
            ordered.append(key)

    for key in pending:
        add(key)
    return ordered


def outdated(study: Study, key: Key, work_dir: Path) -> bool:
    """Whether a training that was interrupted is of another config, method, teacher or data."""
    begun = fingerprint_file(work_dir / str(key))
    return begun.is_file() and begun.read_text() != study.fingerprint(key)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run left something for others to start from."""
    try:
        return Logs(folder).checkpoint() is not None
    except UsageError:  # there are not even logs
        return False


def to_test(study: Study, results: Results, pending: List[Key]) -> List[Key]:
    """The runs that were trained before the study asked for their test."""
    done = {key: results[key] for key in study.runs if key not in pending and study.tests(key)}
    return [key for key, run in done.items() if run['status'] == 'done' and any(
        'test' not in values for values in run['metrics'].values())]


def set_aside(folder: Path) -> None:
    """Move the files of an earlier try away: a run that is trained again starts from nothing."""
    if folder.exists():
        moved = next(path for path in (folder.with_name(f'{folder.name}.old{n}')
                                       for n in range(1000)) if not path.exists())
        folder.rename(moved)


@contextmanager
def locked(work_dir: Path) -> Iterator[Optional[int]]:
    """Make sure that nobody else trains in a folder.

    The trainings hold the lock as well, so that one that outlived a killed study is noticed.

    Yields:
        int or None: The file descriptor to pass on. None where the system has no such locks.

    Raises:
        UsageError: If another process holds the lock.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield None
        return
    lock = os.open(work_dir / 'lock', os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f'another study, or a training that outlived it, works in {work_dir}: '
                             'wait until it ends, or end it') from error
        yield lock
    finally:
        os.close(lock)


def main() -> None:
    args = parse_args()
    console = Console(highlight=False)
    try:
        if args.jobs < 1:
            raise UsageError(f'--jobs {args.jobs}: at least 1')
        study = Study(args.study)
        results = Results(args.out or Path('results/studies') / f'{study.name}.json', study)
        work_dir = args.work_dir or Path('work_dirs/studies') / study.name
        pending = to_do(study, results, work_dir, args.retry, args.redo)
        only_test = to_test(study, results, pending)
        if args.list:
            for key in study.runs:
                run = results[key]
                state = 'to do' if key in pending else \
                    'to test' if key in only_test else run['status']
                console.print(f'{key}: {state}', soft_wrap=True)
            return
        with locked(work_dir) as lock:
            for key in pending:
                if results[key] is not None or outdated(study, key, work_dir):
                    set_aside(work_dir / str(key))
            Scheduler(study, results, work_dir, args.jobs, console, lock).run(
                pending, only_test)
    except (UsageError, FileNotFoundError, ModuleNotFoundError) as error:
        end_in_a_line('study.py', error, args.traceback)
    console.print(f'{study.name}: all {len(study.runs)} runs are in {results.path}', soft_wrap=True)


if __name__ == '__main__':
    # Leave in the ordinary way when told to stop, so that the trainings are stopped as well
    signal.signal(signal.SIGTERM,
                  lambda *_: sys.exit('study.py: terminated; start it again to go on'))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('study.py: interrupted; start it again to go on')
