_base_ = ['./gfl_r18.py', './efficientnet_lite0.py']
model = dict(bbox_head=dict(norm_cfg=_base_.head_norm_cfg), **_base_.efficientnet_lite0)
