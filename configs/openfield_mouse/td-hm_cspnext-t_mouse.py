# The same backbone with heatmaps at stride 4
_base_ = 'rtmpose_t_mouse.py'
codec = dict(type='MSRAHeatmap', input_size=(128, 128), heatmap_size=(32, 32), sigma=1.5)
model = dict(
    head=dict(
        _delete_=True,
        type='HeatmapHead',
        in_channels=192,
        out_channels=4,
        deconv_out_channels=(64, 64),
        deconv_kernel_sizes=(4, 4),
        loss=dict(type='KeypointMSELoss', use_target_weight=True),
        decoder=codec))

train_pipeline = [
    *_base_.train_pipeline[:-2],
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=1e-3))  # of 5e-4, 1e-3 and 2e-3 the best in PCK
