_base_ = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_ViTPose-base_8xb64-210e_coco-256x192.py'  # noqa: E501
# A list replaces that of the base: name its hooks first, or they are lost
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(
            config='mmpose::body_2d_keypoint/topdown_heatmap/coco/'
            'td-hm_ViTPose-huge_8xb64-210e_coco-256x192.py',
            checkpoint='https://download.openmmlab.com/mmpose/v1/body_2d_keypoint/topdown_heatmap/'
            'coco/td-hm_ViTPose-huge_8xb64-210e_coco-256x192-e32adcd4_20230314.pth'),
        losses=[dict(type='mmskd.HeatmapDistillLoss', weight=1.0)])
]
