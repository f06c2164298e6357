# A larger teacher
_base_ = './retinanet_efficientnet_lite0_aquarium.py'
model = dict(backbone=dict(arch='lite2'), neck=dict(in_channels=[48, 120, 352]))
