_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
