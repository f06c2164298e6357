"""What a training step costs.

Stock, with each hook, and with MMPose's DWPoseDistiller, side by side.

A step is forward and backward on one random batch, without the optimizer. All ways to train a model
live in one process and take turns, so that a machine that is busy with something else slows all of
them, and a ratio is the median of the ratios of steps that follow each other.

    python tools/benchmarks/step_cost.py --out results/step_cost.json  # every work of the table
    python tools/benchmarks/step_cost.py pskd_retinanet --steps 20     # one of them
    python tools/benchmarks/step_cost.py --config mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py

docs/own_dwpose.md has a table of its own, of the works own_rtmpose and own_mouse::

    FILE=results/step_cost_own_dwpose.json
    python tools/benchmarks/step_cost.py own_rtmpose own_mouse --out $FILE

``python tools/fill_pages.py`` puts the files into the pages.
"""
import argparse
import copy
import gc
import io
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from mmskd.config import load_config, project_of
from mmskd.ending import add_traceback, end_in_a_line
from mmskd.engine.hooks import DistillHook, HeadDistillHook, PSKDHook
from mmskd.errors import UsageError
from mmskd.models.low_precision import low_precision_layers

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
RETINANET_101 = 'mmdet::retinanet/retinanet_r101_fpn_1x_coco.py'
FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
RTMPOSE = 'mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-{}_8xb256-420e_coco-256x192.py'
sys.path.append(str(Path(__file__).parents[1]))
from export_onnx import export  # noqa: E402
from step_cost_tables import table_of  # noqa: E402


class Work(NamedTuple):
    """Something that is trained, in several ways.

    Attributes:
        title (str): For the table.
        config (str): Of the model.
        ways (tuple[str]): Keys of ``WAYS``; the first is what the others are compared with.
        size (tuple): Height and width of the images. A pose estimator has its own.
        batch (int): Images a step.
        on_gpu (tuple): What a GPU gets in their place: small images would measure how fast Python
            is.
        teacher (str, optional): Config of a bigger model.
        larger (str, optional): Config of one whose images are larger, too.
        changes (tuple): Pairs of a dotted key in the model's config and its value.
    """
    title: str
    config: str
    ways: Tuple[str, ...]
    size: Tuple[int, int] = (320, 320)
    batch: int = 2
    on_gpu: Tuple[Tuple[int, int], int] = ((800, 1344), 4)
    teacher: Optional[str] = None
    larger: Optional[str] = None
    changes: Tuple[Tuple[str, Any], ...] = ()


OWN = ('stock', 'teacher', 'teacher of larger crops', 'teacher of larger crops, flip',
       'teacher of larger crops, .onnx')
MOUSE = 'mmskd::openfield_mouse/rtmpose_{}.py'
CROPS = dict(size=(256, 192), batch=8, on_gpu=((256, 192), 128))
WORKS = {
    'pskd_retinanet': Work('PS-KD, RetinaNet-R50', RETINANET,
                           ('stock', 'nothing to teach', 'PS-KD', 'PS-KD, float32')),
    'pskd_average': Work('PS-KD with an average as past self, RetinaNet-R50', RETINANET,
                         ('stock', 'PS-KD', 'PS-KD, average', 'PS-KD, average, float32')),
    'pskd_faster_rcnn': Work('PS-KD, Faster R-CNN R50', FASTER_RCNN,
                             ('stock', 'PS-KD', 'PS-KD, float32')),
    'pskd_rtmpose': Work('PS-KD, RTMPose-m', RTMPOSE.format('m'),
                         ('stock', 'PS-KD', 'PS-KD, float32'), **CROPS),
    'dwpose_stage1': Work('DWPose stage 1, RTMPose l -> m', RTMPOSE.format('m'),
                          ('mmpose stage 1', 'stock', 'distillation', 'distillation, float32'),
                          **CROPS, teacher=RTMPOSE.format('l')),
    'dwpose_stage2': Work('DWPose stage 2, RTMPose m -> m', RTMPOSE.format('m'),
                          ('mmpose stage 2', 'stock', 'second stage', 'second stage, float32'),
                          **CROPS, teacher=RTMPOSE.format('m')),
    'own_rtmpose': Work(
        'RTMPose l -> m, 384x288 -> 256x192 where larger', RTMPOSE.format('m'), OWN, **CROPS,
        teacher=RTMPOSE.format('l'),
        larger='mmpose::body_2d_keypoint/rtmpose/body8/rtmpose-l_8xb256-420e_body8-384x288.py'),
    'own_mouse': Work('RTMPose s -> t of the mouse, 192x192 -> 128x128 where larger',
                      MOUSE.format('t_mouse'), OWN, size=(128, 128), batch=8,
                      on_gpu=((128, 128), 128), teacher=MOUSE.format('s_mouse'),
                      larger=MOUSE.format('s_mouse-192x192')),
    'distill_retinanet': Work('Distillation, RetinaNet R101 -> R50', RETINANET,
                              ('stock', 'distillation', 'distillation, float32'),
                              teacher=RETINANET_101),
    'stage2_retinanet': Work('Second stage, RetinaNet-R50', RETINANET,
                             ('stock', 'second stage', 'second stage, float32', 'heads alone')),
    'amp_retinanet': Work(
        'Training on a CPU, RetinaNet-R18', RETINANET, ('stock', 'stock, --amp on a CPU'),
        changes=(('backbone.depth', 18), ('neck.in_channels', [64, 128, 256, 512]))),
}


def work_on(work: Work, device: str) -> Work:
    """The work with the images that a device gets, which its title says."""
    size, batch = work.on_gpu if device == 'cuda' else (work.size, work.batch)
    return work._replace(title=f'{work.title}, {size[0]}x{size[1]}, batch {batch}', size=size,
                         batch=batch)


class Setting(NamedTuple):
    """What a way to train is made of: the model, its config, the teacher's, a folder, the batch."""
    model: nn.Module
    work: Work
    folder: str
    batch: tuple


# The ways: each takes a model of its own and returns what runs a step up to the loss
# ------------------


def stock(setting: Setting) -> Callable:
    return _losses_of(setting.model, setting.batch)


def stock_amp(setting: Setting) -> Callable:
    """As with ``--amp`` on a CPU."""
    losses_of = stock(setting)

    def step():
        with low_precision_layers(setting.model):
            return losses_of()

    return step


def pskd(setting: Setting, hook: Optional[PSKDHook] = None, **options) -> Callable:
    """As in the middle of a training."""
    hook = hook or PSKDHook(**options)
    hook.attach(setting.model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    return _in_training(hook, setting)


def pskd_average(setting: Setting, **options) -> Callable:
    """The same with a past self that moves in each step."""
    hook = PSKDHook(past='average', **options)
    losses_of = pskd(setting, hook=hook)

    def step():
        hook.average_teacher()
        return losses_of()

    return step


def nothing_to_teach(setting: Setting) -> Callable:
    """As in the first epoch."""
    hook = PSKDHook()
    hook.attach(setting.model)
    return _in_training(hook, setting)


def distillation(setting: Setting, **options) -> Callable:
    hook = DistillHook(_build(setting.work.teacher), **options)
    hook.attach(setting.model)
    return _in_training(hook, setting)


def own_dwpose(setting: Setting, larger: bool = False, onnx: bool = False, **asked) -> Callable:
    """What a file teaches by default: bins, and features but of an .onnx.

    ``asked`` of it: flip and the like.
    """
    config = setting.work.larger if larger else setting.work.teacher
    checkpoint = os.path.join(setting.folder, 'teacher.pth')
    torch.save(dict(state_dict=_build(config).state_dict()), checkpoint)
    teacher = dict(config=config, checkpoint=checkpoint)
    if onnx:
        teacher = dict(type='mmskd.OnnxPoseTeacher',
                       file=os.path.join(setting.folder, 'teacher.onnx'), beta=10.)
        export(config, checkpoint, teacher['file'])
    hook = DistillHook(dict(teacher, **asked))
    hook.attach(setting.model)
    return _in_training(hook, setting)


def second_stage(setting: Setting, **options) -> Callable:
    checkpoint = os.path.join(setting.folder, 'model.pth')
    torch.save(dict(state_dict=setting.model.state_dict()), checkpoint)
    hook = HeadDistillHook(checkpoint, **options)
    hook.attach(setting.model)
    return _in_training(hook, setting)


def heads_alone(setting: Setting) -> Callable:
    """A bound of the second stage.

    The stock losses of the heads, on features that are there already.
    """
    model, (inputs, samples) = setting.model, setting.batch
    with torch.no_grad():
        features = model.extract_feat(inputs)
    return lambda: model.bbox_head.loss(features, copy.deepcopy(samples))


def mmpose_stage1(setting: Setting) -> Callable:
    return _mmpose(setting, two_dis=False)


def mmpose_stage2(setting: Setting) -> Callable:
    return _mmpose(setting, two_dis=True)


FLOAT32 = dict(precision=None)
WAYS: Dict[str, Tuple[Callable, dict]] = {
    'stock': (stock, {}),
    'stock, --amp on a CPU': (stock_amp, {}),
    'nothing to teach': (nothing_to_teach, {}),
    'PS-KD': (pskd, {}),
    'PS-KD, float32': (pskd, FLOAT32),
    'PS-KD, average': (pskd_average, {}),
    'PS-KD, average, float32': (pskd_average, FLOAT32),
    'distillation': (distillation, {}),
    'distillation, float32': (distillation, FLOAT32),
    'teacher': (own_dwpose, {}),
    'teacher of larger crops': (own_dwpose, dict(larger=True)),
    'teacher of larger crops, flip': (own_dwpose, dict(larger=True, flip=True)),
    'teacher of larger crops, .onnx': (own_dwpose, dict(larger=True, onnx=True)),
    'second stage': (second_stage, {}),
    'second stage, float32': (second_stage, FLOAT32),
    'heads alone': (heads_alone, {}),
    'mmpose stage 1': (mmpose_stage1, {}),
    'mmpose stage 2': (mmpose_stage2, {}),
}


def _losses_of(model: nn.Module, batch: tuple) -> Callable:
    inputs, samples = batch
    return lambda: model(inputs, copy.deepcopy(samples), mode='loss')


def _in_training(hook, setting: Setting) -> Callable:
    """A step of a Runner that logs every 50th iteration: all but that one."""
    hook.measures = False
    setting.model.train()
    return _losses_of(setting.model, setting.batch)


def _mmpose(setting: Setting, two_dis: bool) -> Callable:
    """MMPose's distiller with the losses of its own configs."""
    import mmpose.models.losses.fea_dis_loss  # noqa: F401
    from mmpose.models.distillers.dwpose_distiller import DWPoseDistiller
    student, teacher = (_build(config) for config in (setting.work.config, setting.work.teacher))
    device = setting.batch[0].device
    channels = [_channels(model) for model in (student, teacher)]
    terms = [dict(type='KDLoss', name='loss_logit', use_this=True, weight=1. if two_dis else 0.1)]
    if not two_dis:
        terms.insert(0, dict(type='FeaLoss', name='loss_fea', use_this=True,
                             student_channels=channels[0], teacher_channels=channels[1],
                             alpha_fea=0.00007))
    paths = []
    for name, config in (('student', setting.work.config), ('teacher', setting.work.teacher)):
        paths.append(os.path.join(setting.folder, f'{name}.py'))
        Config(dict(model=_model_config(config))).dump(paths[-1])
    with DefaultScope.overwrite_default_scope('mmpose'):
        distiller = DWPoseDistiller(
            teacher_cfg=paths[1], student_cfg=paths[0], two_dis=two_dis,
            distill_cfg=Config(dict(terms=[dict(methods=[term]) for term in terms])).terms)
    distiller.to(device).train()
    if two_dis:  # as its configs for the second stage have it: the student is its head
        for parameter in distiller.student.backbone.parameters():
            parameter.requires_grad_(False)
    hub = MessageHub.get_current_instance()
    hub.update_info('epoch', 0)
    hub.update_info('max_epochs', 10)
    setting.model.distiller = [distiller]  # not as a module: whose memory is counted
    return _losses_of(distiller, setting.batch)


def _channels(model: nn.Module) -> int:
    return model.head.in_channels


# Models and data ----------------------------------------------------------------------------------


def _model_config(config: str, changes: Sequence[Tuple[str, Any]] = ()) -> Config:
    cfg = load_config(config)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes})
    model = copy.deepcopy(cfg.model)
    model.backbone.init_cfg = None
    return _without_syncbn(model)


def _without_syncbn(node: Any) -> Any:
    """In one process synchronised statistics are those of the process."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict) and value.get('type') == 'SyncBN':
            value['type'] = 'BN'
        elif isinstance(value, (dict, list, tuple)):
            _without_syncbn(value)
    return node


def _build(config: str, changes: Sequence[Tuple[str, Any]] = ()) -> nn.Module:
    project = project_of(load_config(config))
    if project == 'mmpose':
        from mmpose.utils import register_all_modules
    else:
        from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(project):
        return MODELS.build(_model_config(config, changes)).train()


def random_batch(model: nn.Module, size: Tuple[int, int], images: int, device: str) -> tuple:
    """Noise, with five boxes an image or with keypoints."""
    if hasattr(model, 'head') and hasattr(model.head, 'decoder'):
        return _random_crops(model, images, device)
    from mmdet.structures import DetDataSample
    height, width = size
    samples = []
    for _ in range(images):
        corner = torch.rand(5, 2) * min(size) / 2
        sample = DetDataSample(metainfo=dict(
            img_shape=size, batch_input_shape=size, ori_shape=size, pad_shape=size,
            scale_factor=(1., 1.), img_id=0))
        sample.gt_instances = InstanceData(bboxes=torch.cat([corner, corner + min(size) / 4], 1),
                                           labels=torch.zeros(5, dtype=torch.long))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample.to(device))
    return torch.randn(images, 3, height, width, device=device), samples


def _random_crops(model: nn.Module, images: int, device: str) -> tuple:
    from mmpose.testing import get_packed_inputs
    head = model.head
    width, height = head.decoder.input_size
    packed = get_packed_inputs(
        images, num_instances=1, num_keypoints=head.out_channels, img_shape=(height, width),
        input_size=(width, height), simcc_split_ratio=getattr(head, 'simcc_split_ratio', 2.0),
        heatmap_size=getattr(head.decoder, 'heatmap_size', (48, 64)),
        with_simcc_label=hasattr(head, 'simcc_split_ratio'))
    data = model.data_preprocessor(packed, training=True)
    return data['inputs'].to(device), [sample.to(device) for sample in data['data_samples']]


# Measuring
# ------------------------------------------------------------------------------------------


def prepare(work: Work, way: str, device: str, folder: str,
            amp: bool = False) -> Tuple[Callable, Setting]:
    """A model of its own, ready for steps of this kind.

    ``amp``: under float16 autocast, as AmpOptimWrapper has it.
    """
    torch.manual_seed(0)
    model = _build(work.config, work.changes).to(device)
    setting = Setting(model, work, folder, random_batch(model, work.size, work.batch, device))
    attach, options = WAYS[way]
    losses_of = attach(setting, **options)

    def with_autocast():
        with torch.autocast(device, torch.float16):
            return losses_of()

    return (with_autocast if amp else losses_of), setting


def step_seconds(losses_of: Callable, setting: Setting, device: str) -> float:
    """Forward and backward."""
    owner = getattr(setting.model, 'distiller', [setting.model])[0]
    owner.zero_grad()
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
    else:
        begin = time.perf_counter()
    loss, _ = setting.model.parse_losses(losses_of())
    loss.backward()
    if device != 'cuda':
        return time.perf_counter() - begin
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(work: Work, steps: int, warmup: int, device: str, memory: bool = False,
            amp: bool = False) -> dict:
    """All ways of a work; see the module.

    Returns:
        dict: By way: ``seconds`` (median), ``ratio`` to the first way (median over the rounds),
        ``ratio_range`` (lower and upper quartile), ``peak_bytes`` (if ``memory``),
        ``parameter_bytes``, ``checkpoint_bytes``.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready, held = {}, {}
        for way in work.ways:
            before = allocated(device)
            ready[way] = prepare(work, way, device, folder, amp)
            held[way] = allocated(device) - before
        rows = measure_ready(ready, steps, warmup, device)
        if memory and device == 'cuda':
            for way, row in rows.items():
                row['peak_bytes'] = held[way] + peak_of_step(*ready[way])
    if memory and device == 'cpu':
        for way, row in rows.items():
            row['peak_bytes'] = peak_bytes(work, way)
    return dict(title=work.title, config=work.config, size=list(work.size), batch=work.batch,
                steps=steps, ways=rows)


def measure_ready(ready: Dict[str, Tuple[Callable, Setting]], steps: int, warmup: int,
                  device: str) -> Dict[str, dict]:
    """The same for ways that are prepared; the first is what the others are compared with."""
    seconds: Dict[str, List[float]] = {way: [] for way in ready}
    for turn in range(warmup + steps):
        for way, (losses_of, setting) in ready.items():
            value = step_seconds(losses_of, setting, device)
            if turn >= warmup:
                seconds[way].append(value)
    base = next(iter(seconds.values()))
    rows = {}
    for way, values in seconds.items():
        ratios = sorted(value / other for value, other in zip(values, base))
        rows[way] = dict(
            seconds=round(statistics.median(values), 4), ratio=round(statistics.median(ratios), 4),
            ratio_range=[
                round(ratios[len(ratios) // 4], 4),
                round(ratios[-1 - len(ratios) // 4], 4)
            ], **_bytes(ready[way][1].model))
    return rows


def _bytes(model: nn.Module) -> dict:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return dict(parameter_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
                checkpoint_bytes=buffer.getbuffer().nbytes)


def allocated(device: str) -> int:
    """Bytes that tensors hold on a GPU."""
    gc.collect()  # what is no longer used by what came before
    return torch.cuda.memory_allocated() if device == 'cuda' else 0


def peak_of_step(losses_of: Callable, setting: Setting) -> int:
    """What a step on a GPU holds at most, beside what was there before it."""
    setting.model.zero_grad()
    before = allocated('cuda')
    torch.cuda.reset_peak_memory_stats()
    step_seconds(losses_of, setting, 'cuda')
    return torch.cuda.max_memory_allocated() - before


def peak_bytes(work: Work, way: str) -> int:
    """Peak of a process that does nothing but three such steps on a CPU."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_peak_here, (work, way, torch.get_num_threads()))


def _peak_here(work: Work, way: str, threads: int) -> int:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        losses_of, setting = prepare(work, way, 'cpu', folder)
        for _ in range(3):
            step_seconds(losses_of, setting, 'cpu')
    # Not ru_maxrss, which a new process takes over from the one that started it
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\s*(\d+) kB', status).group(1)) * 1024


# Reporting
# --------------------------------------------------------------------------------------------


def machine(device: str, amp: bool = False) -> dict:
    """Where it was measured, and in which precision."""
    name = torch.cuda.get_device_name(
    ) if device == 'cuda' else platform.processor() or platform.machine()
    return dict(device=device, name=name, threads=torch.get_num_threads(),
                torch=torch.__version__.split('+')[0], python=platform.python_version(), amp=amp,
                bfloat16=_fast_bfloat16(device))


def _fast_bfloat16(device: str) -> bool:
    from mmskd.models.teachers.compiled import fast_dtype
    return fast_dtype(torch.device(device)) is not None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('works', nargs='*', metavar='WORK',
                        help=f'which of {", ".join(WORKS)}; default: all')
    parser.add_argument('--config', help='PS-KD with this model instead, a file or package::...')
    parser.add_argument('--size', type=int, nargs=2, default=(320, 320),
                        metavar=('HEIGHT', 'WIDTH'),
                        help='of the images with --config, default: 320 320; crops of keypoints '
                        'have the size that the model says')
    parser.add_argument('--batch', type=int, default=2,
                        help='images a step with --config, default: 2')
    parser.add_argument('--steps', type=int, default=10, help='of each way, default: 10')
    parser.add_argument('--warmup', type=int, default=2, help='steps before them, default: 2')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--amp', action='store_true',
                        help='with --device cuda: under float16 autocast')
    parser.add_argument('--memory', action='store_true',
                        help='measure peak memory too; on a CPU in a process for each way')
    parser.add_argument('--out', type=Path, help='write the report here, as JSON')
    add_traceback(parser)
    args = parser.parse_args()
    unknown = [name for name in args.works if name not in WORKS]
    if unknown:
        parser.error(f'there is no work {unknown[0]}; there are {", ".join(WORKS)}')
    if args.works and args.config:
        parser.error(f'--config is measured instead of {args.works[0]}: leave one of them out')
    for name in ('batch', 'steps'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} {getattr(args, name)}: at least 1')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU here')
    if args.amp and args.device != 'cuda':
        parser.error(
            '--amp: float16 autocast is for --device cuda; amp_retinanet is --amp of a CPU')
    return args


def main() -> None:
    args = parse_args()
    works = {name: work_on(WORKS[name], args.device) for name in args.works or WORKS
             if args.device == 'cpu' or args.works or name != 'amp_retinanet'}
    if args.config:
        works = {'config': Work(args.config, args.config, ('stock', 'PS-KD', 'PS-KD, float32'),
                                tuple(args.size), args.batch)}
    report = dict(machine=machine(args.device, args.amp), works={})
    if args.out and args.out.exists():
        before = json.loads(args.out.read_text())
        if before['machine'] == report['machine']:  # works that are not measured again stay in it
            report = before
    for name, work in works.items():
        try:
            report['works'][name] = measure(
                work, args.steps, args.warmup, args.device, args.memory, args.amp)
        except (UsageError, FileNotFoundError, ImportError) as error:
            end_in_a_line('step_cost.py', error, args.traceback)
        print(table_of({name: report['works'][name]}), end='', flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
