_base_ = [
    '../_base_/models/faster_rcnn_r18.py', '../_base_/bccd.py',
    '../_base_/schedules/scratch_24e.py'
]
model = dict(
    # Cells are 14 to 140 pixels wide and about as high
    rpn_head=dict(anchor_generator=dict(scales=[4], ratios=[1.0])),
    roi_head=dict(bbox_head=dict(num_classes=3)))
