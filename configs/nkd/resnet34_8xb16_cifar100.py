# The teacher of nkd_resnet34_resnet18_8xb16_cifar100.py, to be trained first.
_base_ = '../_base_/resnet34_8xb16_cifar100.py'
