_base_ = 'dwpose_s1_rtmw-x_rtmw-l_8xb1024-270e_cocktail14-256x192.py'
# A fifth of stage 1, as --head-distill makes it
max_epochs = 54
stage2_num_epochs = 2  # with weaker augmentation, at the end
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
# A list replaces that of the base
param_scheduler = [
    dict(_base_.param_scheduler[0], end=200),
    dict(_base_.param_scheduler[1], begin=max_epochs // 2, end=max_epochs, T_max=max_epochs // 2)
]
custom_hooks = [
    # The average of the weights forgets five times as fast
    dict(_base_.custom_hooks[0], momentum=1 - (1 - 2e-4)**5, gamma=400),
    dict(_base_.custom_hooks[1], switch_epoch=max_epochs - stage2_num_epochs),
    dict(
        type='mmskd.HeadDistillHook',
        checkpoint='work_dirs/dwpose_s1_rtmw-x_rtmw-l_8xb1024-270e_cocktail14-256x192/'
        'epoch_270.pth')
]
