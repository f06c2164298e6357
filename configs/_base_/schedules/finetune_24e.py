_base_ = './finetune_8e.py'
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    _base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=max_epochs)
]
default_hooks = dict(checkpoint=dict(interval=2))
