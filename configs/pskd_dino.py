_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_hooks = [dict(type='mmskd.PSKDHook', alpha_T=0.8)]
