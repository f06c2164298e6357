# With the labels of every third frame alone; as many iterations as with all
_base_ = 'rtmpose_t_mouse.py'
labelled = list(range(0, 87, 3))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=3,
        dataset=dict(_base_.train_dataloader.dataset, indices=labelled)))
