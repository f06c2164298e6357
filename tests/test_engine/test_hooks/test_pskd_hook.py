"""PSKDHook in real Runner loops: schedule, state, resume, and what it refuses."""
import json
import re

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from mmengine.hooks import Hook  # noqa: E402

from mmskd.checkpoint import load_checkpoint_safely  # noqa: E402
from mmskd.engine.hooks import PSKDHook  # noqa: E402
from mmskd.errors import UsageError  # noqa: E402
from mmskd.models.teachers.past_self import named_tensors  # noqa: E402
from tests.support import detectors, runs  # noqa: E402


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return runs.data(tmp_path_factory.mktemp('shapes') / 'data')


class Recorder(Hook):
    """What the hook did: alpha_t and past self of each iteration, and the student at each start."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.alphas, self.pasts, self.students, self.losses = [], [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        pskd = next(hook for hook in runner.hooks if isinstance(hook, PSKDHook))
        self.alphas.append(pskd.alpha_t if pskd.teacher is not None else 0)
        self.pasts.append(None if pskd.teacher is None else
                          {name: value.clone() for name, value in named_tensors(pskd.teacher)})
        self.students.append({name: value.clone() for name, value in named_tensors(runner.model)})

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: value.item() for key, value in outputs.items()})


def record(cfg):
    runner = runs.runner(cfg)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    return runner, recorder


@pytest.mark.parametrize('loop,length,options,alphas', [
    ('epoch', 5, dict(schedule='falling', begin=2, stop=4, form='kl', about='positives'),
     [0] * 4 + [.8, .8, .4, .4, 0, 0]),
    ('iter', 9, dict(interval=2, begin=2, stop=4, form='rescaled', about='confidence'),
     [0] * 4 + [.4, .4, .8, .8, 0])])
def test_silent_at_first_and_at_last(data_root, tmp_path, loop, length, options, alphas):
    """The past self is asked once in the silence before, never in that after; resumed in each it is
    the same.
    """

    def config(name):
        return runs.config(data_root, tmp_path / name, loop, length, hook=options, log_level='INFO')

    class Asked(Hook):
        priority = 'VERY_LOW'

        def __init__(self):
            self.seen = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            hook = next(hook for hook in runner.hooks if isinstance(hook, PSKDHook))
            self.seen.append(sum(head.paired for head in hook.heads_taught) > 0)
            self.alphas = runner.message_hub.get_scalar('train/pskd_alpha').data[0]

    runner, asked = runs.runner(config('whole')), Asked()
    runner.register_hook(asked)
    runner.train()
    assert list(asked.alphas) == pytest.approx(alphas)
    assert asked.seen == [True] + [alpha > 0 for alpha in alphas[1:]]
    console = next(tmp_path.glob('whole/*/*.log')).read_text()
    unit = 'epoch' if loop == 'epoch' else 'interval'
    assert f"soft targets in the form '{options['form']}' about '{options['about']}' for" in console
    assert f'silent in the first 2 {unit}(s), silent after 4 {unit}(s)' in console
    for iteration in (3, 8):
        cfg = config(f'interrupted{iteration}')
        first = runs.runner(cfg)
        first.register_hook(runs.InterruptHook(iteration))
        with pytest.raises(runs.Interruption):
            first.train()
        cfg = config(f'interrupted{iteration}')
        cfg.resume = True
        runs.assert_equal(runs.weights(runs.train(cfg)), runs.weights(runner))


def test_resumed_with_another_form_and_schedule_it_says_so(data_root, tmp_path):
    runs.train(runs.config(data_root, tmp_path / 'run', length=1))
    cfg = runs.config(data_root, tmp_path / 'run', length=2, log_level='WARNING', hook=dict(
        form='added', about='positives', schedule='constant', begin=1))
    cfg.resume = True
    runs.train(cfg)
    console = ''.join(path.read_text() for path in tmp_path.glob('run/*/*.log'))
    for option, before, now in (('form', 'None', "'added'"), ('about', "'all'", "'positives'"),
                                ('schedule', "'rising'", "'constant'"), ('begin', '0', '1')):
        assert (f'PSKDHook.{option} was {before} when the checkpoint was saved, and is {now}'
                in console)


def test_a_head_that_loses_the_prediction_is_refused_before_the_silence_ends():
    model = detectors.build('retinanet')
    head = model.bbox_head
    stock = head.loss_by_feat
    head.loss_by_feat = lambda scores, *args, **kwargs: stock(
        [score * 1. for score in scores], *args, **kwargs)
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook._speaks = False
    with pytest.raises(RuntimeError, match='only 0 of 5 calls of PSKDFocalLoss'):
        detectors.losses(model)


@pytest.mark.parametrize('options, message',
                         [(dict(begin=3), 'begin=3 leaves none of the 3 epochs'),
                          (dict(stop=4), 'stop=4 is behind the last of the 3')])
def test_a_schedule_outside_of_the_run_is_refused(data_root, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        runs.train(runs.config(data_root, tmp_path / 'run', length=3, hook=options))


@pytest.mark.parametrize('loop,length,interval,ema', [
    ('epoch', 5, None, True), ('epoch', 5, 2, False),
    ('iter', 10, None, False), ('iter', 10, 3, True)])
def test_resumed_equals_never_interrupted(data_root, tmp_path, loop, length, interval, ema):
    def config(name):
        return runs.config(data_root, tmp_path / name, loop, length, ema, dict(interval=interval))

    whole = runs.weights(runs.train(config('whole')))
    for iteration in (5, 8):
        name = f'interrupted{iteration}'
        first = runs.runner(config(name))
        first.register_hook(runs.InterruptHook(iteration))
        with pytest.raises(runs.Interruption):
            first.train()
        cfg = config(name)
        cfg.resume = True
        resumed = runs.train(cfg)
        assert resumed.iter == (2 * length if loop == 'epoch' else length)
        runs.assert_equal(runs.weights(resumed), whole)


def test_schedule_and_past_self_of_an_epoch_loop(data_root, tmp_path):
    _, seen = record(runs.config(data_root, tmp_path / 'run', length=4, hook=dict(alpha_T=0.8)))
    assert seen.alphas == pytest.approx([0, 0, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8])
    assert seen.pasts[:2] == [None, None]
    for start in (2, 4, 6):
        runs.assert_equal(seen.pasts[start], seen.students[start])
        runs.assert_equal(seen.pasts[start + 1], seen.students[start])


def test_schedule_and_past_self_of_an_iteration_loop(data_root, tmp_path):
    _, seen = record(runs.config(data_root, tmp_path / 'run', 'iter', 7, hook=dict(
        alpha_T=0.9, interval=3)))
    assert seen.alphas == pytest.approx([0, 0, 0, 0.6, 0.6, 0.6, 0.9])
    for iteration, start in ((3, 3), (4, 3), (5, 3), (6, 6)):
        runs.assert_equal(seen.pasts[iteration], seen.students[start])


def test_one_interval_of_an_iteration_loop_is_one_pass_over_the_data(data_root, tmp_path):
    _, seen = record(runs.config(data_root, tmp_path / 'run', 'iter', 5))
    assert [past is not None for past in seen.pasts] == [False, False, True, True, True]


def test_training_with_alpha_zero_is_stock_training(data_root, tmp_path):
    cfg = runs.config(data_root, tmp_path / 'pskd', hook=dict(alpha_T=0.))
    pskd = runs.weights(runs.train(cfg))
    cfg = runs.config(data_root, tmp_path / 'stock')
    cfg.custom_hooks = cfg.custom_hooks[1:]
    runs.assert_equal(pskd, runs.weights(runs.train(cfg)))


def test_alpha_and_disagreement_are_logged(data_root, tmp_path):
    runner = runs.train(
        runs.config(data_root, tmp_path / 'run', length=3, hook=dict(precision=None),
                    log_level='INFO'))
    lines = next(tmp_path.glob('run/*/vis_data/scalars.json')).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if 'pskd_alpha' in row]
    assert [row['pskd_alpha'] for row in rows] == pytest.approx(
        [0, 0, 1.6 / 3, 1.6 / 3, 0.8, 0.8], abs=1e-4)
    assert [row['pskd_disagreement_percent'] > 0
            for row in rows] == [False, False, False, True, False, True]
    console = next(tmp_path.glob('run/*/*.log')).read_text()
    assert 'pskd_alpha: 0.8000' in console and float(
        re.findall(r'pskd_disagreement_percent: (\S+)', console)[-1]) > 0
    assert 'and runs in the precision of the student' in console
    assert 'FocalLoss -> PSKDFocalLoss' in console
    assert 'loss' in rows[0] and rows[0]['loss'] == pytest.approx(
        rows[0]['loss_cls'] + rows[0]['loss_bbox'], rel=1e-3)
    assert runner.message_hub.get_scalar('train/pskd_alpha').current() == pytest.approx(0.8)


def test_a_checkpoint_holds_the_past_self_only_where_it_is_needed(data_root, tmp_path):
    runs.train(runs.config(data_root, tmp_path / 'epoch', length=3, ema=True))
    runs.train(runs.config(data_root, tmp_path / 'iter', 'iter', 8, hook=dict(interval=4)))
    runs.train(runs.config(data_root, tmp_path / 'epochs', length=5, hook=dict(interval=2)))

    def carried(name):
        return [PSKDHook.state_key in load_checkpoint_safely(path)
                for path in sorted((tmp_path / name).glob('*.pth'))]

    assert carried('epoch') == [False, False, False]  # the student is the next past self
    assert carried('iter') == [False, False, True, False]  # after 2, 4, 6, 8
    assert carried('epochs') == [False, False, True, False, True]


def test_checkpoint_has_the_keys_of_the_stock_model_and_the_model_is_given_back(
        data_root, tmp_path):
    runner = runs.train(runs.config(data_root, tmp_path / 'run', length=2))
    saved = load_checkpoint_safely(str(tmp_path / 'run/epoch_2.pth'))
    stock = detectors.MODELS.build(runner.cfg.model)
    stock.load_state_dict(saved['state_dict'], strict=True)
    assert type(runner.model.bbox_head.loss_cls).__name__ == 'FocalLoss'
    assert not runner.model._forward_pre_hooks and not runner.model.backbone._forward_hooks


def test_a_checkpoint_of_stock_training_can_be_resumed_with_pskd(data_root, tmp_path):
    cfg = runs.config(data_root, tmp_path / 'run', length=2)
    cfg.custom_hooks = cfg.custom_hooks[1:]
    runs.train(cfg)
    cfg = runs.config(data_root, tmp_path / 'run', length=4)
    cfg.resume = True
    _, seen = record(cfg)
    assert seen.alphas == pytest.approx([0.6, 0.6, 0.8, 0.8])
    runs.assert_equal(seen.pasts[0], seen.students[0])


def test_a_past_self_of_another_model_is_refused(data_root, tmp_path):
    hook = PSKDHook()
    hook.attach(detectors.build('retinanet'))
    with pytest.raises(ValueError, match='another model'):
        hook._past.load_state_dict({})


@pytest.mark.parametrize('changes', [
    dict(optim_wrapper__accumulative_counts=2),
    dict(model__backbone__frozen_stages=2),
    dict(model__data_preprocessor__batch_augments=[
        dict(type='BatchSyncRandomResize', random_size_range=(64, 128), size_divisor=32,
             interval=1)]),
    dict(hook=dict(precision='bfloat16')),
    dict(activation_checkpointing=['backbone', 'bbox_head.cls_convs']),
], ids=['accumulation', 'frozen', 'multiscale', 'precision', 'checkpointing'])
def test_trains_with(data_root, tmp_path, changes):
    runner, seen = record(runs.config(data_root, tmp_path / 'run', length=3, **changes))
    assert all(value == value and abs(value) < 1e4 for row in seen.losses for value in row.values())
    assert not torch.equal(seen.students[0]['bbox_head.retina_cls.weight'],
                           runner.model.bbox_head.retina_cls.weight)


@pytest.mark.parametrize('family', ['rtmdet', 'yolox', 'detr'])
def test_mixed_precision(family):
    """What AmpOptimWrapper does around the forward pass.

    mmengine has no AmpOptimWrapper on a CPU, and mmcv's ops, which the other families use, know no
    bfloat16 there.
    """
    model = detectors.build(family)
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = detectors.total(detectors.losses(model))
    loss.backward()
    assert loss.isfinite() and hook.disagreement < 0.1
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters()
               if parameter.grad is not None)


def test_images_without_objects():
    for family in ('retinanet', 'gfl', 'yolox', 'faster_rcnn', 'detr', 'dino'):
        model = detectors.build(family)
        hook = PSKDHook()
        hook.attach(model)
        hook.refresh_teacher()
        hook.alpha_t = 0.5
        loss = detectors.total(detectors.losses(model, detectors.batch(objects=0)))
        loss.backward()
        assert loss.isfinite()


def test_compile_is_refused(data_root, tmp_path):
    with pytest.raises(RuntimeError, match='`compile`.*Remove'):
        runs.train(runs.config(data_root, tmp_path / 'run', compile=True))


def test_a_weight_without_a_past_self_is_refused():
    model = detectors.build('retinanet')
    hook = PSKDHook()
    hook.attach(model)
    detectors.losses(model)  # alpha_t is 0 until it is set
    hook.alpha_t = 0.5
    with pytest.raises(UsageError, match=r'alpha_t is 0.5, .* call refresh_teacher\(\) first'):
        detectors.losses(model)
    hook.refresh_teacher()
    detectors.losses(model)


def test_alpha_0_is_warned_about(data_root, tmp_path):
    hook = dict(type='mmskd.PSKDHook', alpha_T=0)
    runs.train(runs.config(data_root, tmp_path / 'run', length=1, log_level='WARNING',
                           custom_hooks=[hook]))
    assert 'alpha_T is 0, so all targets are hard' in next(tmp_path.glob('run/*/*.log')).read_text()


def test_a_run_without_a_refresh_is_warned_about(data_root, tmp_path):
    runs.train(runs.config(data_root, tmp_path / 'run', length=1, log_level='WARNING'))
    assert 'before the past self is refreshed' in next(tmp_path.glob('run/*/*.log')).read_text()


@pytest.mark.parametrize('options,message',
                         [(dict(alpha_T=1.5), r'alpha_T must be a number in \[0, 1\], got 1.5'),
                          (dict(alpha_T=-0.1), 'alpha_T'),
                          (dict(interval=0), 'interval must be a whole number, at least 1'),
                          (dict(interval=1.5), 'interval'),
                          (dict(precision='int8'), "precision.*'int8'"),
                          (dict(heads='bbox_head'), r"heads must be a list.*\['bbox_head'\]")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PSKDHook(**options)


# Heads and losses ------------------------------------------------------------------------------


def test_an_unknown_loss_is_refused_by_name_and_leaves_the_model_alone():
    model = detectors.build('faster_rcnn', **{'roi_head.bbox_head.loss_cls': dict(
        _delete_=True, type='SeesawLoss', num_classes=80)})
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r'model.roi_head.bbox_head \(Shared2FCBBoxHead\).*'
                       r'SeesawLoss.*Set model.roi_head.bbox_head.loss_cls to one of Cross'):
        PSKDHook().attach(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert not model._forward_pre_hooks


def test_a_bag_loss_is_refused():
    model = detectors.build('mmdet::free_anchor/freeanchor_r50_fpn_1x_coco.py',
                            **detectors.SMALLER['retinanet'])
    with pytest.raises(ValueError, match='FreeAnchorRetinaHead.*bag of anchors'):
        PSKDHook().attach(model)


def test_a_head_without_class_loss_is_refused():
    model = detectors.build('mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py')
    with pytest.raises(ValueError, match='CenterNetHead.*no loss_cls'):
        PSKDHook().attach(model)


def test_a_head_that_loses_the_prediction_is_refused_in_the_first_iteration():
    model = detectors.build('retinanet')
    head = model.bbox_head
    stock = head.loss_by_feat
    head.loss_by_feat = lambda scores, *args, **kwargs: stock(
        [score * 1. for score in scores], *args, **kwargs)
    PSKDHook().attach(model)
    with pytest.raises(RuntimeError, match=r'model.bbox_head \(RetinaHead\): only 0 of 5 calls of '
                       'PSKDFocalLoss'):
        detectors.losses(model)


def test_a_head_that_computes_its_class_loss_itself_is_refused_in_the_first_iterations():
    model = detectors.build('retinanet')
    model.bbox_head.loss_by_feat = lambda scores, *args, **kwargs: dict(
        loss_cls=sum(score.sigmoid().mean() for score in scores))
    PSKDHook().attach(model)
    with pytest.raises(RuntimeError, match='never called PSKDFocalLoss'):
        for _ in range(10):
            detectors.losses(model)


def test_heads_by_name():
    model = detectors.build('faster_rcnn')
    hook = PSKDHook(heads=['rpn_head', 'roi_head.bbox_head'])
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 1.
    stock_rpn = detectors.losses(detectors.build('faster_rcnn'))['loss_rpn_cls']
    soft_rpn = detectors.losses(model)['loss_rpn_cls']
    assert not torch.equal(torch.stack(stock_rpn), torch.stack(soft_rpn))
    assert [(head.name, head.paired) for head in hook.heads_taught] == \
        [('rpn_head', 5), ('roi_head.bbox_head', 1)]
    hook.detach()
    with pytest.raises(ValueError, match='no head mask_head; those with a loss_cls or loss_module '
                       'are: roi_head.bbox_head, rpn_head'):
        PSKDHook(heads=['mask_head']).attach(model)


def test_objectness_is_no_target_unless_asked_for():
    model = detectors.build('faster_rcnn')
    PSKDHook().attach(model)
    assert type(model.rpn_head.loss_cls).__name__ == 'CrossEntropyLoss'


@pytest.mark.parametrize('name', [
    'mmdet::libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py',
    'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'mmdet::fsaf/fsaf_r50_fpn_1x_coco.py',
    'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'mmdet::sabl/sabl-retinanet_r50_fpn_1x_coco.py',
    'mmdet::foveabox/fovea_r50_fpn_4xb4-1x_coco.py', 'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py'])
def test_heads_that_nobody_thought_of_work_unasked(name):
    options = {'num_queries': 20} if 'detr' in name else {}
    model = detectors.build(name, **options)
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    loss = detectors.total(detectors.losses(model))
    loss.backward()
    assert loss.isfinite()
    assert all(head.paired > 0 for head in hook.heads_taught)


def test_a_soft_loss_that_the_config_names_is_used_as_it_is():
    soft = dict(_delete_=True, type='mmskd.PSKDFocalLoss', gamma=1.5)
    model = detectors.build('retinanet', **{'bbox_head.loss_cls': soft})
    stock = detectors.total(detectors.losses(model))
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 1.
    assert not torch.equal(detectors.total(detectors.losses(model)), stock)
    hook.detach()
    assert type(model.bbox_head.loss_cls).__name__ == 'PSKDFocalLoss'
    assert torch.equal(detectors.total(detectors.losses(model)), stock)


# The past self ---------------------------------------------------------------------------------


def test_the_past_self_runs_in_the_norm_modes_of_the_student():
    """The guard against the collapse: right after a refresh the two selves agree, whatever the
    running statistics are; with a teacher in eval mode they would not.
    """
    model = detectors.build('retinanet', **{'backbone.norm_eval': False,
                                            'backbone.frozen_stages': 1})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(3.)
    hook = PSKDHook(precision=None)
    hook.attach(model)
    hook.refresh_teacher()
    detectors.losses(model)
    assert hook.disagreement == 0
    frozen, learning = hook.teacher.backbone.layer1[0].bn1, hook.teacher.backbone.layer4[0].bn1
    assert not frozen.training and learning.training
    assert (learning.running_mean == 3).all()

    model.eval()  # the student's modes are followed at each step
    detectors.losses(model)
    assert not learning.training and hook.disagreement == 0


def test_the_past_self_takes_no_gradient_and_no_part_in_prediction():
    model = detectors.build('retinanet')
    hook = PSKDHook(precision=None)
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    detectors.total(detectors.losses(model)).backward()
    assert all(parameter.grad is None for parameter in hook.teacher.parameters())
    calls = []
    hook.teacher.backbone.register_forward_hook(lambda *args: calls.append(1))
    model.eval()
    with torch.no_grad():
        inputs, samples = detectors.batch()
        model(inputs, samples, mode='predict')
        model(inputs, samples, mode='tensor')
    assert not calls
    detectors.losses(model)
    assert calls == [1]


def test_half_precision_past_self_is_close_to_a_full_one():
    model = detectors.build('retinanet')
    hook = PSKDHook(precision='bfloat16')
    hook.attach(model)
    hook.refresh_teacher()
    detectors.losses(model)
    assert 0 < hook.disagreement < 1e-2


def test_attached_twice_is_refused_and_detached_twice_is_not():
    model = detectors.build('retinanet')
    hook = PSKDHook()
    hook.attach(model)
    with pytest.raises(RuntimeError, match='detach'):
        hook.attach(model)
    hook.detach()
    hook.detach()
    hook.attach(model)
