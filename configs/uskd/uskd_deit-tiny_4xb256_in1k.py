_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
# alpha 1, beta 0.1, mu 0.005, the paper's for ImageNet (yzd-v/cls_KD,
# configs/distillers/imagenet/deit-t_sd_img.py);
# the class token after half of the blocks
custom_hooks = [
    dict(type='mmskd.USKDHook', layer='backbone.layers.5', channels=192, num_classes=1000,
         tokens='first')
]
