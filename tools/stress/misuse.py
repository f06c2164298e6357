"""Start trainings and tests in wrong ways: each must end in one line that names what is wrong.

Each entry of the table is a config, a command line, and what the line must say. It must come before
the first iteration is over, with exit code 2 and without a traceback; nothing may be saved.
"""
import argparse
import os
import random
import re
import shutil
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

import tiny


class Wrong(NamedTuple):
    """A wrong start.

    Attributes:
        says (str): Regular expression of what the line must contain.
        text (str): What is added to the config. Default: ''.
        argv (sequence[str]): What comes after the config. Default: ().
        base (str): Config that the text is added to. Default: 'detector.py'.
        tool (str): Default: 'train.py'.
        config (str, optional): The config to name, where it is not the one that is written.
            Default: None.
        environment (dict): Variables that are set. Default: {}.
    """
    says: str
    text: str = ''
    argv: Sequence[str] = ()
    base: str = 'detector.py'
    tool: str = 'train.py'
    config: Optional[str] = None
    environment: dict = {}


def hook(name: str, options: str = '') -> str:
    return f"custom_hooks = [dict(type='mmskd.{name}', {options})]"


def option(name: str, options: str, says: str, base: str = 'detector.py') -> Wrong:
    return Wrong(rf'{name}: {says}', hook(name, options), base=base)


TEACHER = "teacher=dict(config='detector.py', checkpoint='trained.pth')"
USKD = "layer='middle', channels=8, num_classes=5, loss_module='criterion'"

COMMAND_LINES = [
    Wrong('no config file none.py', config='none.py'),
    Wrong('no config file data', config='data'),
    Wrong('did you mean', config='mmdet::retinanet/retinanet_r50_fpn_1x.py'),
    Wrong('package nopackage is not installed', config='nopackage::a.py'),
    Wrong('not of the form package::path', config='a b::c.py'),
    Wrong('unrecognized arguments: --no-such-flag', argv=['--no-such-flag']),
    Wrong("--cfg-options takes key=value, but got 'model'", argv=['--cfg-options', 'model']),
    Wrong('not allowed with argument --pskd', argv=['--pskd', '--head-distill', 'trained.pth']),
    Wrong('--pskd has no option alpha; there are alpha_T', argv=['--pskd', 'alpha=0.5']),
    Wrong(r"--pskd: .*alpha_T must be a number in \[0, 1\], got 'high'",
          argv=['--pskd', 'alpha_T=high']),
    Wrong('--pskd: .*alpha_T must be', argv=['--pskd', 'alpha_T=2']),
    Wrong('--pskd: .*alpha_T must be', argv=['--pskd', 'alpha_T=-0.1']),
    Wrong('--pskd: .*alpha_T must be', argv=['--pskd', 'alpha_T=None']),
    Wrong('--pskd: .*interval must be a whole number, at least 1', argv=['--pskd', 'interval=0']),
    Wrong('--pskd: .*interval must be', argv=['--pskd', 'interval=1.5']),
    Wrong('--pskd: .*precision must be', argv=['--pskd', 'precision=half']),
    Wrong(r"--pskd: .*heads must be a list of names, as \['bbox_head'\]",
          argv=['--pskd', 'heads=bbox_head']),
    Wrong(r"--pskd: .*loss must be dict\(type='mmskd.NKDLoss'\)",
          argv=['--pskd', 'loss=mmskd.NKDLoss']),
    Wrong('no config file gone.py', argv=['--distill-from', 'gone.py', 'trained.pth']),
    Wrong('no checkpoint gone.pth', argv=['--distill-from', 'detector.py', 'gone.pth']),
    Wrong('no checkpoint gone.pth', argv=['--head-distill', 'gone.pth']),
    Wrong('--head-distill has no option temperature',
          argv=['--head-distill', 'trained.pth', 'temperature=2']),
    Wrong('gamma must be a number, at least 0', argv=['--head-distill', 'trained.pth', 'gamma=-1']),
    Wrong('gamma must be', argv=['--head-distill', 'trained.pth', 'gamma=much']),
    Wrong('gamma and gt_weight are both 0', argv=['--head-distill', 'trained.pth', 'gamma=0']),
    Wrong('gt_weight must be', argv=['--head-distill', 'trained.pth', 'gt_weight=-1']),
    Wrong("reinit_head must be True or False, got 'no'",
          argv=['--head-distill', 'trained.pth', 'reinit_head=no']),
    Wrong(r"heads must be a list of names, as \['bbox_head'\]",
          argv=['--head-distill', 'trained.pth', 'heads=bbox_head']),
    Wrong('--auto-scale-lr needs auto_scale_lr.base_batch_size',
          "auto_scale_lr = dict(_delete_=True)", ['--auto-scale-lr']),
    Wrong('default_hooks has no visualization', 'default_hooks = dict(visualization=None)',
          ['--show-dir', 'x']),
    Wrong('cannot replace the optimizer wrapper Other', "optim_wrapper = dict(type='Other')",
          ['--amp'], 'pose.py'),
    Wrong('RANK is not set, so this process was not started by it', argv=['--launcher', 'pytorch']),
    Wrong('SLURM_PROCID is not set', argv=['--launcher', 'slurm']),
    Wrong('OMPI_COMM_WORLD_LOCAL_RANK is not set', argv=['--launcher', 'mpi']),
    Wrong('invalid choice', argv=['--launcher', 'kubernetes']),
    Wrong('--max-restarts=3', environment=dict(TORCHELASTIC_MAX_RESTARTS='3')),
    Wrong('text.txt', argv=['--work-dir', 'text.txt']),
]

CONFIGS = [
    Wrong('syntax|was never closed|invalid', text='model = dict('),
    Wrong('no config file|there is no file|gone_base', text="_base_ = 'gone_base.py'", base=''),
    Wrong('the config has no model', base='', text='a = 1'),
    Wrong('the config has no train_dataloader', 'train_dataloader = None'),
    Wrong('the config has no train_cfg', 'train_cfg = None'),
    Wrong('the config has no optim_wrapper', 'optim_wrapper = None'),
    Wrong(r'model: there is no model RetinaNett in mmdet; did you mean RetinaNet',
          "model = dict(type='RetinaNett')"),
    Wrong('model.backbone: .*ResNett', "model = dict(backbone=dict(type='ResNett'))"),
    Wrong('model.backbone: ResNet has no option depht', 'model = dict(backbone=dict(depht=18))'),
    Wrong('ResNet has no option dpth', argv=['--cfg-options', 'model.backbone.dpth=18']),
    Wrong('RetinaHead has no option classes', 'model = dict(bbox_head=dict(classes=5))'),
    Wrong('FocalLos.*did you mean.*FocalLoss',
          argv=['--cfg-options', 'model.bbox_head.loss_cls.type=FocalLos']),
    Wrong('there is no optimizer Adamm.*did you mean.*Adam',
          argv=['--cfg-options', 'optim_wrapper.optimizer.type=Adamm']),
    Wrong('there is no optim wrapper|OptimWraper',
          argv=['--cfg-options', 'optim_wrapper.type=OptimWraper']),
    Wrong('LinearLRR', "param_scheduler = dict(type='LinearLRR')"),
    Wrong('ShapesDataset',
          argv=['--cfg-options', 'train_dataloader.dataset.type=mmskd.ShapeDataset']),
    Wrong('DefaultSamplr', argv=['--cfg-options', 'train_dataloader.sampler.type=DefaultSamplr']),
    Wrong('LoadImage',
          argv=['--cfg-options', 'train_dataloader.dataset.pipeline.0.type=LoadImageFromFil']),
    Wrong('CocoMetrik', "val_evaluator = dict(type='CocoMetrik')"),
    Wrong('LogerHook', "default_hooks = dict(logger=dict(type='LogerHook'))"),
    Wrong('did you mean mmskd.PSKDHook', "custom_hooks = [dict(type='mmskd.PSKDHok')]"),
    Wrong('EMAHok', "custom_hooks = [dict(type='EMAHok')]"),
    Wrong('EMAHook has no option momentun', "custom_hooks = [dict(type='EMAHook', momentun=1)]"),
    Wrong('annotations/gone.json .train., which is not there',
          "train_dataloader = dict(dataset=dict(ann_file='annotations/gone.json'))"),
    Wrong('nowhere/annotations/train.json .train., which is not there; put the data set there',
          "train_dataloader = dict(dataset=dict(data_root='nowhere/'))"),
    Wrong('val.jsn', "val_evaluator = dict(ann_file='data/shapes/annotations/val.jsn')"),
    Wrong('there is no file .*nowhere',
          "train_dataloader = dict(dataset=dict(data_prefix=dict(img='nowhere/')))"),
    Wrong("train_dataloader: metainfo.classes has Circle, and .* has no such category",
          "train_dataloader = dict(dataset=dict(metainfo=dict(classes=('Circle', 'square'))))"),
    Wrong("val_dataloader: metainfo.classes is the text 'circle'",
          "val_dataloader = dict(dataset=dict(metainfo=dict(classes='circle')))"),
    Wrong('model.head.out_channels is 17, and the training data have 13 keypoints',
          'model = dict(head=dict(out_channels=17))', base='pose.py'),
    Wrong('custom_hook is a hook that teaches, and nothing reads it there',
          "custom_hooks = []\ncustom_hook = [dict(type='mmskd.PSKDHook')]"),
    Wrong('num_classes is 3, and the training data have 5 classes',
          'model = dict(bbox_head=dict(num_classes=3))'),
    Wrong('no checkpoint gone.pth', "load_from = 'gone.pth'"),
    Wrong('text.txt cannot be read as a checkpoint: it begins with', "load_from = 'text.txt'"),
    Wrong('empty.pth cannot be read as a checkpoint: it is empty', "load_from = 'empty.pth'"),
    Wrong('cut.pth cannot be read as a checkpoint: the end of it', "load_from = 'cut.pth'"),
    Wrong('evil.pth was not loaded: it asks for', "load_from = 'evil.pth'"),
    Wrong('nan.pth to begin with are not finite: ', "load_from = 'nan.pth'"),
    Wrong(
        'evil.pth was not loaded', "model = dict(backbone=dict(init_cfg=dict(_delete_=True, "
        "type='Pretrained', checkpoint='evil.pth')))"),
    Wrong(
        'no checkpoint gone.pth', "model = dict(backbone=dict(init_cfg=dict(_delete_=True, "
        "type='Pretrained', checkpoint='gone.pth')))"),
    Wrong(
        'val_evaluator: mmskd.PoseCalibrationMetric measures models of mmpose, and the model is '
        'one of mmdet',
        "val_evaluator = dict(_delete_=True, type='mmskd.PoseCalibrationMetric')"),
    Wrong('val_evaluator: mmpose.PCKAccuracy measures models of mmpose',
          "val_evaluator = dict(_delete_=True, type='mmpose.PCKAccuracy')"),
    Wrong(
        'val_evaluator: mmskd.DetCalibrationMetric measures models of mmdet, and the model is one '
        'of mmpose',
        "val_evaluator = dict(_delete_=True, type='mmskd.DetCalibrationMetric')", base='pose.py'),
    Wrong('val_evaluator: mmdet.CocoMetric measures models of mmdet',
          "val_evaluator = [dict(type='mmdet.CocoMetric')]", base='pose.py'),
    Wrong('n_bins must be a whole number, at least 1, got 0',
          "val_evaluator = dict(_delete_=True, type='mmskd.DetCalibrationMetric', n_bins=0)"),
    Wrong('iou_thr must be',
          "val_evaluator = dict(_delete_=True, type='mmskd.DetCalibrationMetric', iou_thr='a')"),
    Wrong('score_thr must be',
          "val_evaluator = dict(_delete_=True, type='mmskd.DetCalibrationMetric', score_thr=2)"),
    Wrong('classwise must be True or False',
          "val_evaluator = dict(_delete_=True, type='mmskd.DetCalibrationMetric', classwise='no')"),
    Wrong('bootstrap must be',
          "val_evaluator = dict(_delete_=True, type='mmskd.DetCalibrationMetric', bootstrap=-1)"),
    Wrong("hit must be 'pck' or 'oks'",
          "val_evaluator = dict(_delete_=True, type='mmskd.PoseCalibrationMetric', hit='auc')",
          base='pose.py'),
    Wrong('thr must be',
          "val_evaluator = dict(_delete_=True, type='mmskd.PoseCalibrationMetric', thr=0)",
          base='pose.py'),
    Wrong(
        'norm_item must be',
        "val_evaluator = dict(_delete_=True, type='mmskd.PoseCalibrationMetric', "
        "norm_item='hand')", base='pose.py'),
]

HOOK_OPTIONS = [
    option('PSKDHook', "alpha_T='high'", r"alpha_T must be a number in \[0, 1\], got 'high'"),
    option('PSKDHook', 'alpha_T=1.01', 'alpha_T must be'),
    option('PSKDHook', 'alpha_T=True', 'alpha_T must be'),
    option('PSKDHook', "alpha_T=float('nan')", 'alpha_T must be'),
    option('PSKDHook', 'interval=0', 'interval must be'),
    option('PSKDHook', 'interval=-1', 'interval must be'),
    option('PSKDHook', "interval='2'", 'interval must be'),
    option('PSKDHook', "precision='half'", 'precision must be'),
    option('PSKDHook', 'precision=16', 'precision must be'),
    option('PSKDHook', "heads='bbox_head'", r"heads must be a list of names, as \['bbox_head'\]"),
    option('PSKDHook', 'heads=[]', 'heads must be a list of names'),
    option('PSKDHook', 'heads=[1]', 'heads must be a list of names'),
    option('PSKDHook', "loss='mmskd.NKDLoss'", 'loss must be dict'),
    option('PSKDHook', 'loss=dict(weight=1)', 'loss must be dict'),
    option('PSKDHook', "past='last'", "past must be 'epoch', 'average' or 'best'"),
    option('PSKDHook', "past='average', past_momentum=1",
           'past_momentum must be a number, at least 0, below 1'),
    option('PSKDHook', 'past_momentum=0.9', "past_momentum is of past='average'"),
    option('PSKDHook', "past='best', interval=2", "interval has no part in past='best'"),
    option('PSKDHook', "loss_module='bbox_head.loss_cls'", '.*names the loss of a classifier'),
    option('PSKDHook', 'alpha=0.5',
           r'got an unexpected keyword argument .alpha.; there are alpha_T'),
    option('DistillHook', '', 'missing .*teacher'),
    option('DistillHook', "teacher='t.pth'",
           r"teacher must be dict\(config=..., checkpoint=...\), .*, got 't.pth'"),
    option('DistillHook', "teacher=dict(checkpoint='t.pth')", 'teacher must be dict'),
    option('DistillHook', "teacher=dict(config=None, checkpoint='t.pth')",
           'teacher.config must be a string'),
    option('DistillHook', f"{TEACHER}, schedule='linear'",
           "schedule must be .*'falling' or 'cosine', got 'linear'"),
    option('DistillHook', f'{TEACHER}, decay=False', 'got an unexpected keyword argument .decay.'),
    option('DistillHook', f'{TEACHER}, begin=3, stop=3', 'stop must be a whole number, at least 4'),
    option('PSKDHook', "form='mix'",
           "form must be 'paper', 'kl', 'rescaled', 'added' or None, got 'mix'"),
    option('PSKDHook', "about='objects'", 'about must be'),
    option('PSKDHook', "schedule='linear'", 'schedule must be'),
    option('DistillHook', f'{TEACHER}, gt_weight=-1', 'gt_weight must be'),
    option('DistillHook', f"{TEACHER}, gt_weight='half'", 'gt_weight must be'),
    option('DistillHook', f"{TEACHER}, losses=dict(type='mmskd.NKDLoss')", 'losses must be a list'),
    option('DistillHook', f'{TEACHER}, losses=[]', 'losses must be a list'),
    option('DistillHook', f"{TEACHER}, losses=['mmskd.NKDLoss']", r'losses\[0\] must be dict'),
    option('DistillHook', f"{TEACHER}, heads='bbox_head'", 'heads must be a list'),
    option('HeadDistillHook', '', 'checkpoint must be a string, got None'),
    option('HeadDistillHook', 'checkpoint=None', 'checkpoint must be a string'),
    option('HeadDistillHook', "checkpoint='trained.pth', reinit_head='no'",
           'reinit_head must be True or False'),
    option('HeadDistillHook', "checkpoint='trained.pth', reinit_head=0",
           'reinit_head must be True or False'),
    option('HeadDistillHook', "checkpoint='trained.pth', gamma=-1", 'gamma must be'),
    option('HeadDistillHook', "checkpoint='trained.pth', gamma=0",
           'gamma and gt_weight are both 0'),
    option('HeadDistillHook', "checkpoint='trained.pth', heads=[]", 'heads must be a list'),
    option('NKDHook', "teacher='t.pth'", 'teacher must be dict', 'classifier.py'),
    option('NKDHook', f"{TEACHER}, loss='mmskd.NKDLoss'", 'loss must be dict', 'classifier.py'),
    option('NKDHook', f'{TEACHER}, loss_module=1', 'loss_module must be a string', 'classifier.py'),
    option('USKDHook', "layer='middle'", 'missing .*channels', 'classifier.py'),
    option('USKDHook', "layer='middle', channels=0, num_classes=5", 'channels must be',
           'classifier.py'),
    option('USKDHook', "layer='middle', channels=8, num_classes=1", 'num_classes must be',
           'classifier.py'),
    option('USKDHook', "layer=None, channels=8, num_classes=5", 'layer must be a string',
           'classifier.py'),
    option('USKDHook', f"{USKD}, tokens='all'", "tokens must be 'mean', 'first' or 'each'",
           'classifier.py'),
    option('USKDHook', f"{USKD}, loss='mmskd.USKDLoss'", 'loss must be dict', 'classifier.py'),
    Wrong('USKDLoss: mu must be',
          hook('USKDHook', f"{USKD}, loss=dict(type='mmskd.USKDLoss', mu=-1)"),
          base='classifier.py'),
    Wrong('num_images must be', hook('CalibrationPictureHook', 'num_images=0')),
    Wrong('score_thr must be', hook('CalibrationPictureHook', "score_thr='a'")),
    *(Wrong(f'{name}: {says}',
            hook('DistillHook', f"{TEACHER}, losses=[dict(type='mmskd.{name}', {options})]"))
      for name, options, says in
      [('ClassDistillLoss', 'weight=-1', 'weight must be a number, at least 0, got -1'),
       ('ClassDistillLoss', "weight='much'",
        'weight must be'), ('FeatureDistillLoss', 'weight=-1', 'weight must be'),
       ('FeatureDistillLoss', 'for_batch_size=0',
        'for_batch_size must be'), ('BoxDistillLoss', 'tau=0', 'tau must be a number, above 0'),
       ('BoxDistillLoss', 'weight=-1',
        'weight must be'), ('CWDLoss', 'tau=0', 'tau must be a number, above 0'),
       ('PKDLoss', "weight='6'", 'weight must be'), ('NKDLoss', 'tau=0', 'tau must be'),
       ('NKDLoss', "gamma='a'",
        'gamma must be'), ('SimCCDistillLoss', 'weight=-1',
                           'weight must be'), ('HeatmapDistillLoss', 'weight=-1',
                                               'weight must be'), ]),
]

TOGETHER = [
    Wrong(
        f'{first} and {second}, which do not teach one model together',
        f"custom_hooks = [dict(type='mmskd.{first}', {one}), dict(type='mmskd.{second}', {other})]")
    for first, one, second, other in
    [('PSKDHook', '', 'PSKDHook', ''), ('PSKDHook', '', 'DistillHook', TEACHER),
     ('PSKDHook', '', 'HeadDistillHook', "checkpoint='trained.pth'"),
     ('DistillHook', TEACHER, 'HeadDistillHook', "checkpoint='trained.pth'"),
     ('DistillHook', TEACHER, 'NKDHook', TEACHER), ('PSKDHook', '', 'NKDHook',
                                                    TEACHER), ('USKDHook', USKD, 'USKDHook', USKD),
     ('HeadDistillHook', "checkpoint='trained.pth'", 'USKDHook', USKD), ]
] + [
    Wrong('--distill-from: custom_hooks has PSKDHook and DistillHook', hook('PSKDHook'),
          ['--distill-from', 'detector.py', 'trained.pth']),
    Wrong('--head-distill: custom_hooks has PSKDHook and HeadDistillHook', hook('PSKDHook'),
          ['--head-distill', 'trained.pth']),
    Wrong('--pskd: custom_hooks has DistillHook and PSKDHook', hook('DistillHook', TEACHER),
          ['--pskd']),
]

MODELS = [
    Wrong('PSKDHook: `compile` in the config is not supported',
          f"{hook('PSKDHook')}\ncompile = True"),
    Wrong('has no head rpn_head', hook('PSKDHook', "heads=['rpn_head']")),
    Wrong('has no head roi_head.bbox_head',
          hook('DistillHook', f"{TEACHER}, heads=['roi_head.bbox_head']")),
    Wrong('has no roi_head.bbox_head|has no head roi_head.bbox_head',
          hook('HeadDistillHook', "checkpoint='trained.pth', heads=['roi_head.bbox_head']")),
    Wrong(
        'GHMC, has no soft-target form',
        f"{hook('PSKDHook')}\nmodel = dict(bbox_head=dict(loss_cls="
        "dict(_delete_=True, type='GHMC')))"),
    Wrong('the past self teaches predictions',
          hook('PSKDHook', "loss=dict(type='mmskd.FeatureDistillLoss')")),
    Wrong('NKDLoss goes with CrossEntropyLoss', hook('PSKDHook',
                                                     "loss=dict(type='mmskd.NKDLoss')")),
    Wrong('did you mean mmskd.NKDLoss', hook('PSKDHook', "loss=dict(type='mmskd.NKDLos')")),
    Wrong('FocalLoss in the option `losses` is no loss between a student',
          hook('DistillHook', f"{TEACHER}, losses=[dict(type='FocalLoss')]")),
    Wrong('SimCCDistillLoss goes with',
          hook('DistillHook', f"{TEACHER}, losses=[dict(type='mmskd.SimCCDistillLoss')]")),
    Wrong('HeatmapDistillLoss goes with',
          hook('DistillHook', f"{TEACHER}, losses=[dict(type='mmskd.HeatmapDistillLoss')]")),
    Wrong('is no classifier', hook('NKDHook', TEACHER)),
    Wrong('no config file gone.py|gone.py',
          hook('DistillHook', "teacher=dict(config='gone.py', checkpoint='trained.pth')")),
    Wrong('no checkpoint gone.pth',
          hook('DistillHook', "teacher=dict(config='detector.py', checkpoint='gone.pth')")),
    Wrong('text.txt cannot be read',
          hook('DistillHook', "teacher=dict(config='detector.py', checkpoint='text.txt')")),
    Wrong('empty.pth cannot be read',
          hook('DistillHook', "teacher=dict(config='detector.py', checkpoint='empty.pth')")),
    Wrong('evil.pth was not loaded',
          hook('DistillHook', "teacher=dict(config='detector.py', checkpoint='evil.pth')")),
    Wrong('pose.pth does not fit',
          hook('DistillHook', "teacher=dict(config='detector.py', checkpoint='pose.pth')")),
    Wrong('its weight .* is not finite',
          hook('DistillHook', "teacher=dict(config='detector.py', checkpoint='nan.pth')")),
    Wrong('has no model',
          hook('DistillHook', "teacher=dict(config='nothing.py', checkpoint='trained.pth')")),
    Wrong('do not go together',
          hook('DistillHook', "teacher=dict(config='three.py', checkpoint='three.pth')")),
    Wrong('do not go together|strides|the same question',
          hook('DistillHook', "teacher=dict(config='strides.py', checkpoint='strides.pth')")),
    Wrong('no checkpoint gone.pth', hook('HeadDistillHook', "checkpoint='gone.pth'")),
    Wrong('text.txt cannot be read', hook('HeadDistillHook', "checkpoint='text.txt'")),
    Wrong('evil.pth was not loaded', hook('HeadDistillHook', "checkpoint='evil.pth'")),
    Wrong('three.pth does not fit', hook('HeadDistillHook', "checkpoint='three.pth'")),
    Wrong('nan.pth cannot teach', hook('HeadDistillHook', "checkpoint='nan.pth'")),
    Wrong("no module 'midle'", hook('USKDHook', USKD.replace('middle', 'midle')),
          base='classifier.py'),
    Wrong("no module 'loss'", hook('USKDHook', USKD.replace('criterion', 'loss')),
          base='classifier.py'),
    Wrong(r'not \(N, 9\). Correct `channels`',
          hook('USKDHook', USKD.replace('channels=8', 'channels=9')), base='classifier.py'),
    Wrong('`num_classes`', hook('USKDHook', USKD.replace('num_classes=5', 'num_classes=6')),
          base='classifier.py'),
    Wrong(
        'cannot take the parameters of a module beside the model', f"{hook('USKDHook', USKD)}\n"
        "optim_wrapper = dict(_delete_=True, constructor='Wrappers')\n"
        "custom_imports = dict(imports=['tiny_classifier', 'wrappers'])", base='classifier.py'),
]

RESUMES = [
    Wrong('--resume: there is no checkpoint in work', argv=['--resume']),
    Wrong('no checkpoint gone.pth', argv=['--resume', 'gone.pth']),
    Wrong('no checkpoint data', argv=['--resume', 'data']),
    Wrong('text.txt cannot be read', argv=['--resume', 'text.txt']),
    Wrong('empty.pth cannot be read as a checkpoint: it is empty', argv=['--resume', 'empty.pth']),
    Wrong('cut.pth cannot be read', argv=['--resume', 'cut.pth']),
    Wrong('rotten.pth is damaged: the checksum of', argv=['--resume', 'rotten.pth']),
    Wrong('trained.pth does not fit RetinaNet: it has in another shape 2 weights',
          'model = dict(bbox_head=dict(num_classes=7))', argv=['--resume', 'trained.pth']),
    Wrong('evil.pth was not loaded', argv=['--resume', 'evil.pth']),
    Wrong('weights.pth lacks .*optimizer.*load_from', argv=['--resume', 'weights.pth']),
    Wrong('to go on from: .*epoch_1.pth cannot be read', argv=['--resume', '--work-dir', 'broken']),
    Wrong('to go on from: .*epoch_1.pth cannot be read',
          argv=['--resume', 'auto-or-start', '--work-dir', 'broken']),
    Wrong('was taught by PSKDHook, and custom_hooks has no hook of mmskd',
          argv=['--resume', 'pskd.pth']),
    Wrong('was taught by PSKDHook, and custom_hooks has HeadDistillHook',
          argv=['--head-distill', 'trained.pth', '--resume', 'pskd.pth']),
    Wrong('was taught by PSKDHook, and custom_hooks has DistillHook',
          argv=['--distill-from', 'detector.py', 'trained.pth', '--resume', 'pskd.pth']),
    Wrong('was taught by no hook of mmskd, and custom_hooks has HeadDistillHook',
          argv=['--head-distill', 'trained.pth', '--resume', 'trained.pth']),
    Wrong('is not there|no checkpoint gone.pth', "resume = True\nload_from = 'gone.pth'"),
    Wrong('there is no checkpoint in work', 'resume = True'),
    Wrong('classifier.pth holds no weight of this model', "load_from = 'classifier.pth'"),
]

TESTS = [
    Wrong('no checkpoint gone.pth', argv=['gone.pth'], tool='test.py'),
    Wrong('text.txt cannot be read', argv=['text.txt'], tool='test.py'),
    Wrong('empty.pth cannot be read', argv=['empty.pth'], tool='test.py'),
    Wrong('evil.pth was not loaded', argv=['evil.pth'], tool='test.py'),
    Wrong('classifier.pth holds no weight of this model', argv=['classifier.pth'], tool='test.py'),
    Wrong('trained.pth does not fit RetinaNet: it has in another shape 2 weights',
          'model = dict(bbox_head=dict(num_classes=7))', argv=['trained.pth'], tool='test.py'),
    Wrong('its name must end in .pkl', argv=['trained.pth', '--out', 'a.json'], tool='test.py'),
    Wrong('its name must end in .pkl', argv=['trained.pth', '--dump', 'a.json'], tool='test.py'),
    Wrong('--badcase is for MMPose', argv=['trained.pth', '--badcase'], tool='test.py'),
    Wrong('--tta is for MMDetection', argv=['pose.pth', '--tta'], base='pose.py', tool='test.py'),
    Wrong('no calibrator gone.json', argv=['trained.pth', '--calibrator', 'gone.json'],
          tool='test.py'),
    Wrong('required: checkpoint', tool='test.py'),
    Wrong('the config has no test_dataloader', 'test_dataloader = None', ['trained.pth'],
          tool='test.py'),
    Wrong('measures models of mmpose',
          "test_evaluator = [dict(type='mmskd.PoseCalibrationMetric')]", ['trained.pth'],
          tool='test.py'),
]

TABLE: List[Wrong] = [*COMMAND_LINES, *CONFIGS, *HOOK_OPTIONS, *TOGETHER, *MODELS, *RESUMES, *TESTS]

SOURCES = {
    'three.py': "_base_ = 'detector.py'\nmodel = dict(bbox_head=dict(num_classes=3))\n"
    'train_dataloader = dict('
    "dataset=dict(metainfo=dict(classes=('ball', 'box', 'star'))))",
    'strides.py': "_base_ = 'detector.py'\n"
    'model = dict(bbox_head=dict(anchor_generator=dict(strides=[4, 8, 16])))',
    'nothing.py': 'a = 1',
}
WRAPPERS = """
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch.optim import SGD


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class Wrappers:

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        return OptimWrapperDict(all=OptimWrapper(SGD(model.parameters(), 0.1)))
"""


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ('touch evil_was_here', )


def make_files() -> None:
    """The checkpoints and configs that the table names."""
    import torch

    from mmskd.checkpoint import load_checkpoint_safely
    for name, text in SOURCES.items():
        Path(name).write_text(text)
    Path('wrappers.py').write_text(WRAPPERS)
    for config, target, argv in [('detector.py', 'trained.pth', []),
                                 ('detector.py', 'pskd.pth', ['--pskd']),
                                 ('pose.py', 'pose.pth', []),
                                 ('classifier.py', 'classifier.pth', [])]:
        ending = tiny.run(
            tiny.tool('train.py', config, *argv, '--work-dir', 'made', '--cfg-options',
                      'train_cfg.max_epochs=1'))
        assert ending.code == 0, ending.output
        os.replace('made/epoch_1.pth', target)
    for name in ('three', 'strides'):
        ending = tiny.run(lambda name=name: save_fresh(name))
        assert ending.code == 0, ending.output
    whole = Path('trained.pth').read_bytes()
    Path('text.txt').write_text('no checkpoint\n')
    Path('empty.pth').write_bytes(b'')
    Path('cut.pth').write_bytes(whole[:-5000])
    checkpoint = load_checkpoint_safely('trained.pth')
    weight = checkpoint['state_dict']['bbox_head.retina_cls.weight']
    rotten = bytearray(whole)
    rotten[whole.find(weight.numpy().tobytes())] ^= 1
    Path('rotten.pth').write_bytes(rotten)
    weights = dict(checkpoint['state_dict'])
    torch.save(dict(state_dict=weights, meta=checkpoint['meta']), 'weights.pth')
    bad = dict(weights, **{'bbox_head.retina_cls.weight': torch.full_like(weight, float('nan'))})
    torch.save(dict(state_dict=bad, meta=checkpoint['meta']), 'nan.pth')
    torch.save(dict(state_dict=Evil()), 'evil.pth')
    Path('broken').mkdir(exist_ok=True)
    Path('broken/epoch_1.pth').write_bytes(b'')


def save_fresh(name: str) -> None:
    """A checkpoint of an untrained model."""
    import torch
    from mmdet.registry import MODELS as MMDET_MODELS
    from mmengine.registry import DefaultScope

    from mmskd.config import load_config
    cfg = load_config(f'{name}.py')
    DefaultScope.get_instance('stress', scope_name='mmdet')
    torch.save(dict(state_dict=MMDET_MODELS.build(cfg.model).state_dict(), meta={}), f'{name}.pth')


def try_out(index: int, wrong: Wrong) -> Optional[str]:
    """What is not as it should be; None if all is."""
    config = wrong.config
    if config is None:
        config = f'wrong_{index}.py'
        base = f"_base_ = '{wrong.base}'\n" if wrong.base else ''
        Path(config).write_text(base + wrong.text + '\n')
    work_dir = f'work/{index}'
    argv = list(wrong.argv)
    if '--work-dir' not in argv:
        argv += ['--work-dir', work_dir]
    shutil.rmtree(work_dir, ignore_errors=True)
    call = tiny.tool(wrong.tool, config, *argv)

    def with_environment() -> None:
        os.environ.update(wrong.environment)
        call()

    ending = tiny.run(with_environment)
    line = ending.last_line
    if ending.code != 2:
        return f'exit code {ending.code}: {line}'
    if 'Traceback' in ending.output:
        return f'a traceback: {line}'
    if not line.startswith(f'{wrong.tool}: ') or not re.search(wrong.says, line):
        return f'{wrong.says!r} is not in: {line}'
    if list(Path(work_dir).glob('*.pth')):
        return 'something was saved'
    return 'it ran the file' if Path('evil_was_here').exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tiny.add_arguments(parser)
    args = parser.parse_args()
    with tiny.working_folder(args.folder):
        make_files()
        chosen = list(enumerate(TABLE))
        if args.count:
            chosen = sorted(random.Random(args.seed).sample(chosen, args.count))
        failures = tiny.Failures()
        for index, wrong in chosen:
            problem = try_out(index, wrong)
            if problem:
                failures.append(
                    f'{index} {wrong.config or wrong.text} {" ".join(wrong.argv)}: {problem}')
    tiny.finish('misuse', args, {
        'starts': len(chosen),
        'in one line': len(chosen) - len(failures)
    }, failures)


if __name__ == '__main__':
    main()
