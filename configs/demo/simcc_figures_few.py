# A small SimCC, a quarter as wide as ResNet-18, that has the labels of ten figures
_base_ = 'simcc_figures_teacher.py'
model = dict(backbone=dict(stem_channels=16, base_channels=16), head=dict(in_channels=128))

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=80,
        dataset=dict(_base_.train_dataloader.dataset, indices=list(range(0, 800, 80)))))

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
