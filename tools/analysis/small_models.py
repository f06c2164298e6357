"""The configs that MMDetection and MMPose ship, made small enough to train a step of on a CPU.

Small are the images, the depth of backbones and transformers, where it works the channels, and the
numbers of RoIs and queries. The detectors, heads, losses and assigners are those of the config.
Weights are random; batches have random images and objects, with the targets that the config's own
codec makes of them.
"""
import atexit
import copy
import logging
import re
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from mmskd.config import config_root, load_config, project_of

SIDES = (64, 128, 320)
"""Sides of a detector's images, pixels: the first that it can take a step on."""

OUTSIDE = ('backbone', 'neck', 'data_preprocessor', 'test_cfg', 'init_cfg', 'norm_cfg', 'act_cfg',
           'conv_cfg', 'dcn_cfg', 'nms', 'tracker')
"""Parts of a model that the class loss does not depend on: no part of a signature."""

FLAGS = ('use_sigmoid', 'use_mask', 'as_two_stage', 'with_box_refine', 'reg_decoded_bbox',
         'reg_class_agnostic')
"""Options that decide which code computes a class loss."""


# Which configs there are -----------------------------------------------------------------------


def config_names(package: str) -> List[str]:
    """All configs of a package, as ``package::path``, without what they share in ``_base_``."""
    root = config_root(package)
    return [f'{package}::{path.relative_to(root).as_posix()}' for path in sorted(root.rglob('*.py'))
            if '_base_' not in path.parts]


def signature(cfg: Config) -> Tuple[str, ...]:
    """The classes and flags that decide how a model is taught; equal for configs of one family."""
    return tuple(dict.fromkeys(_kinds(cfg.model, '')))


def _kinds(node: Any, key: str) -> Iterator[str]:
    if isinstance(node, dict):
        flags = [f'{flag}={node[flag]}' for flag in FLAGS if flag in node]
        if 'type' in node or flags:
            yield ' '.join([f'{key}:{kind(node)}', *flags])
        for child, value in node.items():
            if child not in OUTSIDE:
                yield from _kinds(value, child)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _kinds(value, key)


def kind(node: dict) -> str:
    """The name of the class that a config builds, without scope or module; '' if it names none."""
    named = node.get('type', '')
    return (named if isinstance(named, str) else named.__name__).rpartition('.')[2]


# Made small ------------------------------------------------------------------------------------


def small_config(cfg: Config, narrow: bool = False) -> Config:
    """A config with a small model, without pretrained weights, on a CPU.

    Args:
        cfg (Config): As shipped; not changed.
        narrow (bool): Fewer channels, in detectors with a ResNet-50. Not every head can have them.
            Defaults to False.
    """
    cfg = copy.deepcopy(cfg)
    model = cfg.model
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    for node in _nodes(model):
        _drop_weights(node)
        _make_shallow(node)
        _keep_few(node)
    if project_of(cfg) == 'mmpose':
        _shrink_crops(cfg)
    elif narrow:
        _make_narrow(cfg)
    return cfg


def _nodes(node: Any) -> Iterator[dict]:
    """All dicts within a config, the outer ones first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _nodes(child)


def _drop_weights(node: dict) -> None:
    if isinstance(node.get('init_cfg'), dict) and node['init_cfg'].get('checkpoint'):
        node['init_cfg'] = None
    for key in ('pretrained', 'teacher_ckpt', 'teacher_pretrained', 'batch_augments'):
        if node.get(key):
            node[key] = None
    if isinstance(node.get('teacher_config'), str):
        path = node['teacher_config'].partition('configs/')[2]
        node['teacher_config'] = small_config(load_config(f'mmdet::{path}'))
    # of a distiller, from the root of MMPose's repository
    for key in ('teacher_cfg', 'student_cfg'):
        if isinstance(node.get(key), str):
            node[key] = _small_file(f'mmpose::{node[key].partition("configs/")[2]}')
    if kind(node) in ('SyncBN', 'MMSyncBN'):
        node['type'] = 'BN'


def _small_file(name: str) -> str:
    """A file with the small form of a config, for the life of this process."""
    folder = tempfile.mkdtemp(prefix='small_config_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / 'config.py'
    small_config(load_config(name)).dump(path)
    return str(path)


DEPTHS = {101: 50, 152: 50, 200: 50}
"""Depths of residual networks with the channels of the 50-layer one."""


def _make_shallow(node: dict) -> None:
    """Fewer layers of the same width."""
    if node.get('depth') in DEPTHS:
        node['depth'] = DEPTHS[node['depth']]
    if isinstance(node.get('depths'), (list, tuple)):
        node['depths'] = [2] * len(node['depths'])
    for key in ('deepen_factor', 'num_csp_blocks'):
        if key in node:
            node[key] = min(node[key], 0.33 if key == 'deepen_factor' else 1)
    if 'num_modules' in node and 'num_branches' in node:  # a stage of an HRNet
        node['num_modules'] = 1
        node['num_blocks'] = [1] * len(node['num_blocks'])
    if 'stage_blocks' in node:  # an hourglass
        node['stage_blocks'] = [1] * len(node['stage_blocks'])
    for part in ('encoder', 'decoder', 'transformer_decoder'):
        layers = node.get(part)
        if isinstance(layers, dict) and 'num_layers' in layers:
            layers['num_layers'] = min(layers['num_layers'], 2)
            if 'num_cp' in layers:
                layers['num_cp'] = 0


def _keep_few(node: dict) -> None:
    """Few RoIs and few queries: small images have few places."""
    for key, most in (('num_queries', 20), ('num_proposals', 20), ('num_dn_queries', 20)):
        if isinstance(node.get(key), int):
            node[key] = min(node[key], most)
    if 'Sampler' in kind(node) and 'num' in node:
        node['num'] = min(node['num'], 32)


def _make_narrow(cfg: Config) -> None:
    """A quarter of the channels; a ResNet's are the only ones that the config does not name."""
    for owner in _nodes(cfg.model):
        backbone = owner.get('backbone')
        if isinstance(backbone,
                      dict) and kind(backbone) == 'ResNet' and backbone.get('depth') == 50:
            backbone.update(base_channels=16, stem_channels=16)
            for key, part in owner.items():
                if key not in ('backbone', 'data_preprocessor'):
                    _quarter(part)


def _quarter(part: Any) -> None:
    for node in _nodes(part):
        for key, value in node.items():
            if re.search('channels$|_dims$|num_feats$', key):
                many = isinstance(value, (list, tuple))
                node[key] = type(value)(map(_fewer, value)) if many else \
                    _fewer(value)


def _fewer(channels: Any) -> Any:
    return channels // 4 if isinstance(channels,
                                       int) and channels >= 64 and channels % 4 == 0 else channels


SIZES = ('input_size', 'image_size', 'heatmap_size', 'root_heatmap_size', 'in_featuremap_size',
         'out_shape', 'img_size', 'img_scale')


def _shrink_crops(cfg: Config) -> None:
    """Smaller crops, with all that is measured in their pixels.

    The codec, the head, the pipeline.
    """
    codec = _codec(cfg)
    whole = codec.get('input_size') or codec.get('image_size')
    if whole is None:
        return
    parts = [node for part in (cfg.codec, cfg.model, _train_pipeline(cfg)) for node in _nodes(part)]
    sizes = [size for node in parts for key in SIZES for size in _sides(node.get(key))]
    for steps in range(2, min(whole) // 32):
        ratio = Fraction(32 * steps, min(whole))
        if all((side * ratio) % 32 == 0 for side in whole) and \
                all((side * ratio).denominator == 1 for side in sizes):
            break
    else:
        return
    for node in parts:
        for key in SIZES:
            if key in node:
                node[key] = _scaled(node[key], ratio)


def _codec(cfg: Config) -> dict:
    """What makes targets of keypoints; the first, where there are several."""
    codec = cfg.get('codec') or {}
    return codec[0] if isinstance(codec, (list, tuple)) else codec


def _sides(size: Any) -> Sequence[int]:
    """The sides in pixels; the third of three is a depth."""
    return () if size is None else (size, ) if isinstance(size, int) else tuple(size)[:2]


def _scaled(size: Any, ratio: Fraction) -> Any:
    if isinstance(size, int):
        return int(size * ratio)
    return type(size)([*(int(side * ratio) for side in size[:2]), *size[2:]])


def _train_pipeline(cfg: Config) -> list:
    """The transforms of a training image; those of validation where a config does not train."""
    loader = cfg.get('train_dataloader') or cfg.get('val_dataloader') or {}
    dataset = loader.get('dataset') or {}
    found = []
    while isinstance(dataset, dict):
        found = [*(dataset.get('pipeline') or []), *found]
        dataset = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
    return found


# Models ----------------------------------------------------------------------------------------


def import_models() -> None:
    """Register what the packages define, and keep them from talking about initial weights."""
    from mmdet.utils import register_all_modules as register_mmdet
    from mmpose.utils import register_all_modules as register_mmpose
    register_mmdet(init_default_scope=False)
    register_mmpose(init_default_scope=False)
    MMLogger.get_current_instance().setLevel(logging.ERROR)


class SmallModel:
    """A shipped config as a small model with a batch to train on.

    Args:
        name (str): ``package::path`` of the config.
        side (int): Side of the images of a detector, pixels. A pose config has its own, made
            smaller.
        cfg (Config, optional): The config, where it was read already. Defaults to None.
        narrow (bool): See :func:`small_config`. Defaults to False.

    Attributes:
        cfg (Config): Of the small model.
        scope (str): 'mmdet' or 'mmpose'.
        stock (nn.Module): The model as it starts. To be copied, not to be called.
    """

    def __init__(self, name: str, side: int = SIDES[0], cfg: Optional[Config] = None,
                 narrow: bool = False):
        cfg = cfg or load_config(name)
        self.scope = project_of(cfg)
        self.cfg = small_config(cfg, narrow)
        self.side = side
        self.stock = self.build(seed=0)
        self.data = self._batch()
        self._other: Optional[nn.Module] = None

    def build(self, seed: int) -> nn.Module:
        """The model in train mode with random weights of its own."""
        with DefaultScope.overwrite_default_scope(self.scope), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _without_memory(lambda: MODELS.build(copy.deepcopy(self.cfg.model)))
            model.init_weights()
            _fill_uninitialized(model)
        model.train()  # some detectors return None
        return model

    def copy(self) -> nn.Module:
        """The model as it starts."""
        return copy.deepcopy(self.stock)

    def another(self) -> nn.Module:
        """The model with other random weights, all of them: many heads begin with the same."""
        if self._other is None:
            self._other = self.build(seed=1)
            disturb(self._other)
        return copy.deepcopy(self._other)

    def losses(self, model: nn.Module) -> Dict[str, Any]:
        """The losses of a training step, with the same batch and random numbers each time."""
        with DefaultScope.overwrite_default_scope(self.scope):
            for key, value in dict(epoch=0, iter=0, max_epochs=12, max_iters=1200).items():
                MessageHub.get_current_instance().update_info(key, value)  # some losses go by it
            torch.manual_seed(0)
            np.random.seed(0)
            data = model.data_preprocessor(copy.deepcopy(self.data), training=True)
            return model(data['inputs'], data['data_samples'], mode='loss')

    def _batch(self) -> dict:
        with DefaultScope.overwrite_default_scope(self.scope):
            make = pose_batch if self.scope == 'mmpose' else detection_batch
            return make(self.cfg, self.stock, self.side)


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Make it another model, in place."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)


def _without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model with NaN where it would leave what the memory held."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return build()
    finally:
        torch.use_deterministic_algorithms(before)


def _fill_uninitialized(model: nn.Module) -> None:
    """Some parameters start from whatever the memory holds, and wait for pretrained weights."""
    for parameter in model.parameters():
        if not torch.isfinite(parameter).all():
            nn.init.normal_(parameter, std=0.02)


def loss_values(losses: Dict[str, Any]) -> Dict[str, Tensor]:
    """The losses by name, lists of them as one tensor; what is no loss is left out."""
    return {key: torch.stack([item.sum() for item in value])
            if isinstance(value, (list, tuple)) else value
            for key, value in losses.items() if 'loss' in key}


# Batches of detectors --------------------------------------------------------------------------


def detection_batch(cfg: Config, model: nn.Module, side: int, objects: int = 3) -> dict:
    """Images and their objects, as the config's loader would give them to the data preprocessor.

    Two images, or one of the largest side: there it takes long.
    """
    images = 1 if side == SIDES[-1] else 2
    rng = np.random.RandomState(0)
    options = _annotations(cfg)
    make = lambda index: _det_item(rng, index, side, objects, options)  # noqa: E731
    if options['frames']:
        return pseudo_collate([_track_item(rng, index, side, objects, options)
                               for index in range(images)])
    if options['reid']:
        return pseudo_collate([_reid_item(rng, index, side) for index in range(images)])
    if 'MultiBranch' in kind(cfg.model.data_preprocessor):
        branches = [{branch: make(index) for branch in ('sup', 'unsup_teacher', 'unsup_student')}
                    for index in range(images)]
        return {key: {branch: [item[branch][key] for item in branches] for branch in branches[0]}
                for key in ('inputs', 'data_samples')}
    return pseudo_collate([make(index) for index in range(images)])


def _annotations(cfg: Config) -> dict:
    """What the training samples of a config have."""
    transforms = list(_nodes(_train_pipeline(cfg)))
    kinds = [kind(transform) for transform in transforms]
    classes = [
        node[key]
        for node in _nodes(cfg.model)
        for key in ('num_classes', 'num_things_classes')
        if isinstance(node.get(key), int)
    ]
    scales = [
        transform['scale_factor'] for transform in transforms if kind(transform) == 'SegRescale'
    ]
    return dict(
        classes=min(classes, default=80),
        masks='LoadPanopticAnnotations' in kinds or any(
            transform.get('with_mask') for transform in transforms),
        panoptic='LoadPanopticAnnotations' in kinds,
        seg_classes=max(classes, default=80),
        semantic='LoadPanopticAnnotations' in kinds or any(
            transform.get('with_seg') for transform in transforms),
        seg_scale=scales[0] if scales else 1,
        frames='PackTrackInputs' in kinds,
        reid='PackReIDInputs' in kinds,
        proposals='FastRCNN' == kind(cfg.model),
        text='language_model' in cfg.model)


def _image(rng, side: int, channels: int = 3) -> Tensor:
    return torch.from_numpy(rng.randint(0, 255, (channels, side, side)).astype(np.uint8))


def _det_sample(rng, index: int, side: int, objects: int, options: dict) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    corner = rng.rand(objects, 2) * side / 2
    boxes = np.concatenate([corner, corner + (rng.rand(objects, 2) * .4 + .1) * side], 1)
    boxes = boxes.astype(np.float32)
    sample = DetDataSample(metainfo=dict(
        img_id=index, img_path='image.png', img_shape=(side, side), ori_shape=(side, side),
        scale_factor=(1., 1.), flip=False, flip_direction=None, border=np.array([0, side, 0, side]),
        homography_matrix=np.eye(3, dtype=np.float32)))
    if options['text']:
        sample.set_metainfo(dict(text='cat . dog . ', custom_entities=False, tokens_positive=-1))
    masks = np.zeros((objects, side, side), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
        mask[top:bottom, left:right] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(rng.randint(0, options['classes'], objects)))
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    if options['masks']:
        sample.gt_instances.masks = BitmapMasks(masks, side, side)
        sample.ignored_instances.masks = BitmapMasks(masks[:0], side, side)
    if options['semantic']:
        size = int(side * options['seg_scale'])
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(
            _segments(masks, sample.gt_instances.labels.numpy(), options)[None, ::side
                                                                          // size, ::side // size]))
    if options['proposals']:
        jitter = rng.randn(20, objects, 4) * side / 16
        near = (boxes + jitter).reshape(-1, 4).clip(0, side)
        near = np.sort(near.reshape(-1, 2, 2), 1).reshape(-1, 4).astype(np.float32)
        sample.proposals = InstanceData(
            bboxes=torch.from_numpy(near),
            scores=torch.from_numpy(rng.rand(len(near)).astype(np.float32)))
    return sample


def _segments(masks: np.ndarray, labels: np.ndarray, options: dict) -> np.ndarray:
    """A class for each pixel, (H, W): stuff above the classes of things, if there is any."""
    stuff = options['seg_classes'] - 1 if options['panoptic'] else 0
    segments = np.full(masks.shape[1:], stuff, np.int64)
    for mask, label in zip(masks, labels):
        segments[mask.astype(bool)] = label
    return segments


def _det_item(rng, index: int, side: int, objects: int, options: dict) -> dict:
    return dict(inputs=_image(rng, side),
                data_samples=_det_sample(rng, index, side, objects, options))


def _track_item(rng, index: int, side: int, objects: int, options: dict) -> dict:
    """A key frame and a reference frame of a video, with the same objects."""
    from mmdet.structures import TrackDataSample
    samples = [_det_sample(rng, index, side, objects, options) for _ in range(2)]
    for frame, sample in enumerate(samples):
        sample.set_metainfo(dict(frame_id=frame, is_video_data=True))
        sample.gt_instances.labels = samples[0].gt_instances.labels
        sample.gt_instances.instances_ids = torch.arange(objects)
    track = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]))
    track.video_data_samples = samples
    return dict(inputs=torch.stack([_image(rng, side) for _ in samples]), data_samples=track)


def _reid_item(rng, index: int, side: int) -> dict:
    """Two pictures of one person."""
    from mmdet.structures import ReIDDataSample
    samples = [ReIDDataSample(metainfo=dict(img_shape=(side, side))).set_gt_label(index)
               for _ in range(2)]
    return dict(inputs=torch.stack([_image(rng, side) for _ in samples]), data_samples=samples)


# Batches of pose estimators --------------------------------------------------------------------

ENCODING = ('GetBBoxCenterScale', 'TopdownAffine', 'GenerateTarget', 'BottomupGetHeatmapMask',
            'PackPoseInputs')
"""Transforms that make targets; all others load or augment."""


def pose_batch(cfg: Config, model: nn.Module, side: int, images: int = 2) -> dict:
    """Images with their people, and the targets that the config's pipeline encodes."""
    from mmengine.dataset import Compose
    rng = np.random.RandomState(0)
    encode = Compose(
        [transform for transform in _train_pipeline(cfg) if kind(transform) in ENCODING])
    person = _lifted_person if kind(cfg.model) == 'PoseLifter' else _person
    return pseudo_collate([encode(person(rng, index, cfg, model)) for index in range(images)])


def _keypoints(cfg: Config, model: nn.Module) -> int:
    head = getattr(model, 'student', model).head  # a distiller's
    if type(head).__name__ == 'InternetHead':
        return 42  # of two hands
    offsets = 3 if _codec(cfg).get('heatmap_type') == 'combined' else 1  # two maps of offsets each
    for key in ('num_keypoints', 'num_joints', 'out_channels'):
        if isinstance(getattr(head, key, None), int):
            return getattr(head, key) // offsets
    raise ValueError(f'{type(head).__name__} does not say how many keypoints it places')


def _person(rng, index: int, cfg: Config, model: nn.Module) -> dict:
    """What a data set has about the people in an image; one of them, for a crop."""
    codec = _codec(cfg)
    width, height = codec.get('input_size') or codec.get('image_size') or (128, 128)
    people = 2 if kind(cfg.model) == 'BottomupPoseEstimator' else 1
    number = _keypoints(cfg, model)
    depth = kind(cfg.model.get('head') or {}) == 'InternetHead'
    corners = _keeps_corners(cfg)
    box = np.float32([[.1, .1], [.9, .9]]) if not corners else np.float32(
        [[.1, .1], [.1, .9], [.9, .1], [.9, .9]])
    boxes = np.tile((box * [width, height]).reshape(1, -1), (people, 1)).astype(np.float32)
    spread = rng.rand(people, number, 3 if depth else 2).astype(np.float32)
    keypoints = spread * (200 if depth else 1)
    keypoints[..., :2] = (.15 + .7 * spread[..., :2]) * np.float32([width, height])
    visible = np.ones((people, number), np.float32)
    visible[:, 0] = 0
    return dict(
        img=rng.randint(0, 255, (height, width, 3)).astype(np.uint8), id=index, img_id=index,
        img_path='image.png', img_shape=(height, width), ori_shape=(height, width),
        input_size=(width, height), input_center=np.float32([width, height]) / 2,
        input_scale=np.float32([width, height]), category_id=[1] * people, bbox=boxes,
        bbox_score=np.ones(people, np.float32), keypoints=keypoints, keypoints_visible=visible,
        area=np.full(people, width * height * .64, np.float32), flip_indices=list(range(number)),
        dataset_keypoint_weights=np.ones(number, np.float32), invalid_segs=[],
        warp_mat=np.float32([[1, 0, 0], [0, 1, 0]]),
        hand_type=np.float32([[1, 0]]), hand_type_valid=np.float32([1]),
        rel_root_depth=np.float32(10), rel_root_valid=1., abs_depth=np.float32([100, 100]),
        focal=np.float32([500, 500]), principal_pt=np.float32([width / 2, height / 2]), rotation=0.)


def _keeps_corners(cfg: Config) -> bool:
    """Whether the pipeline turns boxes, and so gives them as four corners."""
    return any(kind(node) == 'BottomupRandomAffine' and node.get('bbox_keep_corner', True)
               for node in _nodes(_train_pipeline(cfg)))


def _lifted_person(rng, index: int, cfg: Config, model: nn.Module) -> dict:
    """A person in a video, in two dimensions and in three."""
    frames = _receptive_field(cfg)
    codec = next(node['encoder']
                 for node in _nodes(_train_pipeline(cfg))
                 if kind(node) == 'GenerateTarget')
    targets, number = frames if 'MotionBERT' in kind(codec) else 1, codec['num_keypoints']
    return dict(
        id=index, img_id=index, category_id=1, target_img_path='image.png',
        factor=np.zeros(targets), keypoints=(rng.rand(frames, number, 2) * 1000).astype(
            np.float32), keypoints_visible=np.ones((frames, number), np.float32),
        lifting_target=(rng.rand(targets, number, 3) + [0, 0, 4]).astype(np.float32),
        lifting_target_visible=np.ones((targets, number), np.float32), camera_param=dict(
            w=1000, h=1000, f=np.float32([[1000], [1000]]),
            c=np.float32([[500], [500]])), flip_indices=list(range(number)))


def _receptive_field(cfg: Config) -> int:
    """How many frames the backbone makes one of; MotionBERT takes any number."""
    kernels = cfg.model.backbone.get('kernel_sizes')
    return 3 if kernels is None else int(np.prod(kernels))
