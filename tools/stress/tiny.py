"""Tiny trainings for the stress tools: a data set, configs, and a process for each run."""
import contextlib
import gc
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional

TOOLS = Path(__file__).resolve().parents[1]

DETECTOR = """
_base_ = 'mmskd::demo/retinanet_shapes.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    bbox_head=dict(in_channels=8, feat_channels=8, stacked_convs=1,
                   norm_cfg=dict(type='GN', num_groups=4)),
    test_cfg=dict(score_thr=0.0, nms_pre=20, max_per_img=5))
train_dataloader = dict(batch_size=4)
val_dataloader = dict(batch_size=2)
train_cfg = dict(max_epochs=3, val_interval=1)
val_evaluator = dict(
    _delete_=True, type='CocoMetric', ann_file='data/shapes/annotations/val.json', metric='bbox')
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=1))
log_level = 'ERROR'
"""

BY_ITERATION = """
train_dataloader = dict(sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=6, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2, by_epoch=False))
log_processor = dict(by_epoch=False)
"""

FIGURES = """
_base_ = 'mmpose::_base_/default_runtime.py'
codec = dict(type='MSRAHeatmap', input_size=(64, 64), heatmap_size=(8, 8), sigma=1)
model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(type='PoseDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3),
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    head=dict(
        type='HeatmapHead', in_channels=64, out_channels=13, deconv_out_channels=(16, 16),
        deconv_kernel_sizes=(4, 4), loss=dict(type='KeypointMSELoss', use_target_weight=True),
        decoder=codec),
    test_cfg=dict(flip_test=False))
before = [
    dict(type='LoadImage'), dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=codec['input_size'])
]
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
dataset = dict(type='mmskd.StickFigureDataset', data_root='data/figures')
train_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        ann_file='annotations/train.json', data_prefix=dict(img='train/'),
        pipeline=[*before, dict(type='GenerateTarget', encoder=codec), dict(type='PackPoseInputs')],
        **dataset), **loader)
val_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        ann_file='annotations/val.json', data_prefix=dict(img='val/'), test_mode=True,
        pipeline=[*before, dict(type='PackPoseInputs')], **dataset), **loader)
test_dataloader = val_dataloader
val_evaluator = dict(type='PCKAccuracy', thr=0.2)
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
"""

POSE = FIGURES + """
train_cfg.update(max_epochs=3)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=1))
randomness = dict(seed=0)
log_level = 'ERROR'
"""

CLASSIFIER = """
custom_imports = dict(imports=['tiny_classifier'])
default_scope = 'mmengine'
model = dict(type='TinyClassifier')
train_dataloader = dict(
    batch_size=8, num_workers=0, dataset=dict(type='Stripes'),
    collate_fn=dict(type='default_collate'), sampler=dict(type='DefaultSampler', shuffle=True))
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1))
randomness = dict(seed=0)
log_level = 'ERROR'
"""

CONFIGS = {'detector.py': DETECTOR, 'pose.py': POSE, 'classifier.py': CLASSIFIER}
MAX_SECONDS = 600
STARTED = time.time()


def prepare(folder: Path) -> None:
    """Write data sets and configs into a folder, and work there from here on."""
    from mmskd.datasets import write_demo_data
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    sys.path[:0] = [str(Path(__file__).parent), str(folder)]
    for kind, name, train in (('shapes', 'shapes', 8), ('stick-figures', 'figures', 6)):
        if not Path('data', name).exists():
            write_demo_data(Path('data', name), kind=kind, train=train, val=4)
    for name, text in CONFIGS.items():
        Path(name).write_text(text)


class Ending(NamedTuple):
    """How a process ended.

    Attributes:
        code (int): Its exit code, negative for a signal.
        output (str): What it printed, on both streams.
    """
    code: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line that it printed."""
        return (self.output.splitlines() or [''])[-1]


def run(function: Callable[[], Any], seconds: int = MAX_SECONDS) -> Ending:
    """Call a function in a process of its own, which has imported what this one has.

    A fork: it takes milliseconds where a new Python would import for seconds. So this process must
    compute nothing with several threads.
    """
    log = Path('output.txt')
    child = os.fork()
    if child == 0:
        code = 70
        try:
            import signal
            signal.alarm(seconds)
            with open(log, 'w') as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            code = _exit_code_of(function)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return Ending(os.waitstatus_to_exitcode(status), log.read_text(errors='replace'))


def _exit_code_of(function: Callable[[], Any]) -> int:
    """As Python ends."""
    try:
        function()
        return 0
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
            return 1
        return ending.code or 0
    except BaseException:
        traceback.print_exc()
        return 1


def tool(path: str, *argv: Any) -> Callable[[], None]:
    """A function that does what ``python tools/PATH ARGV`` does."""

    def call() -> None:
        import runpy
        sys.argv = [str(TOOLS / path), *map(str, argv)]
        sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as Python does for a script
        runpy.run_path(sys.argv[0], run_name='__main__')

    return call


def import_once() -> None:
    """What every run imports, before the processes part."""
    with contextlib.redirect_stderr(io.StringIO()):
        import mmdet.apis  # noqa: F401
        import mmpose.apis  # noqa: F401
        import torch
        from mmdet.utils import register_all_modules as register_mmdet
        from mmengine.config import config
        from mmengine.runner import runner
        from mmpose.utils import register_all_modules as register_mmpose

        import mmskd.engine.hooks  # noqa: F401
        import mmskd.engine.launch  # noqa: F401
    torch.set_num_threads(1)
    register_mmdet(init_default_scope=False)
    register_mmpose(init_default_scope=False)
    # A Runner lays out its config with yapf ten times and asks compilers for their versions, which
    # takes longer than a small training; each data set collects garbage, also that of all imports
    config.FormatCode = lambda text, **style: (text, True)
    environment = runner.collect_env()
    runner.collect_env = lambda: environment
    gc.collect()
    gc.freeze()


def add_arguments(parser) -> None:
    """What all stress tools take."""
    parser.add_argument('--folder', type=Path, help='where to work; default: a temporary folder')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--count', type=int, help='only so many, drawn by the seed; default: all')
    parser.add_argument('--results', type=lambda path: Path(path).resolve(),
                        help='json file in which the numbers of this tool are replaced')


class Failures(list):
    """What went wrong; printed as soon as it is known."""

    def append(self, line: str) -> None:
        print(f'FAILED {line}', flush=True)
        super().append(line)


def machine() -> str:
    """What the numbers were made on."""
    import platform

    import torch
    return (f'{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}, '
            f'PyTorch {torch.__version__}')


def finish(name: str, args, counts: dict, failures: List[str]) -> None:
    """Print the counts, write them down, and exit with 1 if there are failures."""
    print(f'{name}: ' + ', '.join(f'{value} {key}' for key, value in counts.items()))
    write_down(name, args, counts, failures)
    sys.exit(1 if failures else 0)


def write_down(name: str, args, counts: dict, failures: List[str]) -> None:
    """Put the numbers so far into the file of results."""
    if args.results:
        known = json.loads(args.results.read_text()) if args.results.exists() else {}
        options = [f'--seed {args.seed}'] + ([f'--count {args.count}'] if args.count else [])
        known[name] = dict(command=' '.join(['python', f'tools/stress/{name}.py', *options]),
                           machine=machine(), minutes=round((time.time() - STARTED) / 60),
                           counts=counts, failures=failures)
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(dict(sorted(known.items())), indent=2) + '\n')


@contextlib.contextmanager
def working_folder(folder: Optional[Path]):
    """The folder that was named, or a temporary one; prepared."""
    import tempfile
    import_once()
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='mmskd-')))
        before = os.getcwd()
        prepare(folder.resolve())
        try:
            yield Path.cwd()
        finally:
            os.chdir(before)
