_base_ = '../_base_/resnet18_8xb16_cifar100.py'
# The paper's weights for CIFAR-100 (yzd-v/cls_KD, configs/distillers/cifar100/res18_sd_cifar.py)
custom_hooks = [
    dict(type='mmskd.USKDHook', layer='backbone.layer3', channels=256, num_classes=100,
         loss=dict(type='mmskd.USKDLoss', alpha=0.1, beta=0.1, mu=0.1))
]
