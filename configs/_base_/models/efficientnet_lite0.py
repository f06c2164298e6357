# What takes the place of ResNet-18 from scratch: ImageNet weights, of which the stem and the first
# two stages and the statistics of batch norm stay as they are
efficientnet_lite0 = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        _delete_=True,
        type='mmskd.EfficientNetLite',
        arch='lite0',
        out_indices=(2, 3, 4),
        frozen_stages=2,
        norm_eval=True,
        pretrained=True),
    neck=dict(in_channels=[40, 112, 320], start_level=0, num_outs=4))
# Not BN: the head's levels share their layers, but not their statistics
head_norm_cfg = dict(type='GN', num_groups=8)
