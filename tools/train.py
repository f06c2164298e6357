"""Train a model of MMDetection or MMPose; with distillation if the config or a flag says so."""
import argparse
import inspect
import itertools
import os
from typing import Optional

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

import mmskd.engine.hooks as ours
from mmskd.annotations import check_data
from mmskd.checkpoint import check_whole, last_checkpoint, newest_whole
from mmskd.config import (
    change_settings,
    check_metrics,
    find_config,
    load_config,
    project_of,
    require_parts,
)
from mmskd.engine.hooks.teaching_hook import go_together
from mmskd.engine.launch import (
    CheckpointAction,
    KeyValueAction,
    OneLineParser,
    TeacherAction,
    add_common_arguments,
    check_checkpoint,
    check_weights,
    draw_predictions,
    run_tool,
    say,
    set_local_rank,
    set_work_dir,
)
from mmskd.engine.schedule import shorten_schedule
from mmskd.errors import UsageError
from mmskd.evaluation.ground_truth import parts_of

PROFILED = 10  # iterations
HEAD_DISTILL_SHARE = 0.2  # of the epochs, as in DWPose
# What a method adds to the name of the work dir, so that it is not the baseline's
METHOD_SUFFIXES = {
    '--pskd': '_pskd',
    '--distill-from': '_distill',
    '--head-distill': '_head_distill'
}
NEWEST, NEWEST_OR_START = 'auto', 'auto-or-start'  # of --resume
CODECS_OF_A_CHANNEL_EACH = ('MSRAHeatmap', 'SimCCLabel')
RANDOM_STREAMS_HOOK = 'mmskd.RandomStreamsHook'


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        'config', help='a config file, or one that comes with a package, as '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    method = parser.add_mutually_exclusive_group()
    method.add_argument(
        '--pskd', nargs='*', action=KeyValueAction, metavar='KEY=VALUE',
        help='train with PS-KD, whatever the config says; options of PSKDHook may follow, as '
        'alpha_T=0.8')
    method.add_argument(
        '--distill-from', nargs='+', action=TeacherAction,
        metavar=('CONFIG CHECKPOINT', 'KEY=VALUE'),
        help='let this trained model teach (DWPose, stage 1), with the losses that DistillHook '
        'takes for the kind of head; options of DistillHook may follow, as schedule=cosine stop=280'
    )
    method.add_argument(
        '--head-distill', nargs='+', action=CheckpointAction, metavar=('CHECKPOINT', 'KEY=VALUE'),
        help='let the head of this trained model of the same config teach a fresh head on frozen '
        'features (DWPose, stage 2), for a fifth of the epochs of the config; options of '
        'HeadDistillHook may follow, as gt_weight=1 reinit_head=False')
    parser.add_argument(
        '--resume', nargs='?', const=NEWEST, metavar='CHECKPOINT',
        help='go on from this checkpoint, or, without a name, from the newest in the work dir that '
        f'is whole; "{NEWEST_OR_START}" starts if there is none, for jobs that are queued again')
    parser.add_argument(
        '--keep-going', action='store_true',
        help='train on when the weights have become NaN or infinite, as MMEngine does')
    parser.add_argument(
        '--amp', action='store_true',
        help='train with automatic mixed precision; without a GPU: backbone and neck in bfloat16')
    parser.add_argument(
        '--profile', nargs='?', type=int, const=PROFILED, metavar='ITERATIONS', help=
        f'profile so many iterations in which the model is taught (default: {PROFILED}), with what '
        'mmskd does in them under mmskd/teacher, mmskd/pairing, mmskd/loss and mmskd/refresh: a '
        'table, and trace.json in the work dir'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate with the batch size that is used')
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during the training')
    add_common_arguments(parser)
    args = parser.parse_args()
    set_local_rank(args)
    return args


def add_method(cfg: Config, args: argparse.Namespace) -> None:
    """Put the hook of --pskd, --distill-from or --head-distill into the config.

    Raises:
        UsageError: If the hook does not take what is given.
        FileNotFoundError, ModuleNotFoundError: If there is no such config or checkpoint.
    """
    if args.pskd is not None:
        set_hook(cfg, 'PSKDHook', '--pskd', args.pskd)
    elif args.distill_from:
        config, checkpoint = args.distill_from['teacher'].values()
        # In full: a relative path in a config is relative to the config
        config = config if '::' in config else os.path.abspath(find_config(config))
        find_config(config)
        check_checkpoint(checkpoint)
        set_hook(cfg, 'DistillHook', '--distill-from',
                 dict(args.distill_from, teacher=dict(config=config, checkpoint=checkpoint)))
    elif args.head_distill:
        check_checkpoint(args.head_distill['checkpoint'])
        set_hook(cfg, 'HeadDistillHook', '--head-distill', args.head_distill)
        say(f'--head-distill: {shorten_schedule(cfg, HEAD_DISTILL_SHARE)}')


def set_hook(cfg: Config, name: str, flag: str, options: dict) -> None:
    """Add a hook to those of a config, or change the options of the one that is there.

    Raises:
        UsageError: If the hook has no such option, or does not take the value, or the config names
            another hook that does not go with it.
    """
    hook_class = getattr(ours, name)
    known = list(inspect.signature(hook_class).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UsageError(f'{flag} has no option {unknown[0]}; there are {", ".join(known)}')
    hooks = list(cfg.get('custom_hooks') or [])
    hook = next((hook for hook in hooks if name_of(hook) == name), None)
    if hook is None:
        hook = dict(type=f'mmskd.{name}')
        hooks.append(hook)
    hook.update(options)
    cfg.custom_hooks = hooks
    check_methods(cfg, f'{flag}: ')


def check_methods(cfg: Config, flag: str = '') -> None:
    """Raise UsageError for options of the hooks that teach, or hooks that do not go together.

    Args:
        cfg (Config): A config.
        flag (str): Before the message: what put a hook into the config. Default: ''.
    """
    teaching = [(index, hook, getattr(ours, name_of(hook)))
                for index, hook in enumerate(cfg.get('custom_hooks') or []) if teaches(hook)]
    for index, hook, kind in teaching:
        if isinstance(hook, dict):
            where = flag or f'custom_hooks[{index}]: '
            try:
                kind(**{key: value for key, value in hook.items()
                        if key not in ('type', 'priority', '_scope_')})
            except UsageError as error:
                raise UsageError(f'{where}{error}') from error
            except TypeError as error:
                raise UsageError(f'{where}{kind.__name__}: {reason_of(error)}; there are '
                                 f'{", ".join(inspect.signature(kind).parameters)}') from error
    for (_, _, first), (_, _, second) in itertools.combinations(teaching, 2):
        if not go_together(first, second):
            raise UsageError(
                f'{flag}custom_hooks has {first.__name__} and {second.__name__}, which do not '
                'teach one model together; leave one of them (docs/reliability.md says '
                'which do)')


def teaches(hook: object) -> bool:
    """Whether something in a config is a hook of ours that teaches."""
    kind = getattr(ours, name_of(hook), None) if isinstance(hook, (dict, Hook)) else None
    return isinstance(kind, type) and issubclass(kind, ours.TeachingHook)


def check_hooks_are_read(cfg: Config) -> None:
    """Raise UsageError if the config has hooks that teach, and none where hooks are read."""
    named = []
    for key, value in cfg.items():
        if key == 'default_hooks':
            value = list((value or {}).values())
        if any(map(teaches, value if isinstance(value, list) else [value])):
            named.append(key)
    if named and not {'custom_hooks', 'default_hooks'}.intersection(named):
        raise UsageError(f'{named[0]} is a hook that teaches, and nothing reads it there: put it '
                         'into custom_hooks, which has none')


def reason_of(error: TypeError) -> str:
    """What is wrong with the arguments of a constructor."""
    return str(error).partition('() ')[2] or str(error)


def name_of(hook: object) -> str:
    """The class name of a hook in a config, which may be a class or a hook itself."""
    kind = hook.get('type', '') if isinstance(hook, dict) else type(hook)
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def method_flag(args: argparse.Namespace) -> str:
    """The flag that names a method; '' if there is none."""
    if args.pskd is not None:
        return '--pskd'
    return '--distill-from' if args.distill_from else '--head-distill' if args.head_distill else ''


def use_safe_hooks(cfg: Config, keep_going: bool) -> None:
    """Put SafeCheckpointHook in place of CheckpointHook; stop at weights that are not finite."""
    hooks = cfg.get('default_hooks') or {}
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))  # as MMEngine does
    for hook in [*hooks.values(), *(cfg.get('custom_hooks') or [])]:
        if isinstance(hook, dict) and hook.get('type') in (
                'CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
            hook['type'] = 'mmskd.SafeCheckpointHook'
    if not keep_going:
        hooks.setdefault('finite_weights', dict(type='mmskd.FiniteWeightsHook'))
    cfg.default_hooks = hooks


def check_restarts(args: argparse.Namespace) -> None:
    """Raise UsageError if processes that torchrun starts again would not go on where they were."""
    restarts = os.environ.get('TORCHELASTIC_MAX_RESTARTS', '0')
    if restarts != '0' and args.resume not in (NEWEST, NEWEST_OR_START):
        raise UsageError(f'--max-restarts={restarts}: started again, the processes would not go on '
                         f'from the newest checkpoint; add --resume {NEWEST_OR_START}')


def choose_checkpoint(cfg: Config, args: argparse.Namespace, start_from: Optional[str]) -> None:
    """Make of a wish to resume the checkpoint to resume from.

    Args:
        cfg (Config): With all that the command line says. Changed in place.
        args (argparse.Namespace): The command line.
        start_from (str, optional): ``load_from`` of the config, for a run that starts.

    Raises:
        UsageError: If there is nothing to go on from, or nothing that is whole.
    """
    if not cfg.get('resume'):
        return
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    with_optimizer = hook.get('save_optimizer', True)
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
        check_whole(os.path.expanduser(cfg.load_from), with_optimizer)
        return
    out_dir = hook.get('out_dir')
    if out_dir:  # as CheckpointHook does
        out_dir = os.path.join(out_dir, os.path.basename(cfg.work_dir.rstrip(os.sep)))
    found = newest_whole(cfg.work_dir, out_dir, hook.get('filename_tmpl'), with_optimizer)
    for line in found.passed_over:
        say(f'--resume: {line}; it is passed over')
    if found.path:
        say(f'--resume: goes on from {found.path}')
        cfg.load_from = found.path
    elif args.resume == NEWEST_OR_START:
        say(f'--resume {NEWEST_OR_START}: there is no checkpoint in {cfg.work_dir}; the training '
            'starts')
        cfg.resume, cfg.load_from = False, start_from
    else:
        raise UsageError(f'--resume: there is no checkpoint in {out_dir or cfg.work_dir}'
                         f'{runs_beside(cfg, args)}; --resume {NEWEST_OR_START} starts a training '
                         'where there is none')


def runs_beside(cfg: Config, args: argparse.Namespace) -> str:
    """What to say of the work dirs of the same config under other methods."""
    if args.work_dir is not None:
        return ''
    suffix = METHOD_SUFFIXES.get(method_flag(args), '')
    stem = cfg.work_dir[:-len(suffix)] if suffix and cfg.work_dir.endswith(suffix) else cfg.work_dir
    found = [f'{stem + other} has one, of a run {"with " + flag if flag else "without a method"}'
             for flag, other in {'': '', **METHOD_SUFFIXES}.items()
             if other != suffix and last_checkpoint(stem + other)]
    return f' ({"; ".join(found)}: give the same flags as then)' if found else ''


def make_resume_exact(cfg: Config) -> None:
    """Add RandomStreamsHook where the seed is fixed: else there is nothing to be exact about."""
    if (cfg.get('randomness') or {}).get('seed') is None:
        return
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(name_of(hook) == 'RandomStreamsHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=RANDOM_STREAMS_HOOK)]


def enable_amp(cfg: Config, project: str) -> None:
    """Mixed precision, as the config's project does it; without a GPU by CPUAmpOptimWrapper.

    Raises:
        UsageError: If there is no wrapper for the config's, which is another.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    name = (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]
    on_cpu = get_device() == 'cpu'
    if (project == 'mmpose' or on_cpu) and name not in (
            'OptimWrapper', 'AmpOptimWrapper', 'CPUAmpOptimWrapper'):
        raise UsageError(f'--amp cannot replace the optimizer wrapper {name}')
    if on_cpu:
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper.type = 'mmskd.CPUAmpOptimWrapper'
        return
    if project == 'mmpose':
        wrapper.setdefault('loss_scale', 'dynamic')
    else:
        wrapper.loss_scale = 'dynamic'
    wrapper.type = 'AmpOptimWrapper'


def profile(cfg: Config, iterations: int) -> None:
    """Add mmskd.ProfileHook.

    Raises:
        UsageError: If there is nothing to profile.
    """
    if iterations < 1:
        raise UsageError(f'--profile: {iterations} iterations are none')
    hook = dict(type='mmskd.ProfileHook', iterations=iterations)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def enable_auto_scale_lr(cfg: Config) -> None:
    """Let the Runner scale the learning rate.

    Raises:
        UsageError: If the config does not say which batch size its learning rate is for.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
    cfg.auto_scale_lr.enable = True


def prepare(args: argparse.Namespace) -> Config:
    """The config with everything that the command line says."""
    check_restarts(args)
    cfg = load_config(args.config)
    require_parts(cfg, 'model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    project = project_of(cfg)
    # Where a flag and --cfg-options say different things, the flag wins in MMDetection and
    # --cfg-options in MMPose
    if project == 'mmdet':
        change_settings(cfg, args.cfg_options)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    set_work_dir(cfg, args, suffix=METHOD_SUFFIXES.get(method_flag(args), ''))
    if args.amp:
        enable_amp(cfg, project)
    start_from = cfg.get('load_from')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume in (NEWEST, NEWEST_OR_START) else args.resume
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.show or args.show_dir is not None:
        draw_predictions(cfg, args, project, args.show)
    if project == 'mmpose':
        change_settings(cfg, args.cfg_options)
        if 'preprocess_cfg' in cfg:
            cfg.model.setdefault('data_preprocessor', cfg.preprocess_cfg)
    add_method(cfg, args)
    check_methods(cfg)
    check_hooks_are_read(cfg)
    if args.profile is not None:
        profile(cfg, args.profile)
    make_resume_exact(cfg)
    use_safe_hooks(cfg, args.keep_going)
    choose_checkpoint(cfg, args, start_from)
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
    check_metrics(cfg, 'val', project)
    check_data(cfg, ['train', 'val'])
    return cfg


def check_classes(runner: Runner) -> None:
    """Raise UsageError if a detector's head has fewer classes than there are in the training data.

    It would be found in the first iteration, if an image has an object of one of the others, and
    nowhere else.
    """
    classes = (getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}).get('classes')
    for name, module in runner.model.named_modules():
        number = getattr(module, 'num_classes', None)
        if name.endswith('bbox_head') and isinstance(number, int) and number < len(classes or ()):
            raise UsageError(
                f'model.{name}.num_classes is {number}, and the training data have '
                f'{len(classes)} classes: set it to {len(classes)}, or name fewer classes in '
                'train_dataloader.dataset.metainfo')


def check_keypoints(runner: Runner) -> None:
    """Raise UsageError if data set, annotations and head differ in the number of keypoints.

    The first iteration would end in shapes that do not fit.
    """
    dataset = runner.train_dataloader.dataset
    for part in parts_of(dataset):
        described = (getattr(part, 'metainfo', None) or {}).get('num_keypoints')
        first = part.get_data_info(0) if described and len(part) else {}
        if 'keypoints' in first and first['keypoints'].shape[-2] != described:
            raise UsageError(
                f'train_dataloader: metainfo describes {described} keypoints, and '
                f'{part.ann_file} has {first["keypoints"].shape[-2]}')
    number = (getattr(dataset, 'metainfo', None) or {}).get('num_keypoints')
    if number is None or converts_keypoints(dataset):
        return
    for name, module in runner.model.named_modules():
        decoder = type(getattr(module, 'decoder', None)).__name__
        channels = getattr(module, 'out_channels', None)
        if decoder in CODECS_OF_A_CHANNEL_EACH and channels != number:
            raise UsageError(
                f'model.{name}.out_channels is {channels}, and the training data have {number} '
                f'keypoints: set it to {number}')


def converts_keypoints(dataset: object) -> bool:
    """Whether a pipeline makes other keypoints of them than ``metainfo`` has.

    In a CombinedDataset that of the whole describes what comes out.
    """
    if type(dataset).__name__ == 'CombinedDataset':
        return False
    return any(type(transform).__name__ == 'KeypointConverter' for part in parts_of(dataset)
               for transform in getattr(getattr(part, 'pipeline', None), 'transforms', ()))


def train(runner: Runner, args: argparse.Namespace) -> None:
    check_classes(runner)
    check_keypoints(runner)
    if runner.cfg.get('resume'):
        check_weights(runner, runner.cfg.load_from, all_of_them=True)
    elif runner.cfg.get('load_from'):
        check_weights(runner, runner.cfg.load_from)
    runner.train()


def main() -> None:
    run_tool('train.py', parse_args(), prepare, train)


if __name__ == '__main__':
    main()
