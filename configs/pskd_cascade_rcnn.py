_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
