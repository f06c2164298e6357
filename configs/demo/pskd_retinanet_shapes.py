# The same RetinaNet with progressive self-distillation: one hook more, nothing else.
_base_ = 'retinanet_shapes.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
