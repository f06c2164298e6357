# The teacher of stage 1
_base_ = 'rtmpose_t_mirror.py'
model = dict(backbone=dict(deepen_factor=0.33, widen_factor=0.5), head=dict(in_channels=256))
