_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
# alpha 1, beta 0.1, mu 0.005, the paper's for ImageNet (yzd-v/cls_KD,
# configs/distillers/imagenet/mv2_sd_img.py)
custom_hooks = [
    dict(type='mmskd.USKDHook', layer='backbone.layer7', channels=320, num_classes=1000)
]
