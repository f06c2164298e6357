_base_ = 'mmpose::wholebody_2d_keypoint/rtmpose/ubody/rtmpose-l_8xb64-270e_coco-ubody-wholebody-256x192.py'  # noqa: E501
optim_wrapper = dict(clip_grad=dict(max_norm=1., norm_type=2))
# MMPose 1.3.2 looks for COCO's validation set within UBody
val_dataloader = dict(
    dataset=dict(
        data_root='data/', ann_file='coco/annotations/coco_wholebody_val_v1.0.json'))
test_dataloader = val_dataloader
# A list replaces that of the base: name its hooks first, or they are lost
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(
            config='mmpose::wholebody_2d_keypoint/rtmpose/ubody/'
            'rtmpose-x_8xb64-270e_coco-ubody-wholebody-256x192.py',
            checkpoint='https://download.openmmlab.com/mmpose/v1/projects/rtmposev1/'
            'rtmpose-x_ucoco_256x192-05f5bcb7_20230822.pth'),
        losses=[
            dict(type='mmskd.FeatureDistillLoss', weight=7e-5),
            dict(type='mmskd.SimCCDistillLoss', weight=0.1)
        ])
]
