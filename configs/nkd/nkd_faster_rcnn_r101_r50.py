_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
# Classes of the RoIs only; the paper has no weights for detectors, these are its for ImageNet
custom_hooks = [
    dict(type='mmskd.DistillHook',
         teacher=dict(
             config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
             checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
             'faster_rcnn_r101_fpn_2x_coco/'
             'faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth'),
         losses=[dict(type='mmskd.NKDLoss', ignore_background=True)])
]
