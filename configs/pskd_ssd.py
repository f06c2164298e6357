_base_ = 'mmdet::ssd/ssd300_coco.py'
# A list replaces that of the base: name its hooks first, or they are lost
custom_hooks = [*_base_.custom_hooks, dict(type='mmskd.PSKDHook', alpha_T=0.8)]
