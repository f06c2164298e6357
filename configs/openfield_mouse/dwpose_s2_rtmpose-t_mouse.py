# Train dwpose_s1_rtmpose-s_rtmpose-t_mouse.py first
_base_ = 'rtmpose_t_mouse.py'
# A fifth of the schedule, as --head-distill makes it
max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=20),
    dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.HeadDistillHook',
        checkpoint='work_dirs/dwpose_s1_rtmpose-s_rtmpose-t_mouse/epoch_100.pth')
]
