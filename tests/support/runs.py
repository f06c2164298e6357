"""Real training runs on a handful of generated images: seconds each."""
from pathlib import Path
from typing import Dict, Optional

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmskd.datasets.generate import write_demo_data

IMAGE_SIZE = (64, 64)


def data(folder: Path, train: int = 8, val: int = 2) -> Path:
    """A generated data set in ``folder``."""
    if not folder.exists():
        write_demo_data(folder, train=train, val=val)
    return folder


def config(data_root: Path, work_dir: Path, loop: str = 'epoch', length: int = 4, ema: bool = False,
           hook: Optional[dict] = None, **changes) -> Config:
    """A RetinaNet of few channels, with PS-KD, that is saved and validated now and then.

    Args:
        data_root (Path): As :func:`data` returned.
        work_dir (Path): Where the run writes.
        loop (str): 'epoch' (2 iterations each) or 'iter'.
        length (int): Epochs or iterations.
        ema (bool): Whether EMAHook runs beside it.
        hook (dict, optional): Options of PSKDHook.
        changes: Anything else, by dotted key (dots written as two underscores).
    """
    norm = dict(type='BN', requires_grad=True)
    pipeline = [
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=IMAGE_SIZE, keep_ratio=False),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs')
    ]
    dataset = dict(type='mmskd.ShapesDataset', data_root=str(data_root), pipeline=pipeline)
    by_epoch = loop == 'epoch'
    cfg = Config(dict(
        default_scope='mmdet',
        model=dict(
            type='RetinaNet',
            data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5] * 3, std=[64.] * 3,
                                   pad_size_divisor=32),
            backbone=dict(type='ResNet', depth=18, base_channels=8, num_stages=4,
                          out_indices=(1, 2, 3), norm_cfg=norm, norm_eval=False),
            neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=16, num_outs=3),
            bbox_head=dict(
                type='RetinaHead', num_classes=5, in_channels=16, feat_channels=16,
                stacked_convs=1, norm_cfg=norm,
                anchor_generator=dict(type='AnchorGenerator', octave_base_scale=3,
                                      scales_per_octave=1, ratios=[1.0], strides=[8, 16, 32]),
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                loss_cls=dict(type='FocalLoss', use_sigmoid=True),
                loss_bbox=dict(type='L1Loss')),
            train_cfg=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4,
                              min_pos_iou=0, ignore_iof_thr=-1),
                sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1),
            test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.05, max_per_img=20,
                          nms=dict(type='nms', iou_threshold=0.5))),
        train_dataloader=dict(
            batch_size=4, num_workers=0,
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
            dataset=dict(dataset, ann_file='annotations/train.json',
                         data_prefix=dict(img='train/'))),
        val_dataloader=dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(dataset, ann_file='annotations/val.json', data_prefix=dict(img='val/'),
                         test_mode=True)),
        val_evaluator=dict(type='CocoMetric', metric='bbox',
                           ann_file=str(data_root / 'annotations/val.json')),
        train_cfg=dict(by_epoch=True, max_epochs=length, val_interval=2) if by_epoch else
        dict(by_epoch=False, max_iters=length, val_interval=4),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=length),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 2,
                            by_epoch=by_epoch)),
        log_processor=dict(by_epoch=by_epoch, window_size=1),
        custom_hooks=[dict(type='mmskd.PSKDHook', **(hook or {})),
                      dict(type='mmskd.RandomStreamsHook')] +
        [dict(type='EMAHook', momentum=0.1)] * ema,
        visualizer=dict(type='DetLocalVisualizer', name=work_dir.name,
                        vis_backends=[dict(type='LocalVisBackend')]),
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        randomness=dict(seed=0),
        experiment_name=work_dir.name,
        log_level='ERROR',
        work_dir=str(work_dir)))
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def two_stage_config(*args, **kwargs) -> Config:
    """As :func:`config`, with a Faster R-CNN of few channels."""
    cfg = config(*args, **kwargs)
    head, assigner = cfg.model.pop('bbox_head'), dict(
        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.3, ignore_iof_thr=-1)
    proposals = dict(nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7),
                     min_bbox_size=0)
    sampler = dict(type='RandomSampler', num=16, pos_fraction=0.25, neg_pos_ub=-1)
    loss_bbox = dict(type='L1Loss')
    cfg.model.update(
        type='FasterRCNN',
        rpn_head=dict(
            type='RPNHead', in_channels=16, feat_channels=16, anchor_generator=dict(
                head.anchor_generator, octave_base_scale=None, scales_per_octave=None, scales=[3]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True), loss_bbox=loss_bbox),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor', out_channels=16, featmap_strides=[8, 16, 32],
                roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1)),
            bbox_head=dict(
                type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=16, roi_feat_size=3,
                num_classes=5, bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=loss_bbox)),
        train_cfg=dict(
            rpn=dict(assigner=dict(assigner, match_low_quality=True), sampler=dict(
                sampler, add_gt_as_proposals=False), allowed_border=-1, pos_weight=-1),
            rpn_proposal=proposals,
            rcnn=dict(assigner=assigner, sampler=dict(sampler, add_gt_as_proposals=True),
                      pos_weight=-1)),
        test_cfg=dict(rpn=proposals, rcnn=dict(score_thr=0.05, max_per_img=20,
                                               nms=dict(type='nms', iou_threshold=0.5))))
    return cfg


def runner(cfg: Config) -> Runner:
    """A Runner of its own: each gets an experiment name that no other has had."""
    runner.count = getattr(runner, 'count', 0) + 1
    cfg = Config(cfg.to_dict())
    cfg.experiment_name = f'{cfg.experiment_name}-{runner.count}'
    cfg.visualizer.name = cfg.experiment_name
    return Runner.from_cfg(cfg)


def train(cfg: Config) -> Runner:
    """Train to the end."""
    finished = runner(cfg)
    finished.train()
    return finished


def weights(runner: Runner) -> Dict[str, Tensor]:
    """A copy of all parameters and buffers, and those of EMAHook."""
    state = dict(runner.model.state_dict())
    for hook in runner.hooks:
        if hasattr(hook, 'ema_model'):
            state.update(
                {f'ema.{key}': value for key, value in hook.ema_model.state_dict().items()})
    return {key: value.clone() for key, value in state.items()}


def assert_equal(first: Dict[str, Tensor], second: Dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different, f'{len(different)} of {len(first)} tensors differ, e.g. {different[:3]}'


class Interruption(Exception):
    pass


class InterruptHook(Hook):
    """Pulls the plug in the middle of an iteration."""

    priority = 'LOWEST'

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise Interruption
