_base_ = [
    '../_base_/models/faster_rcnn_efficientnet_lite0.py', '../_base_/bccd.py',
    '../_base_/schedules/finetune_8e.py'
]
# Medians: platelets are 19 pixels wide, red cells 52, white ones 80
model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[2.5], ratios=[1.0])),
    roi_head=dict(bbox_head=dict(num_classes=3)))
