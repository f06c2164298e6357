_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
# The paper has no weights for detectors, these are its for ImageNet
custom_hooks = [
    dict(type='mmskd.USKDHook', layer='roi_head.bbox_roi_extractor', channels=256, num_classes=81,
         loss_module='roi_head.bbox_head.loss_cls',
         loss=dict(type='mmskd.USKDLoss', ignore_background=True))
]
