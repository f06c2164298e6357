_base_ = './faster_rcnn_r18_bccd.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
