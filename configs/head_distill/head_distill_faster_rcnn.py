_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
# A fifth of the schedule
max_epochs = 2
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=83),
    # Both steps, at once: two epochs have room for one
    dict(_base_.param_scheduler[1], end=max_epochs, milestones=[1, 1])
]
custom_hooks = [
    dict(
        type='mmskd.HeadDistillHook',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/'
        'faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth')
]
