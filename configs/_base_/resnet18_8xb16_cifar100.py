# mmpretrain has ResNet-50 on CIFAR-100 and ResNet-18 on CIFAR-10; the former's data and schedule
# are those of the paper (yzd-v/cls_KD, configs/resnet/resnet18_8xb16_cifar100.py).
_base_ = 'mmpretrain::resnet/resnet50_8xb16_cifar100.py'
model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
