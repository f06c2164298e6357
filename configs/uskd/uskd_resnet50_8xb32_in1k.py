_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
# alpha 1, beta 0.1, mu 0.005, the paper's for ImageNet (yzd-v/cls_KD,
# configs/distillers/imagenet/res50_sd_img.py)
custom_hooks = [
    dict(type='mmskd.USKDHook', layer='backbone.layer3', channels=1024, num_classes=1000)
]
