_base_ = [
    '../_base_/models/faster_rcnn_r18.py', '../_base_/aquarium.py',
    '../_base_/schedules/scratch_24e.py'
]
# Half of the animals are 14 to 38 pixels wide, one in twenty less than 7
model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[4], ratios=[0.5, 1.0, 2.0])),
    roi_head=dict(bbox_head=dict(num_classes=7)))
