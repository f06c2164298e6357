# A teacher of students whose crops are smaller
_base_ = 'rtmpose_s_mouse.py'
codec = dict(_base_.codec, input_size=(192, 192), sigma=(4.9, 4.9))
model = dict(
    head=dict(input_size=codec['input_size'], in_featuremap_size=(12, 12), decoder=codec))

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
