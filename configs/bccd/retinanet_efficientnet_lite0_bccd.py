_base_ = [
    '../_base_/models/retinanet_efficientnet_lite0.py', '../_base_/bccd.py',
    '../_base_/schedules/finetune_8e.py'
]
# Medians: platelets are 19 pixels wide, red cells 52, white ones 80
model = dict(
    bbox_head=dict(
        num_classes=3,
        anchor_generator=dict(octave_base_scale=2.5, scales_per_octave=3, ratios=[1.0])))
# Of 0.5e-3, 1e-3, 2e-3, 4e-3 and 8e-3 the best in mAP
optim_wrapper = dict(optimizer=dict(lr=4e-3))
