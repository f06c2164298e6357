_base_ = '../_base_/resnet18_8xb16_cifar100.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
