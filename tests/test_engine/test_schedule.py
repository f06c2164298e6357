"""Shorter schedules, with all that is timed by them."""
import math
import random

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmskd.config import load_config
from mmskd.engine.schedule import shorten_schedule
from mmskd.optional import HAS_MMDET, HAS_MMPOSE
from tests.support.schedules import by_iterations, events, rates, schedulers

EPOCHS, ITERATIONS = 'EpochBasedTrainLoop', 'IterBasedTrainLoop'


def config(max_epochs=10, schedulers=(), hooks=(), checkpoint=None, **loop):
    return Config(dict(
        train_cfg=dict(type=EPOCHS, max_epochs=max_epochs, **loop),
        param_scheduler=list(schedulers), custom_hooks=list(hooks),
        default_hooks=dict(checkpoint=checkpoint or dict(type='CheckpointHook', interval=1))))


def shortened(*args, **kwargs):
    cfg = config(*args, **kwargs)
    shorten_schedule(cfg, 0.2)
    return cfg


def test_everything_shrinks_alike():
    cfg = config(
        100, [
            dict(type='LinearLR', by_epoch=False, begin=0, end=1000),
            dict(type='CosineAnnealingLR', by_epoch=True, begin=50, end=100, T_max=50),
            dict(type='MultiStepLR', by_epoch=True, end=100, milestones=[70, 90, 91])
        ], [dict(type='PipelineSwitchHook', switch_epoch=80), dict(type='SyncBuffersHook')],
        dict(type='CheckpointHook', interval=10), val_interval=10)
    said = shorten_schedule(cfg, 0.2)
    assert said.startswith('20 instead of 100 epochs;') and 'not scaled' not in said
    assert cfg.train_cfg == dict(type=EPOCHS, max_epochs=20, val_interval=2)
    warm_up, cosine, steps = cfg.param_scheduler
    assert (warm_up.begin, warm_up.end) == (0, 200)
    assert (cosine.begin, cosine.end, cosine.T_max) == (10, 20, 10)
    assert steps.milestones == [14, 18, 18], 'two steps in one epoch are taken together'
    assert cfg.default_hooks.checkpoint.interval == 2
    assert cfg.custom_hooks[0].switch_epoch == 16
    assert cfg.custom_hooks[1] == dict(type='SyncBuffersHook')


def test_iterations_and_one_scheduler():
    cfg = config(checkpoint=dict(by_epoch=False, interval=500, save_begin=4000))
    cfg.train_cfg = dict(type=ITERATIONS, max_iters=5000, dynamic_intervals=[(4000, 100)])
    cfg.param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[3000])
    assert shorten_schedule(cfg, 0.2).startswith('1000 instead of 5000 iters')
    assert cfg.train_cfg.val_interval == 200, "a fifth of the loop's default"
    assert cfg.train_cfg.dynamic_intervals == [(800, 20)]
    assert isinstance(cfg.train_cfg.dynamic_intervals[0], tuple), 'as MMEngine asks for'
    assert cfg.param_scheduler.milestones == [600]
    assert cfg.default_hooks.checkpoint == dict(by_epoch=False, interval=100, save_begin=800)


def test_at_least_one_epoch_and_open_ends_stay():
    cfg = shortened(2, [dict(type='ConstantLR', by_epoch=True, end=10**9)], val_interval=1)
    assert cfg.train_cfg.max_epochs == 1 and cfg.train_cfg.val_interval == 1
    assert cfg.param_scheduler[0].end == 10**9


def test_without_a_length():
    with pytest.raises(ValueError, match='train_cfg has neither max_epochs nor max_iters'):
        shorten_schedule(Config(dict(train_cfg=dict(type='OtherLoop'))), 0.2)


# ----------------------------------------------------------------------- each kind of time, by hand


@pytest.mark.parametrize('before, after', [
    (dict(type='EMAHook', begin_epoch=5), dict(begin_epoch=1)),
    (dict(type='EMAHook', begin_iter=500), dict(begin_iter=100)),
    (dict(type='EMAHook', momentum=0.1), dict(momentum=1 - 0.9**5)),
    (dict(type='EMAHook'), dict(momentum=1 - (1 - 2e-4)**5)),
    (dict(type='EMAHook', ema_type='MomentumAnnealingEMA', gamma=200), dict(gamma=40)),
    (dict(type='EMAHook', ema_type='MomentumAnnealingEMA'), dict(gamma=20)),
    (dict(type='EMAHook', ema_type='StochasticWeightAverage'), {}),
    (dict(type='EarlyStoppingHook', monitor='mAP', patience=6), dict(patience=1)),
    (dict(type='EarlyStoppingHook', monitor='mAP'), dict(patience=1)),
    (dict(type='CheckpointHook', interval=5, save_begin=6), dict(interval=1, save_begin=1)),
    (dict(type='CheckpointHook', interval=500, by_epoch=False), dict(interval=100)),
    (dict(type='mmskd.SafeCheckpointHook', interval=5), dict(interval=1)),
    (dict(type='CheckpointHook', interval=-1), {}),
    (dict(type='AnyHook', switch_epoch=8, interval=10), dict(switch_epoch=1)),
    (dict(type='AnyHook', switch_iter=80), dict(switch_iter=16)),
    (dict(type='AnyHook', num_last_epochs=4), dict(num_last_epochs=0)),
    (dict(type='RTMOModeSwitchHook', epoch_attributes={6: dict(a=1)}),
     dict(epoch_attributes={1: dict(a=1)})),
    (dict(type='LoggerHook', interval=50), {}),
])
def test_hooks_of_ten_epochs(before, after):
    for place in ('custom', 'default'):
        cfg = config(hooks=[before])
        if place == 'default':
            cfg.default_hooks = dict(other=cfg.pop('custom_hooks')[0])
        said = shorten_schedule(cfg, 0.2)
        assert 'not scaled' not in said and cfg.train_cfg.max_epochs == 2
        hook = cfg.default_hooks.other if place == 'default' else cfg.custom_hooks[0]
        for key, value in after.items():
            assert hook[key] == (pytest.approx(value) if isinstance(value, float) else value)
        known = (*after, 'momentum', 'gamma')
        assert {key: hook[key] for key in hook if key not in known} == {
            key: before[key] for key in before if key not in known}


def test_patience_counts_validations():
    hook = dict(type='EarlyStoppingHook', monitor='mAP', patience=5)
    plateau = dict(type='ReduceOnPlateauLR', monitor='mAP', patience=5)
    cfg = shortened(100, [plateau], [hook], val_interval=5)
    assert cfg.train_cfg.val_interval == 1
    assert cfg.custom_hooks[0].patience == cfg.param_scheduler[0].patience == 5, 'as many as before'
    cfg = shortened(100, [dict(plateau, patience=10, cooldown=5)], [hook], val_interval=1)
    assert cfg.custom_hooks[0].patience == 1
    assert (cfg.param_scheduler[0].patience, cfg.param_scheduler[0].cooldown) == (2, 1)
    assert shortened(100, [dict(type='ReduceOnPlateauLR')]).param_scheduler[0].patience == 2


def test_what_is_not_scaled_is_said():
    cfg = config(
        hooks=[dict(type='FreezeHook', unfreeze_epoch=3, by_epoch=True, name='epoch')],
        schedulers=[dict(type='MyLR', warmup_epochs=2, begin=5, end=10)])
    cfg.model = dict(head=dict(train_cfg=dict(update_iter_interval=100, initial_epoch=5)))
    said = shorten_schedule(cfg, 0.2)
    assert said.endswith('not scaled: param_scheduler.0.warmup_epochs, '
                         'custom_hooks.0.unfreeze_epoch, model.head.train_cfg.update_iter_interval')
    assert cfg.param_scheduler[0] == dict(type='MyLR', warmup_epochs=2, begin=1, end=2)
    assert cfg.model.head.train_cfg == dict(update_iter_interval=100, initial_epoch=1)


def test_validation_that_begins_late_or_never():
    assert shortened(val_begin=6).train_cfg.val_begin == 1
    assert shortened(100, val_begin=70).train_cfg.val_begin == 14
    assert shortened(12, val_begin=13).train_cfg.val_begin > 2, 'it never did'


@pytest.mark.parametrize('before, after', [
    (dict(type='CosineRestartLR', periods=[5, 5], restart_weights=[1, 1], eta_min=0), [1, 1]),
    (dict(type='CosineRestartLR', begin=2, periods=[2, 6], restart_weights=[1, 1], eta_min=0),
     [1, 1]),
])
def test_periods_fill_the_schedule(before, after):
    cfg = shortened(schedulers=[before])
    scheduler, = cfg.param_scheduler
    assert scheduler.periods == after
    assert scheduler.get('begin', 0) + sum(scheduler.periods) == cfg.train_cfg.max_epochs


@pytest.mark.parametrize('epochs', [5, 6, 7])
def test_a_cosine_that_begins_halfway(epochs):
    """One epoch has no half, so it becomes two."""
    half = epochs // 2
    cfg = config(epochs, [dict(type='CosineAnnealingLR', begin=half, end=epochs,
                               T_max=epochs - half)])
    assert f'2 instead of {epochs} epochs (the schedule has 2 parts)' in shorten_schedule(cfg, 0.2)
    assert cfg.param_scheduler[0] == dict(type='CosineAnnealingLR', begin=1, end=2, T_max=1,
                                          convert_to_iter_based=True)
    assert rates(cfg)[-1] < 0.05


@pytest.mark.parametrize('kind, decays', [
    (dict(type='StepLR', step_size=4), {12: 1, 20: 3, 100: 19}),
    (dict(type='StepLR', step_size=50), {100: 1}),
    (dict(type='StepLR', step_size=1, gamma=0.9), {12: 1, 20: 3, 100: 19}),
    (dict(type='ExponentialLR', gamma=0.9), {12: 1, 20: 3, 100: 19}),
])
def test_decays_per_epoch_add_up(kind, decays):
    """``decays`` is how often the shorter schedule of that many epochs decays."""
    for epochs, times in decays.items():
        cfg = config(epochs, [kind])
        before = rates(cfg)[-1]
        shorten_schedule(cfg, 0.2)
        after = rates(cfg)
        assert after[-1] == pytest.approx(before)
        assert len(set(after)) == times + 1


def test_a_step_of_the_rate_for_good_stays_one():
    """MMPose's ConstantLR of one epoch multiplies and never divides (RTMO); of two, it divides."""
    step, warm_up = shortened(100, [
        dict(type='ConstantLR', by_epoch=True, factor=0.5, begin=50, end=51),
        dict(type='ConstantLR', by_epoch=True, factor=0.5, begin=0, end=2)]).param_scheduler
    assert step.end - step.begin == 1 and 'convert_to_iter_based' not in step
    assert warm_up.end == 1 and warm_up.convert_to_iter_based


@pytest.mark.parametrize('kind', ['LinearLR', 'ConstantLR'])
def test_a_short_warm_up_still_ends(kind):
    """Of one iteration MMEngine's would never: the rate stayed where it starts."""
    cfg = shortened(schedulers=[dict(type=kind, by_epoch=False, begin=0, end=4)])
    assert cfg.param_scheduler[0].end == 2
    assert rates(cfg)[-1] == pytest.approx(1)


def test_schedulers_of_several_optimizers():
    cfg = config()
    cfg.param_scheduler = dict(backbone=[dict(type='StepLR', step_size=5)],
                               head=dict(type='MultiStepLR', milestones=[5]))
    shorten_schedule(cfg, 0.2)
    assert cfg.param_scheduler.backbone[0].step_size == 1
    assert cfg.param_scheduler.head.milestones == [1]


def test_classes_for_types():
    from mmengine.hooks import EMAHook
    from mmengine.optim import CosineAnnealingLR
    cfg = Config(dict(train_cfg=dict(max_epochs=10),
                      param_scheduler=[dict(type=CosineAnnealingLR, T_max=10)],
                      custom_hooks=[dict(type=EMAHook, begin_epoch=5)]))
    shorten_schedule(cfg, 0.2)
    assert cfg.param_scheduler[0].T_max == 2 and cfg.custom_hooks[0].begin_epoch == 1


def test_momentum_is_scheduled_like_the_rate():
    cfg = config(schedulers=[dict(type='CosineAnnealingMomentum', T_max=10, eta_min=0.1)])
    shorten_schedule(cfg, 0.2)
    assert rates(cfg, name='momentum')[-1] == pytest.approx(0.1, abs=0.02)


def test_milestones_stay_in_order():
    """Also where their scheduler begins late, and what is never reached is not reached either."""
    cfg = config(43, [dict(type='MultiStepLR', begin=8, end=21, milestones=[1, 2, 6, 14])])
    shorten_schedule(cfg, 0.1)
    scheduler, = cfg.param_scheduler
    length = scheduler.end - scheduler.begin
    assert sorted(scheduler.milestones) == scheduler.milestones and scheduler.milestones[0] > 0
    assert scheduler.milestones[2] < length <= scheduler.milestones[3]


# ------------------------------------------------------------------------------ whole trainings


def assert_goes_as_before(stock, cfg, epoch_length=10):
    """The shorter schedule runs, ends where the long one ended, validates, saves and switches."""
    before, after = rates(by_iterations(stock), epoch_length), rates(cfg, epoch_length)
    assert all(map(math.isfinite, after))
    assert max(after) <= 1.3 * max(before)
    assert after[-1] == pytest.approx(before[-1], rel=0.25, abs=0.08)
    old, new = events(stock), events(cfg)
    length = cfg.train_cfg.get('max_epochs') or cfg.train_cfg.get('max_iters')
    was = stock.train_cfg.get('max_epochs') or stock.train_cfg.get('max_iters')
    for what in old:
        assert bool(old[what]) == bool(new[what]), what
        if what.endswith('SwitchHook') and 0 < len(old[what]) < was:
            assert len(new[what]) < length, f'{what}: something is left before the switch'
    for scheduler in schedulers(cfg):
        assert scheduler.get('begin', 0) < scheduler.get('end', 10**9)
        assert 'periods' not in scheduler or min(scheduler['periods']) > 0


SHAPES = {  # a config for each sequence of schedulers and hooks that MMDetection and MMPose ship
    'mmdet': [
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
        'rtmdet/rtmdet-ins_l_8xb32-300e_coco.py', 'tood/tood_r50_fpn_1x_coco.py',
        'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py', 'retinanet/retinanet_r50_fpn_1x_coco.py',
        'masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py',
        'pascal_voc/ssd300_voc0712.py', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        'mask2former_vis/mask2former_r101_8xb2-8e_youtubevis2019.py',
        'boxinst/boxinst_r50_fpn_ms-90k_coco.py', 'yolox/yolox_s_8xb8-300e_coco.py',
        'bytetrack/bytetrack_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval.py',
    ],
    'mmpose': [
        'body_3d_keypoint/motionbert/h36m/motionbert_dstformer-243frm_8xb32-240e_h36m-original.py',
        'body_3d_keypoint/image_pose_lift/h36m/image-pose-lift_tcn_8xb64-200e_h36m.py',
        'body_2d_keypoint/rtmpose/body8/rtmpose-t_8xb1024-700e_body8-halpe26-256x192.py',
        'body_2d_keypoint/rtmpose/coco/rtmpose-m_8xb256-420e_coco-256x192.py',
        'body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py',
        'body_2d_keypoint/yoloxpose/coco/yoloxpose_s_8xb32-300e_coco-640.py',
        'body_2d_keypoint/rtmo/coco/rtmo-s_8xb32-600e_coco-640x640.py',
    ],
}
STOCK = [f'{package}::{name}' for package, there in (('mmdet', HAS_MMDET), ('mmpose', HAS_MMPOSE))
         for name in SHAPES[package] if there]


@pytest.mark.parametrize('name', STOCK)
def test_stock_configs(name):
    stock, cfg = load_config(name), load_config(name)
    said = shorten_schedule(cfg, 0.2)
    assert ('not scaled' in said) == ('dynamic' in name)
    assert_goes_as_before(stock, cfg, epoch_length=200 if stock.train_cfg.get(
        'max_epochs', 100) < 30 else 10)
    share = cfg.train_cfg.get('max_epochs', 0) / stock.train_cfg.get('max_epochs', 1)
    for hook, was in zip(cfg.get('custom_hooks', []), stock.get('custom_hooks', [])):
        if hook['type'] == 'EMAHook':
            assert hook['momentum'] == pytest.approx(was['momentum'] / share, rel=0.01)
            assert hook['gamma'] == round(2000 * share), "the default of the projects' average"


def any_config(draw: random.Random) -> Config:
    """A schedule that MMEngine takes: perhaps a warm-up, then any scheduler, in any loop."""
    by_epoch = draw.random() < 0.6
    length = draw.randint(1, 60) if by_epoch else draw.randint(300, 1500)
    unit = 'epochs' if by_epoch else 'iters'
    cfg = config()
    cfg.train_cfg = {'type': EPOCHS if by_epoch else ITERATIONS, f'max_{unit}': length}
    if draw.random() < 0.5:
        cfg.train_cfg.val_interval = draw.randint(1, length)
    if draw.random() < 0.5:
        cfg.train_cfg.val_begin = draw.randint(1, length)
    checkpoint = dict(by_epoch=by_epoch, interval=draw.randint(1, length),
                      save_last=draw.random() < 0.5)
    if draw.random() < 0.5:
        checkpoint.update(save_begin=draw.randint(0, length))
    cfg.default_hooks.checkpoint = checkpoint
    for hook in (dict(type='EMAHook', begin_epoch=draw.randint(0, length)),
                 dict(type='PipelineSwitchHook', switch_epoch=draw.randint(0, length)),
                 dict(type='YOLOXModeSwitchHook', num_last_epochs=draw.randint(0, length))):
        if by_epoch and draw.random() < 0.3:
            cfg.custom_hooks.append(hook)
    if draw.random() < 0.5:
        kind = draw.choice(['LinearLR', 'ConstantLR'])
        cfg.param_scheduler.append(dict(type=kind, by_epoch=False, end=draw.randint(2, 3)))
    begin = draw.randint(0, length - 1) if by_epoch else draw.randint(0, length - 150)
    end = draw.randint(begin + 1, length) if by_epoch else draw.randint(begin + 150, length)
    cfg.param_scheduler.append(any_scheduler(draw, by_epoch, begin, end))
    return cfg


def any_scheduler(draw: random.Random, by_epoch: bool, begin: int, end: int) -> dict:
    """Any scheduler between two points in time."""
    length = end - begin
    kind = draw.choice(['CosineAnnealing', 'CosineRestart', 'Exponential', 'Linear', 'MultiStep',
                        'Poly', 'Step'])
    common = dict(type=f'{kind}LR', by_epoch=by_epoch, begin=begin, end=end)
    if kind == 'CosineRestart':
        first = draw.randint(max(1, length // 3), length)
        periods = [first, length - first][:2 if length > first else 1]
        return dict(common, periods=periods, restart_weights=[1., 0.5][:len(periods)], eta_min=0.5)
    return dict(common, **{
        'CosineAnnealing': dict(T_max=length) if draw.random() < 0.5 else {},
        'Exponential': dict(gamma=0.95**(10 / length)),
        'Linear': dict(start_factor=1., end_factor=0.3) if length > 1 else dict(start_factor=1.),
        'MultiStep': dict(gamma=0.5, milestones=sorted(
            draw.randint(1, length + 2) for _ in range(draw.randint(1, 4)))),
        'Poly': dict(power=0.9, eta_min=0.1),
        'Step': dict(gamma=0.8**(5 / length), step_size=draw.randint(1, length + 2)),
    }[kind])


@pytest.mark.parametrize('seed', range(3))
def test_any_schedule(seed):
    draw = random.Random(seed)
    for _ in range(60):
        stock = any_config(draw)
        cfg = Config(stock.to_dict())
        shorten_schedule(cfg, draw.choice([0.1, 0.2, 0.3, 0.5]))
        try:
            assert_goes_as_before(stock, cfg)
        except AssertionError as error:
            raise AssertionError(f'{stock.to_dict()}\nbecame\n{cfg.to_dict()}') from error


def test_in_a_runner(tmp_path):
    """What failed in MMEngine itself: averaging, validation and checkpoints that begin halfway."""
    import torch
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Line(BaseModel):

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Linear(1, 1)

        def forward(self, inputs, mode):
            return dict(loss=self.weight(inputs).square().mean()) if mode == 'loss' else [inputs]

    class Count(BaseMetric):

        def process(self, data_batch, data_samples):
            self.results += data_samples

        def compute_metrics(self, results):
            return dict(count=len(results))

    cfg = config(
        schedulers=[dict(type='LinearLR', by_epoch=False, end=4), dict(
            type='CosineRestartLR', periods=[5, 5], restart_weights=[1, 1], eta_min=0)],
        hooks=[dict(type='EMAHook', begin_epoch=5)],
        checkpoint=dict(type='CheckpointHook', interval=2, save_begin=6, save_last=False),
        val_begin=6)
    shorten_schedule(cfg, 0.2)
    data = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=[
        dict(inputs=torch.ones(1))] * 3, collate_fn=dict(type='default_collate'))
    runner = Runner(
        Line(), str(tmp_path), train_dataloader=data, val_dataloader=data, train_cfg=cfg.train_cfg,
        val_cfg=dict(), val_evaluator=[Count(prefix='toy')],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        param_scheduler=cfg.param_scheduler, custom_hooks=cfg.custom_hooks,
        default_hooks=cfg.default_hooks, experiment_name='schedule', default_scope='mmengine')
    runner.train()
    assert runner.epoch == 2 and runner.message_hub.get_scalar('val/toy/count').current() == 3
    assert (tmp_path / 'epoch_1.pth').is_file(), 'saved from halfway on'


def test_hooks_build_with_what_they_get():
    from mmengine.hooks import EMAHook
    cfg = shortened(hooks=[dict(type='EMAHook', begin_epoch=10, momentum=0.9)])
    hook = HOOKS.build(cfg.custom_hooks[0])
    assert isinstance(hook, EMAHook) and hook.begin_epoch <= cfg.train_cfg.max_epochs
    assert 0 < hook.ema_cfg['momentum'] < 1
