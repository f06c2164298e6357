# Train rtmpose_s_mouse.py first
_base_ = 'rtmpose_t_mouse.py'
# The stock loss is summed over the batch, the terms are not, and they are summed over bins and
# places: these weights give batches of 8 at 128x128 the balance that 0.1 and 7e-5 give batches of
# 64 at 256x192
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(
            config='rtmpose_s_mouse.py', checkpoint='work_dirs/rtmpose_s_mouse/epoch_100.pth'),
        losses=[
            dict(type='mmskd.FeatureDistillLoss', weight=5e-5),
            dict(type='mmskd.SimCCDistillLoss', weight=0.02)
        ])
]
