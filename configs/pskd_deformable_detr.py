_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
