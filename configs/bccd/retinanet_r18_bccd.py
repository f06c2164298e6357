_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/bccd.py']
# From scratch, so every norm layer learns
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(
        depth=18, frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    bbox_head=dict(
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        # Medians: platelets are 19 pixels wide, red cells 52, white ones 80
        anchor_generator=dict(
            octave_base_scale=2.5, scales_per_octave=3, ratios=[1.0], strides=[8, 16, 32, 64])))
