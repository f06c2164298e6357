_base_ = 'mmpose::wholebody_2d_keypoint/rtmpose/cocktail14/rtmw-m_8xb1024-270e_cocktail14-256x192.py'  # noqa: E501
# A list replaces that of the base: name its hooks first, or they are lost
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(
            config='mmpose::wholebody_2d_keypoint/rtmpose/cocktail14/'
            'rtmw-l_8xb1024-270e_cocktail14-256x192.py',
            checkpoint='https://download.openmmlab.com/mmpose/v1/projects/rtmw/'
            'rtmw-dw-x-l_simcc-cocktail14_270e-256x192-20231122.pth'),
        losses=[
            dict(type='mmskd.FeatureDistillLoss', weight=7e-5),
            dict(type='mmskd.SimCCDistillLoss', weight=0.1)
        ])
]
