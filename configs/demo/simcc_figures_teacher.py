# A larger model, trained for longer, that teaches
_base_ = 'simcc_figures.py'
model = dict(
    backbone=dict(stem_channels=32, base_channels=32), head=dict(in_channels=256))
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
