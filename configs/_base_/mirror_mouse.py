# A mouse on a treadmill, seen from the side ("top") and in a mirror from below ("bot"), 17
# keypoints, of which a few are hidden: 67 frames to train with, 23 to validate.
# tools/prepare_data.py says where they are and lays them out. mmpose's CocoDataset reads the
# annotations.
dataset_type = 'CocoDataset'
data_root = 'data/mirror_mouse/'
metainfo = dict(
    dataset_name='mirror_mouse',
    # No swaps: the mouse always runs to the right, so nothing is mirrored here
    keypoint_info={
        0: dict(name='paw1LH_top', id=0, color=[213, 94, 0], type='upper', swap=''),
        1: dict(name='paw2LF_top', id=1, color=[230, 159, 0], type='upper', swap=''),
        2: dict(name='paw3RF_top', id=2, color=[0, 114, 178], type='upper', swap=''),
        3: dict(name='paw4RH_top', id=3, color=[86, 180, 233], type='upper', swap=''),
        4: dict(name='tailBase_top', id=4, color=[204, 121, 167], type='upper', swap=''),
        5: dict(name='tailMid_top', id=5, color=[204, 121, 167], type='upper', swap=''),
        6: dict(name='nose_top', id=6, color=[0, 158, 115], type='upper', swap=''),
        7: dict(name='obs_top', id=7, color=[128, 128, 128], type='upper', swap=''),
        8: dict(name='paw1LH_bot', id=8, color=[213, 94, 0], type='lower', swap=''),
        9: dict(name='paw2LF_bot', id=9, color=[230, 159, 0], type='lower', swap=''),
        10: dict(name='paw3RF_bot', id=10, color=[0, 114, 178], type='lower', swap=''),
        11: dict(name='paw4RH_bot', id=11, color=[86, 180, 233], type='lower', swap=''),
        12: dict(name='tailBase_bot', id=12, color=[204, 121, 167], type='lower', swap=''),
        13: dict(name='tailMid_bot', id=13, color=[204, 121, 167], type='lower', swap=''),
        14: dict(name='nose_bot', id=14, color=[0, 158, 115], type='lower', swap=''),
        15: dict(name='obsHigh_bot', id=15, color=[128, 128, 128], type='lower', swap=''),
        16: dict(name='obsLow_bot', id=16, color=[128, 128, 128], type='lower', swap='')
    },
    skeleton_info={
        0: dict(link=('nose_top', 'paw2LF_top'), id=0, color=[0, 114, 178]),
        1: dict(link=('nose_top', 'paw3RF_top'), id=1, color=[0, 114, 178]),
        2: dict(link=('paw2LF_top', 'paw1LH_top'), id=2, color=[0, 114, 178]),
        3: dict(link=('paw3RF_top', 'paw4RH_top'), id=3, color=[0, 114, 178]),
        4: dict(link=('paw1LH_top', 'tailBase_top'), id=4, color=[0, 114, 178]),
        5: dict(link=('paw4RH_top', 'tailBase_top'), id=5, color=[0, 114, 178]),
        6: dict(link=('tailBase_top', 'tailMid_top'), id=6, color=[0, 114, 178]),
        7: dict(link=('nose_bot', 'paw2LF_bot'), id=7, color=[0, 114, 178]),
        8: dict(link=('nose_bot', 'paw3RF_bot'), id=8, color=[0, 114, 178]),
        9: dict(link=('paw2LF_bot', 'paw1LH_bot'), id=9, color=[0, 114, 178]),
        10: dict(link=('paw3RF_bot', 'paw4RH_bot'), id=10, color=[0, 114, 178]),
        11: dict(link=('paw1LH_bot', 'tailBase_bot'), id=11, color=[0, 114, 178]),
        12: dict(link=('paw4RH_bot', 'tailBase_bot'), id=12, color=[0, 114, 178]),
        13: dict(link=('tailBase_bot', 'tailMid_bot'), id=13, color=[0, 114, 178])
    },
    joint_weights=[1.] * 17,
    # Nobody has measured how far annotators differ on mice: COCO's wrists
    sigmas=[0.062] * 17)

codec = dict(
    type='SimCCLabel',
    input_size=(192, 192),
    sigma=(4.9, 4.9),
    simcc_split_ratio=2.0,
    normalize=False,
    use_dark=False)

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    # The camera does not move
    dict(type='RandomBBoxTransform', shift_factor=0.1, scale_factor=[0.8, 1.2], rotate_factor=20),
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
