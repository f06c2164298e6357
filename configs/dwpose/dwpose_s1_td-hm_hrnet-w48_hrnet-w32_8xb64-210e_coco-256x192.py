_base_ = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py'
# A list replaces that of the base: name its hooks first, or they are lost
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='mmskd.DistillHook',
        teacher=dict(
            config='mmpose::body_2d_keypoint/topdown_heatmap/coco/'
            'td-hm_hrnet-w48_8xb32-210e_coco-256x192.py',
            checkpoint='https://download.openmmlab.com/mmpose/v1/body_2d_keypoint/topdown_heatmap/'
            'coco/td-hm_hrnet-w48_8xb32-210e_coco-256x192-0e67c616_20220913.pth'),
        losses=[dict(type='mmskd.HeatmapDistillLoss', weight=1.0)])
]
