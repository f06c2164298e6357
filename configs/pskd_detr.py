_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
