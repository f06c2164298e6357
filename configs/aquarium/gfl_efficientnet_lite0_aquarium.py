_base_ = [
    '../_base_/models/gfl_efficientnet_lite0.py', '../_base_/aquarium.py',
    '../_base_/schedules/finetune_24e.py'
]
# Half of the animals are 14 to 38 pixels wide, one in twenty less than 7
model = dict(bbox_head=dict(num_classes=7, anchor_generator=dict(octave_base_scale=2)))
