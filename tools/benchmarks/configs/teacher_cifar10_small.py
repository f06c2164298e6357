# A teacher twice as wide
_base_ = './resnet_cifar10_small.py'
model = dict(widths=(64, 128, 256))
