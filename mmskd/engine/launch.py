"""What ``tools/train.py`` and ``tools/test.py`` have in common."""
import argparse
import os
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Callable, NoReturn
from unittest import mock

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import barrier, init_dist, is_distributed
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch.distributed import PrefixStore, TCPStore

from mmskd.checkpoint import load_weights, use_safe_loading
from mmskd.config import project_of
from mmskd.engine.explaining import explain
from mmskd.engine.peers import meet_peers, who_is_lost
from mmskd.errors import RunStopped, UsageError

# What each launcher tells the processes that it starts
STARTED_BY = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}


class OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: {message} (--help lists the options)\n')


class KeyValueAction(DictAction):
    """MMEngine's ``key=value`` arguments, with an error for one that has no ``=``."""

    def __call__(self, parser, namespace, values, option_string=None):
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'{option_string} takes key=value, but got {wrong[0]!r} '
                         f'(positional arguments go before {option_string})')
        super().__call__(parser, namespace, values, option_string)


class CheckpointAction(KeyValueAction):
    """A checkpoint and ``key=value`` options behind it.

    One dict, with the file under ``checkpoint``.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        super().__call__(parser, namespace, values[1:], option_string)
        getattr(namespace, self.dest)['checkpoint'] = values[0]


class TeacherAction(KeyValueAction):
    """Config and checkpoint of a teacher and ``key=value`` options behind them.

    One dict, with ``teacher``.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) < 2:
            parser.error(f'{option_string} takes a config, a checkpoint, and then key=value')
        if values[0].endswith('.pth') and not values[1].endswith('.pth'):
            parser.error(f'{option_string} takes the config first: {option_string} {values[1]} '
                         f'{values[0]}')
        super().__call__(parser, namespace, values[2:], option_string)
        teacher = dict(config=values[0], checkpoint=values[1])
        getattr(namespace, self.dest)['teacher'] = teacher


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that training and testing share, in MMDetection and in MMPose."""
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints, default: work_dirs/<name of config>')
    parser.add_argument(
        '--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE',
        help='settings that override those of the config, as model.backbone.depth=18; '
        'a list is key="[a,b]" or key=a,b, a list of tuples key="[(a,b),(c,d)]", without blanks')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for images with the predictions drawn')
    parser.add_argument('--interval', type=int, help='draw every so many samples')
    parser.add_argument('--wait-time', type=float, help='seconds that a window stays')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='what started the processes of a distributed job')
    parser.add_argument('--traceback', action='store_true',
                        help='show where an error was raised, not only what it says')
    # torch.distributed.launch passes it, in either spelling
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)


def set_local_rank(args: argparse.Namespace) -> None:
    """Put ``--local_rank`` where MMEngine looks for it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def set_work_dir(cfg: Config, args: argparse.Namespace, suffix: str = '') -> None:
    """The command line says where to write, else the config, else the config's name."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = Path(args.config.rpartition('::')[2]).stem
        cfg.work_dir = os.path.join('work_dirs', name + suffix)


def draw_predictions(cfg: Config, args: argparse.Namespace, project: str, show: bool) -> None:
    """Switch on the visualization hook of the project.

    Raises:
        UsageError: If the config has no such hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UsageError('the config draws nothing: default_hooks has no visualization, for '
                         'example dict(type="DetVisualizationHook")')
    if project == 'mmpose':
        hook.update(enable=True, show=show, out_dir=args.show_dir, interval=args.interval or 1)
    else:
        hook.update(draw=True, test_out_dir=args.show_dir or hook.get('test_out_dir'))
        if args.interval is not None:
            hook.interval = args.interval
        if show:
            hook.show = True
    if args.show:
        default = 1 if project == 'mmpose' else 2
        hook.wait_time = default if args.wait_time is None else args.wait_time


def check_checkpoint(path: str) -> None:
    """Raise UsageError if a local checkpoint is not there."""
    if '://' not in path and not os.path.isfile(os.path.expanduser(path)):
        raise UsageError(f'there is no checkpoint {path}')


def check_weights(runner: Runner, path: str, all_of_them: bool = False) -> None:
    """Look whether a checkpoint is one of the model: MMEngine would go on without its weights.

    Args:
        runner (Runner): With the model, which may be wrapped.
        path (str): A file, or whatever else MMEngine loads checkpoints from.
        all_of_them (bool): Whether it has to have each weight of the model; a training that starts
            from it may learn the rest. Defaults to False.

    Raises:
        UsageError: If it has no weight of the model, or lacks one or has one of another shape where
            it must have all.
    """
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    given = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
    model = runner.model
    while hasattr(model, 'module'):  # DDP, or the wrapper of test-time augmentation
        model = model.module
    if {key.removeprefix('module.') for key in given}.isdisjoint(model.state_dict()):
        raise UsageError(
            f'{path} holds no weight of this model ({type(runner.model).__name__}): it is the '
            'checkpoint of another one')
    if all_of_them:
        load_weights(model, path, checkpoint, more=True)


def set_launcher(cfg: Config, launcher: str) -> None:
    """Tell the config who starts the processes; without an accelerator they talk over gloo.

    Raises:
        UsageError: If that has not started this process.
    """
    variable = STARTED_BY.get(launcher)
    if variable and variable not in os.environ:
        raise UsageError(
            f'--launcher {launcher}: {variable} is not set, so this process was not started '
            f'by it; tools/{"slurm" if launcher == "slurm" else "dist"}_train.sh starts them')
    cfg.launcher = launcher
    on_cpu = launcher != 'none' and get_device() == 'cpu'
    if on_cpu:
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
        # As the Runner wraps a model when nothing is said, but for device_ids: there are none
        cfg.model_wrapper_cfg = dict(
            dict(type='MMDistributedDataParallel', broadcast_buffers=False,
                 find_unused_parameters=cfg.get('find_unused_parameters', False)),
            **cfg.get('model_wrapper_cfg') or {})
        cfg.model_wrapper_cfg.device_ids = None
    meeting_place = restarted_store()
    if on_cpu or meeting_place:
        _meet(cfg, on_cpu, meeting_place)


def _meet(cfg: Config, on_cpu: bool, options: dict) -> None:
    """Let the processes meet. The Runner does it if it is not done, but cannot do this.

    Args:
        cfg (Config): With ``launcher`` and ``env_cfg``.
        on_cpu (bool): Then no CUDA device is chosen.
        options (dict): Of ``init_process_group``.
    """
    set_multi_processing(**cfg.env_cfg.get('mp_cfg', {}), distributed=True)
    with mock.patch.object(torch.cuda, 'set_device') if on_cpu else nullcontext():
        init_dist(cfg.launcher, **cfg.env_cfg.get('dist_cfg', {}), **options)


def restarted_store() -> dict:
    """Where processes meet that torchrun has started again.

    PyTorch keeps what they left behind in the store of torchrun, among it the addresses of those
    that are dead, and does not tell them from the new ones: these would wait for each other.

    Returns:
        dict: Options of ``init_process_group``; empty if it is the first time, or without torchrun.
    """
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if attempt == '0' or os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
        return {}
    return dict(store=PrefixStore(f'mmskd/attempt/{attempt}', _torchrun_store()),
                rank=int(os.environ['RANK']), world_size=int(os.environ['WORLD_SIZE']))


def _torchrun_store(**options) -> TCPStore:
    return TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False,
                    **options)


def run_tool(tool: str, args: argparse.Namespace, prepare: Callable[[argparse.Namespace], Config],
             run: Callable[[Runner, argparse.Namespace], None]) -> None:
    """Prepare a config, build its Runner and run it.

    An error with a known cause ends the program in one line, and with exit code 2 if the user can
    put it right, 1 if the run was stopped. In a distributed run one process prints it.

    Args:
        tool (str): Name of the program.
        args (argparse.Namespace): With :func:`add_common_arguments`.
        prepare (Callable): Returns the config that the command line asks for.
        run (Callable): Is called with the Runner and the arguments.
    """
    cfg = None
    try:
        cfg = prepare(args)
        if project_of(cfg) == 'mmdet':
            from mmdet.utils import setup_cache_size_limit_of_dynamo
            setup_cache_size_limit_of_dynamo()
        use_safe_loading()
        set_launcher(cfg, args.launcher)
        runner = build_runner(cfg)
        meet_peers()
        run(runner, args)
        end_processes()
    except KeyboardInterrupt:
        if args.traceback:
            raise
        say(f'{tool}: stopped' + ('; --resume goes on from the newest checkpoint'
                                  if tool == 'train.py' else ''))
        sys.exit(130)
    except Exception as error:
        lost = who_is_lost(error)
        line = lost or explain(error, cfg)
        if line is None or args.traceback:
            raise
        if fails_first():
            print(f'{tool}: {line}', file=sys.stderr, flush=True)
        sys.exit(1 if lost or isinstance(error, RunStopped) else 2)


def build_runner(cfg: Config) -> Runner:
    """The Runner, or what ``runner_type`` names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def end_processes() -> None:
    """Part from the other processes when all are done.

    A process that just ends leaves gloo's threads running, and now and then is aborted for it.
    """
    if is_distributed():
        barrier()
        torch.distributed.destroy_process_group()


def process_number() -> int:
    """Of this process in a distributed run, as what started it says; 0 elsewhere.

    MMEngine knows it only when the processes have met.
    """
    names = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def say(line: str) -> None:
    """Print a line, once for all processes of a distributed run."""
    if process_number() == 0:
        print(line, flush=True)


def fails_first() -> bool:
    """Whether this process is to say why it ends: one does, of all that end for a reason of theirs.

    They cannot talk any more, or not yet; but torchrun keeps a store for them. Where there is none,
    the first process of each machine speaks.
    """
    if int(os.environ.get('WORLD_SIZE', '1')) == 1 and 'SLURM_PROCID' not in os.environ:
        return True
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    try:
        store = _torchrun_store(wait_for_workers=False, timeout=timedelta(seconds=10))
        return store.add(f'mmskd/failed/{attempt}', 1) == 1
    except (KeyError, RuntimeError):
        return os.environ.get('SLURM_LOCALID', os.environ.get('LOCAL_RANK', '0')) == '0'
