_base_ = 'mmpose::wholebody_2d_keypoint/rtmpose/cocktail14/rtmw-l_8xb320-270e_cocktail14-384x288.py'
# A list replaces that of the base: name its hooks first, or they are lost
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(
            config='mmpose::wholebody_2d_keypoint/rtmpose/cocktail14/'
            'rtmw-x_8xb320-270e_cocktail14-384x288.py',
            checkpoint='https://download.openmmlab.com/mmpose/v1/projects/rtmw/'
            'rtmw-x_simcc-cocktail14_pt-ucoco_270e-384x288-f840f204_20231122.pth'),
        losses=[
            dict(type='mmskd.FeatureDistillLoss', weight=7e-5),
            dict(type='mmskd.SimCCDistillLoss', weight=0.1)
        ])
]
