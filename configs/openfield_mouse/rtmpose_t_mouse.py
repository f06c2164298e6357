_base_ = [
    '../_base_/models/rtmpose_t_stride16.py', '../_base_/openfield_mouse.py',
    '../_base_/schedules/pose_100e.py'
]
codec = _base_.codec
model = dict(
    head=dict(
        out_channels=4,
        input_size=codec['input_size'],
        in_featuremap_size=(8, 8),
        simcc_split_ratio=codec['simcc_split_ratio'],
        decoder=codec))
