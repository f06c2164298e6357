_base_ = '../_base_/resnet18_8xb16_cifar100.py'
# The paper's gamma and temperature for CIFAR-100 (yzd-v/cls_KD,
# configs/distillers/cifar100/res34_distill_res18_cifar.py)
custom_hooks = [
    dict(type='mmskd.NKDHook',
         teacher=dict(config='mmskd::nkd/resnet34_8xb16_cifar100.py',
                      checkpoint='work_dirs/resnet34_8xb16_cifar100/epoch_200.pth'),
         loss=dict(type='mmskd.NKDLoss', gamma=3.5, tau=3.0))
]
