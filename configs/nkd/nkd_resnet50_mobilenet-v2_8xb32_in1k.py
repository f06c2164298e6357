_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
# gamma 1.5, temperature 1, the paper's for ImageNet; its student is MobileNet (yzd-v/cls_KD,
# configs/distillers/imagenet/res50_distill_mv1_img.py), which mmpretrain does not have
custom_hooks = [
    dict(type='mmskd.NKDHook',
         teacher=dict(
             config='mmpretrain::resnet/resnet50_8xb32_in1k.py',
             checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/'
             'resnet50_8xb32_in1k_20210831-ea4938fc.pth'))
]
