# No labels, but all figures, and what a trained model sees in them:
#     python tools/train.py configs/demo/simcc_figures_unlabelled.py --distill-from
#         configs/demo/simcc_figures_teacher.py work_dirs/simcc_figures_teacher/epoch_16.pth
_base_ = 'simcc_figures_few.py'
train_dataloader = dict(
    dataset=dict(_base_.train_dataloader.dataset.dataset, indices=list(range(800)), _delete_=True))
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        losses=[dict(type='mmskd.SimCCDistillLoss', weight=1.0)],
        gt_weight=0.,
        schedule='constant')
]
