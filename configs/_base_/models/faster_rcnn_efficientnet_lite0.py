_base_ = ['./faster_rcnn_r18.py', './efficientnet_lite0.py']
# On strides 8 to 64, where ResNet-18's begin at 4
model = dict(
    rpn_head=dict(anchor_generator=dict(strides=[8, 16, 32, 64])),
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[8, 16, 32])),
    **_base_.efficientnet_lite0)
