# RetinaNet with ResNet-18 from scratch, on strides 8 to 64
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
# From scratch, so every norm layer learns
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(
        depth=18, frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(strides=[8, 16, 32, 64])))
