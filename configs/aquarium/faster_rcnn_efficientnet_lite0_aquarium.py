_base_ = [
    '../_base_/models/faster_rcnn_efficientnet_lite0.py', '../_base_/aquarium.py',
    '../_base_/schedules/finetune_24e.py'
]
# Half of the animals are 14 to 38 pixels wide, one in twenty less than 7
model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[2], ratios=[0.5, 1.0, 2.0])),
    roi_head=dict(bbox_head=dict(num_classes=7)))
