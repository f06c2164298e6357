_base_ = './resnet18_8xb16_cifar100.py'
model = dict(backbone=dict(depth=34))
