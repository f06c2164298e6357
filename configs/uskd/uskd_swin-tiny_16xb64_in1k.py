_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
# alpha 1, beta 0.1, mu 0.005, the paper's for ImageNet (yzd-v/cls_KD,
# configs/distillers/imagenet/swin-t_sd_img.py)
custom_hooks = [
    dict(type='mmskd.USKDHook', layer='backbone.stages.2', channels=384, num_classes=1000)
]
