# A small residual network on 5,000 images of CIFAR-10, 2,000 to test, 40 epochs: minutes on a CPU.
# The file holds x_train (5000, 32, 32, 3) uint8, y_train, x_test, y_test and classes; CIFAR-10's
# licence does not let us pass it on.
custom_imports = dict(imports=['benchmarks.small_classifier'])
default_scope = 'mmengine'

model = dict(type='SmallResNet', num_classes=10, label_smoothing=0.0)

ann_file = 'data/cifar10_small/cifar10_small.npz'
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ArrayImages', ann_file=ann_file, split='train', augment=True))
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ArrayImages', ann_file=ann_file, split='test'))
val_evaluator = dict(type='SoftmaxMetric')

max_epochs = 40
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1, val_begin=max_epochs - 4)
val_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=79),
    dict(type='CosineAnnealingLR', T_max=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=79),
    checkpoint=dict(type='CheckpointHook', interval=5, max_keep_ckpts=1))
log_processor = dict(window_size=79)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
