# Three of the four keypoints: those of the head
_base_ = 'rtmpose_t_mouse.py'
kept = [0, 1, 2]
metainfo = dict(
    _base_.metainfo,
    dataset_name='openfield_mouse_head',
    keypoint_info={index: _base_.metainfo.keypoint_info[index] for index in kept},
    skeleton_info={index: _base_.metainfo.skeleton_info[index] for index in (0, 1)},
    joint_weights=[1.] * len(kept),
    sigmas=_base_.metainfo.sigmas[:len(kept)])
model = dict(head=dict(out_channels=len(kept)))

keep = dict(
    type='KeypointConverter', num_keypoints=len(kept), mapping=list(zip(kept, range(len(kept)))))
data = dict(metainfo=dict(_delete_=True, **metainfo))
train_dataloader = dict(
    dataset=dict(data, pipeline=[_base_.train_pipeline[0], keep, *_base_.train_pipeline[1:]]))
val_dataloader = dict(
    dataset=dict(data, pipeline=[_base_.val_pipeline[0], keep, *_base_.val_pipeline[1:]]))
test_dataloader = val_dataloader
