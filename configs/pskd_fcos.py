_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
