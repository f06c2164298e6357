_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
# A fifth of the schedule
max_epochs = 60
stage2_num_epochs = 4  # with weaker augmentation, at the end
interval = 2
train_cfg = dict(
    max_epochs=max_epochs,
    val_interval=interval,
    dynamic_intervals=[(max_epochs - stage2_num_epochs, 1)])
param_scheduler = [
    dict(_base_.param_scheduler[0], end=200),
    dict(_base_.param_scheduler[1], begin=max_epochs // 2, end=max_epochs, T_max=max_epochs // 2)
]
default_hooks = dict(checkpoint=dict(interval=interval))
custom_hooks = [
    # The average of the weights forgets five times as fast
    dict(_base_.custom_hooks[0], momentum=1 - (1 - 2e-4)**5, gamma=400),
    dict(_base_.custom_hooks[1], switch_epoch=max_epochs - stage2_num_epochs),
    dict(
        type='mmskd.HeadDistillHook',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/'
        'rtmdet_s_8xb32-300e_coco/rtmdet_s_8xb32-300e_coco_20220905_161602-387a891e.pth')
]
