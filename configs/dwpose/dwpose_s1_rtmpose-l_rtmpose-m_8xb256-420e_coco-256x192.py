_base_ = 'mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-m_8xb256-420e_coco-256x192.py'
optim_wrapper = dict(clip_grad=dict(max_norm=1., norm_type=2))
# A list replaces that of the base: name its hooks first, or they are lost
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(
            config='mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-l_8xb256-420e_coco-256x192.py',
            checkpoint='https://download.openmmlab.com/mmpose/v1/projects/rtmposev1/'
            'rtmpose-l_simcc-coco_pt-aic-coco_420e-256x192-1352a4d2_20230127.pth'),
        losses=[
            dict(type='mmskd.FeatureDistillLoss', weight=7e-5),
            dict(type='mmskd.SimCCDistillLoss', weight=0.1)
        ])
]
