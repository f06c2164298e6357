# A mouse in an open field, seen from above, four keypoints: 87 frames to train with, 29 to
# validate. tools/prepare_data.py says where they are and lays them out. mmpose's CocoDataset reads
# the annotations.
dataset_type = 'CocoDataset'
data_root = 'data/openfield_mouse/'
metainfo = dict(
    dataset_name='openfield_mouse',
    keypoint_info={
        0: dict(name='snout', id=0, color=[213, 94, 0], type='upper', swap=''),
        1: dict(name='leftear', id=1, color=[0, 114, 178], type='upper', swap='rightear'),
        2: dict(name='rightear', id=2, color=[86, 180, 233], type='upper', swap='leftear'),
        3: dict(name='tailbase', id=3, color=[230, 159, 0], type='lower', swap='')
    },
    skeleton_info={
        0: dict(link=('snout', 'leftear'), id=0, color=[0, 114, 178]),
        1: dict(link=('snout', 'rightear'), id=1, color=[86, 180, 233]),
        2: dict(link=('leftear', 'tailbase'), id=2, color=[0, 114, 178]),
        3: dict(link=('rightear', 'tailbase'), id=3, color=[86, 180, 233])
    },
    joint_weights=[1.] * 4,
    # Nobody has measured how far annotators differ on mice: COCO's ears and hips
    sigmas=[0.035, 0.035, 0.035, 0.107])

codec = dict(
    type='SimCCLabel',
    input_size=(128, 128),
    sigma=(4.0, 4.0),
    simcc_split_ratio=2.0,
    normalize=False,
    use_dark=False)

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    # No side is up in an open field
    dict(type='RandomBBoxTransform', shift_factor=0.1, scale_factor=[0.7, 1.3], rotate_factor=90),
    dict(type='TopdownAffine', input_size=codec['input_size']),
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs')
]
val_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=codec['input_size']),
    dict(type='PackPoseInputs')
]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_mode='topdown',
        metainfo=metainfo,
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_mode='topdown',
        metainfo=metainfo,
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=val_pipeline))
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='PCKAccuracy', thr=0.05, norm_item='bbox'),
    dict(type='AUC'),
    dict(type='EPE')
]
test_evaluator = val_evaluator
