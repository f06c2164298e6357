"""Shorter schedules, with all that is timed by them."""
import pytest
from mmengine.config import Config

from mmskd.engine.schedule import shorten_schedule


def config(**changes):
    cfg = Config(dict(
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=10),
        param_scheduler=[
            dict(type='LinearLR', by_epoch=False, begin=0, end=1000),
            dict(type='CosineAnnealingLR', by_epoch=True, begin=50, end=100, T_max=50),
            dict(type='MultiStepLR', by_epoch=True, end=100, milestones=[70, 90, 91])],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=10), timer=dict()),
        custom_hooks=[dict(type='PipelineSwitchHook', switch_epoch=80), dict(type='EMAHook')]))
    cfg.merge_from_dict(changes)
    return cfg


def test_everything_shrinks_alike():
    cfg = config()
    said = shorten_schedule(cfg, 0.2)
    assert '20 instead of 100 epochs' in said
    assert dict(cfg.train_cfg) == dict(type='EpochBasedTrainLoop', max_epochs=20, val_interval=2)
    warm_up, cosine, steps = cfg.param_scheduler
    assert warm_up.end == 200 and warm_up.begin == 0
    assert (cosine.begin, cosine.end, cosine.T_max) == (10, 20, 10)
    assert steps.milestones == [14, 18]
    assert cfg.default_hooks.checkpoint.interval == 2
    assert cfg.custom_hooks[0].switch_epoch == 16 and cfg.custom_hooks[1] == dict(type='EMAHook')


def test_iterations_and_one_scheduler():
    cfg = config()
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=5000, val_interval=500,
                         dynamic_intervals=[(4000, 100)])
    cfg.param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[3000])
    assert '1000 instead of 5000 iters' in shorten_schedule(cfg, 0.2)
    assert cfg.train_cfg.val_interval == 100 and cfg.train_cfg.dynamic_intervals == [(800, 20)]
    assert cfg.param_scheduler.milestones == [600]


def test_at_least_one_epoch_and_open_ends_stay():
    cfg = config(**{'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1})
    cfg.param_scheduler = [dict(type='LinearLR', by_epoch=True, end=10**9)]
    shorten_schedule(cfg, 0.2)
    assert cfg.train_cfg.max_epochs == 1 and cfg.train_cfg.val_interval == 1
    assert cfg.param_scheduler[0].end == 10**9


def test_without_a_length():
    with pytest.raises(ValueError, match='neither max_epochs nor max_iters'):
        shorten_schedule(Config(dict(train_cfg=dict(type='OtherLoop'))), 0.2)
