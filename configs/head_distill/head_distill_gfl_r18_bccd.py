# Train ../bccd/gfl_r18_bccd.py first
_base_ = '../bccd/gfl_r18_bccd.py'
# A fifth of the schedule
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=10),
    dict(_base_.param_scheduler[1], T_max=max_epochs)
]
default_hooks = dict(checkpoint=dict(interval=1))
custom_hooks = [
    dict(
        type='mmskd.HeadDistillHook',
        checkpoint='work_dirs/gfl_r18_bccd/epoch_24.pth')
]
