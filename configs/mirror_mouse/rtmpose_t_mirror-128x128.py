# A student whose crops are smaller than its teacher's
_base_ = 'rtmpose_t_mirror.py'
codec = dict(_base_.codec, input_size=(128, 128), sigma=(4.0, 4.0))
model = dict(
    head=dict(input_size=codec['input_size'], in_featuremap_size=(8, 8), decoder=codec))

crop = dict(type='TopdownAffine', input_size=codec['input_size'])
train_pipeline = [
    *_base_.train_pipeline[:-3], crop,
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs')
]
val_pipeline = [*_base_.val_pipeline[:-2], crop, dict(type='PackPoseInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = val_dataloader
