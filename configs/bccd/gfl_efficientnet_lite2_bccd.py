# A larger teacher
_base_ = './gfl_efficientnet_lite0_bccd.py'
model = dict(backbone=dict(arch='lite2'), neck=dict(in_channels=[48, 120, 352]))
