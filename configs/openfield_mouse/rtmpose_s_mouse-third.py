# The teacher of what is not labelled
_base_ = 'rtmpose_t_mouse-third.py'
model = dict(backbone=dict(deepen_factor=0.33, widen_factor=0.5), head=dict(in_channels=256))
