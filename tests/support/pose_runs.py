"""Real training runs of tiny pose estimators on a handful of generated figures: seconds each."""
from pathlib import Path
from typing import List, Optional

from mmengine.config import Config

from mmskd.datasets.generate import write_demo_data
from mmskd.datasets.stick_figures import KEYPOINTS

SIZE = (64, 64)
SIMCC = dict(type='SimCCLabel', input_size=SIZE, sigma=(3., 3.), simcc_split_ratio=2.0,
             normalize=False)
HEATMAP = dict(type='MSRAHeatmap', input_size=SIZE, heatmap_size=(16, 16), sigma=1.5)


def data(folder: Path) -> Path:
    """A generated data set in ``folder``: 8 images to train with, 2 to validate."""
    if not folder.exists():
        write_demo_data(folder, kind='stick-figures', train=8, val=2)
    return folder


def head(kind: str, channels: int) -> dict:
    """The config of a head: 'simcc' (RTMPose's) or 'heatmap'."""
    if kind == 'heatmap':
        return dict(
            type='HeatmapHead', in_channels=channels, out_channels=len(KEYPOINTS),
            deconv_out_channels=(8, ), deconv_kernel_sizes=(4, ),
            loss=dict(type='KeypointMSELoss', use_target_weight=True), decoder=HEATMAP)
    return dict(
        type='RTMCCHead', in_channels=channels, out_channels=len(KEYPOINTS), input_size=SIZE,
        in_featuremap_size=(8, 8), simcc_split_ratio=2.0, final_layer_kernel_size=3,
        gau_cfg=dict(hidden_dims=16, s=16, expansion_factor=2, dropout_rate=0., drop_path=0.,
                     act_fn='SiLU', use_rel_bias=False, pos_enc=False),
        loss=dict(type='KLDiscretLoss', use_target_weight=True, beta=10., label_softmax=True),
        decoder=SIMCC)


def model(kind: str = 'simcc', base: int = 8) -> dict:
    """The config of an estimator with a residual net of a few channels."""
    return dict(
        type='TopdownPoseEstimator',
        data_preprocessor=dict(type='PoseDataPreprocessor', mean=[127.5] * 3, std=[64.] * 3),
        backbone=dict(type='ResNet', depth=18, base_channels=base, stem_channels=base, num_stages=2,
                      strides=(1, 2), dilations=(1, 1), out_indices=(1, )),
        head=head(kind, 2 * base), test_cfg=dict(flip_test=True))


def config(data_root: Path, work_dir: Path, hooks: List[dict], kind: str = 'simcc',
           loop: str = 'epoch', length: int = 4, ema: bool = False, base: int = 8,
           model_cfg: Optional[dict] = None, **changes) -> Config:
    """A run that is saved and validated now and then.

    Args:
        data_root (Path): As :func:`data` returned.
        work_dir (Path): Where the run writes.
        hooks (list[dict]): Of mmskd.
        kind (str): 'simcc' or 'heatmap'.
        loop (str): 'epoch' or 'iter'.
        length (int): Epochs or iterations.
        ema (bool): Whether EMAHook runs beside it.
        base (int): Channels of the first stage.
        model_cfg (dict, optional): Another model.
        changes: Anything else, by dotted key (dots written as two underscores).
    """
    codec = HEATMAP if kind == 'heatmap' else SIMCC
    by_epoch = loop == 'epoch'

    def loader(split: str, pipeline: list, **options) -> dict:
        return dict(
            batch_size=4, num_workers=0,
            dataset=dict(type='mmskd.StickFigureDataset', data_root=str(data_root),
                         data_mode='topdown', ann_file=f'annotations/{split}.json',
                         data_prefix=dict(img=f'{split}/'), pipeline=pipeline,
                         test_mode=split == 'val'), **options)

    crop = [dict(type='LoadImage'), dict(type='GetBBoxCenterScale')]
    affine = dict(type='TopdownAffine', input_size=SIZE)
    train_pipeline = [*crop, dict(type='RandomFlip', direction='horizontal'), affine,
                      dict(type='GenerateTarget', encoder=codec), dict(type='PackPoseInputs')]
    cfg = Config(
        dict(
            default_scope='mmpose', model=model_cfg or model(kind, base), train_dataloader=loader(
                'train', train_pipeline, sampler=dict(
                    type='DefaultSampler' if by_epoch else 'InfiniteSampler',
                    shuffle=True)), val_dataloader=loader(
                        'val', [*crop, affine, dict(type='PackPoseInputs')], sampler=dict(
                            type='DefaultSampler', shuffle=False,
                            round_up=False)), val_evaluator=dict(type='PCKAccuracy', thr=0.2),
            train_cfg=dict(by_epoch=True, max_epochs=length, val_interval=2) if by_epoch else dict(
                by_epoch=False, max_iters=length, val_interval=4), val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1)),
            param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False,
                                 end=length), default_hooks=dict(
                                     logger=dict(type='LoggerHook', interval=1), checkpoint=dict(
                                         type='CheckpointHook', interval=1 if by_epoch else 2,
                                         by_epoch=by_epoch)), log_processor=dict(
                                             by_epoch=by_epoch, window_size=1),
            custom_hooks=[*hooks, dict(type='mmskd.RandomStreamsHook')]
            + [dict(type='EMAHook', momentum=0.1)] * ema, visualizer=dict(
                type='PoseLocalVisualizer', name=work_dir.name, vis_backends=[
                    dict(type='LocalVisBackend')
                ]), env_cfg=dict(dist_cfg=dict(backend='gloo')), randomness=dict(seed=0),
            experiment_name=work_dir.name, log_level='ERROR', work_dir=str(work_dir)))
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg
