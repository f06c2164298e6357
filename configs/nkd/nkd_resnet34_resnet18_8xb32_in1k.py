_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
# gamma 1.5, temperature 1, the paper's for ImageNet (yzd-v/cls_KD,
# configs/distillers/imagenet/res34_distill_res18_img.py)
custom_hooks = [
    dict(type='mmskd.NKDHook',
         teacher=dict(
             config='mmpretrain::resnet/resnet34_8xb32_in1k.py',
             checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/'
             'resnet34_8xb32_in1k_20210831-f257d4e6.pth'))
]
