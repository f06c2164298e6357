# Train rtmpose_s_mouse-third.py first.
# The labels of every third frame; of the others the boxes alone, and what the teacher sees there
_base_ = 'rtmpose_t_mouse.py'
labelled = list(range(0, 87, 3))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CombinedDataset',
        metainfo=_base_.metainfo,
        pipeline=_base_.train_pipeline,
        datasets=[
            dict(_base_.train_dataloader.dataset, pipeline=[], indices=labelled),
            dict(
                _base_.train_dataloader.dataset,
                type='mmskd.UnlabelledCocoDataset',
                pipeline=[],
                indices=[frame for frame in range(87) if frame % 3])
        ]))
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(
            config='rtmpose_s_mouse-third.py',
            checkpoint='work_dirs/rtmpose_s_mouse-third/epoch_100.pth'))
]
