# From ImageNet weights, with batches of 8. Each epoch is validated, since the mean of the last few
# validations is steadier than the last
_base_ = './scratch_24e.py'
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(
        norm_decay_mult=0, bias_decay_mult=0, custom_keys=dict(backbone=dict(lr_mult=0.5))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(interval=1))
