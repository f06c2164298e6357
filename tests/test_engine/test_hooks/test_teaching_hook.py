"""What holds for every hook that teaches: no step passes untaught, and a resume is one only if it
was.
"""
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn

pytest.importorskip('mmdet')

from mmdet.models import RetinaNet  # noqa: E402
from mmdet.registry import MODELS as MMDET_MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402

from mmskd.checkpoint import load_checkpoint_safely  # noqa: E402
from mmskd.engine.hooks import (  # noqa: E402
    DistillHook,
    HeadDistillHook,
    NKDHook,
    PSKDHook,
    USKDHook,
    teaching_hook,  # noqa: E402
)
from mmskd.errors import UsageError  # noqa: E402
from tests.support import classifiers, detectors, runs  # noqa: E402


@MMDET_MODELS.register_module(force=True)
class OwnStep(RetinaNet):
    """A detector whose train_step computes the losses without calling the model."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        losses, log = self.parse_losses(self.loss(data['inputs'], data['data_samples']))
        optim_wrapper.update_params(losses)
        return log


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return runs.data(tmp_path_factory.mktemp('shapes') / 'data', train=4, val=2)


@pytest.fixture(scope='module')
def trained(data_root, tmp_path_factory):
    """A checkpoint of the tiny RetinaNet."""
    folder = tmp_path_factory.mktemp('trained')
    runs.train(runs.config(data_root, folder, length=1, custom_hooks=[]))
    return str(folder / 'epoch_1.pth')


def saved(model, folder) -> str:
    path = str(folder / 'trained.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def test_a_training_step_that_does_not_call_the_model_is_an_error(data_root, tmp_path):
    cfg = runs.config(data_root, tmp_path, length=1, model__type='OwnStep')
    with pytest.raises(UsageError,
                       match='PSKDHook: a training step of OwnStep did not call the model'):
        runs.train(cfg)


def test_resume_that_finds_nothing_starts_with_the_trained_features(data_root, trained, tmp_path):
    """What a requeue script does on the first start: --resume with an empty folder."""
    hook = dict(type='mmskd.HeadDistillHook', checkpoint=trained)
    cfg = runs.config(data_root, tmp_path, length=1, custom_hooks=[hook])
    cfg.resume = True
    runner = runs.train(cfg)
    theirs = load_checkpoint_safely(trained)['state_dict']
    mine = runner.model.state_dict()
    frozen = [key for key in theirs if not key.startswith('bbox_head.')]
    assert frozen and all(torch.equal(mine[key], theirs[key]) for key in frozen)


@pytest.mark.parametrize('kind', [HeadDistillHook, DistillHook, PSKDHook])
def test_recomputed_activations_are_those_of_the_teacher(kind, tmp_path):
    student, other = detectors.build('retinanet'), detectors.build('retinanet')
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)
    turn_on_activation_checkpointing(
        student, ['bbox_head.cls_convs.0', 'bbox_head.retina_cls', 'backbone.layer4'])
    if kind is PSKDHook:
        hook = PSKDHook()
        hook.attach(student)
        hook.refresh_teacher()
        hook.alpha_t = 1.
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(0.9)
        detectors.losses(student)
        assert hook.disagreement > 1e-4
        return
    if kind is HeadDistillHook:
        hook = HeadDistillHook(saved(other, tmp_path), reinit_head=True)
    else:
        hook = DistillHook(teacher=other)
    hook.attach(student)
    losses = detectors.losses(student)
    term = losses['distill_loss_cls' if kind is HeadDistillHook else 'loss_logit']
    assert term.abs() > 1e-6


@pytest.mark.parametrize('hook', [PSKDHook(), DistillHook(teacher=nn.Linear(1, 1))],
                         ids=['PSKDHook', 'DistillHook'])
@pytest.mark.parametrize('config,reason', [('autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
                                            'AutoAssignHead.*cannot be taught: its losses weigh'),
                                           ('maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
                                            'MaskFormerHead.*its decoder with its queries'), ],
                         ids=['autoassign', 'maskformer'])
def test_heads_that_no_teacher_can_reach_are_refused_by_every_hook(hook, config, reason):
    register_all_modules(init_default_scope=True)
    model = MMDET_MODELS.build(detectors.stock_config(f'mmdet::{config}'))
    with pytest.raises(UsageError, match=f'{type(hook).__name__}: model.*{reason}'):
        hook.attach(model)
    assert not any(module._forward_pre_hooks
                   for module in model.modules()) and not hook.heads_taught


def test_many_batches_without_objects_do_not_stop_a_run():
    model = detectors.build('yolox')
    hook = PSKDHook()
    hook.attach(model)
    empty = detectors.batch(64, 1, objects=0)
    for _ in range(12):
        detectors.losses(model, empty)
    detectors.losses(model)
    assert hook.heads_taught[0].taught


def test_all_ranks_ask_the_past_self_until_all_have_been_taught(monkeypatch):
    """Else one of them would wait in a norm layer that averages over all."""
    model = detectors.build('retinanet')
    hook = PSKDHook()
    hook.attach(model)
    others = iter([False, False, True])
    monkeypatch.setattr(teaching_hook, 'all_reduce', lambda value, op: value.mul_(next(others)))
    asked = []
    start = hook._mirror.start
    hook._mirror.start = lambda teacher, *ask: (asked.append(teacher), start(teacher, *ask))
    for _ in range(4):
        detectors.losses(model)
    assert len(asked) == 2  # then all were taught


def test_disagreement_is_the_mean_over_all_predictions():
    model = detectors.build('retinanet')
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    with torch.no_grad():
        model.bbox_head.retina_cls.bias += 1.
    seen = []
    model.bbox_head.loss_cls.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    detectors.losses(model)
    mine, theirs = (torch.cat([getattr(each, side).float().sigmoid().flatten() for each in seen])
                    for side in ('student', 'teacher'))
    assert hook.disagreement == pytest.approx((mine - theirs).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize('order', [1, -1])
def test_uskd_goes_with_another_hook_in_either_order(order):
    model = detectors.build('faster_rcnn')
    layer = dict(layer='roi_head.bbox_roi_extractor', channels=256, num_classes=81,
                 loss_module='roi_head.bbox_head.loss_cls')
    hooks = [PSKDHook(), USKDHook(**layer)][::order]
    for hook in hooks:
        hook.attach(model)
    assert 'loss_uskd' in detectors.losses(model)
    with pytest.raises(UsageError, match='DistillHook: another hook.*PSKDHook'):
        DistillHook(teacher=copy.deepcopy(model)).attach(model)
    with pytest.raises(UsageError, match='USKDHook: another hook.*USKDHook'):
        USKDHook(**layer).attach(model)
    for hook in hooks:
        hook.detach()


def test_nkd_and_uskd_are_refused_before_the_first_iteration_where_they_cannot_be():
    detector = detectors.build('faster_rcnn')
    loss = 'roi_head.bbox_head.loss_cls'
    with pytest.raises(UsageError, match='FasterRCNN is no classifier.*DistillHook with losses'):
        NKDHook(copy.deepcopy(detector), loss_module=loss).attach(detector)
    yolact = detectors.build('mmdet::yolact/yolact_r50_1xb8-55e_coco.py', **detectors.FPN)
    with pytest.raises(UsageError, match='YOLACT.*cannot be taught: it classifies priors'):
        USKDHook('neck', 256, 81, loss_module='bbox_head.loss_cls').attach(yolact)


def test_a_teacher_that_equals_the_student_says_nothing_new():
    """SOLO's head returns other scores in evaluation."""
    model = detectors.build('mmdet::solo/solo_r50_fpn_1x_coco.py', **detectors.FPN)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    hook = DistillHook(teacher=copy.deepcopy(model), precision=None)
    hook.attach(model)
    scores = []
    model.mask_head.loss_cls.register_forward_pre_hook(lambda module, args: (args[
        0].student.retain_grad(), scores.append(args[0].student)) and None)
    detectors.losses(model, detectors.batch(64, 1, masks=True))['loss_logit'].backward()
    assert scores[0].grad.abs().max() < 1e-7


@pytest.mark.parametrize('make', [
    lambda heads: PSKDHook(heads=heads), lambda heads: DistillHook(nn.Linear(1, 1), heads=heads),
    lambda heads: HeadDistillHook('x.pth', heads=heads)])
def test_heads_are_a_list(make):
    with pytest.raises(UsageError, match=r"heads must be a list.*\['bbox_head'\]"):
        make('bbox_head')


def test_a_flexible_runner_resumes_parameters_beside_the_model(tmp_path):
    from mmengine.runner import FlexibleRunner
    hook = dict(type='mmskd.USKDHook', layer='net.stage3', channels=classifiers.CHANNELS,
                num_classes=classifiers.NUM_CLASSES, loss_module='criterion')

    def run(name, **changes):
        cfg = classifiers.config(tmp_path / name, [hook], **changes)
        cfg.experiment_name = f'flexible-{name}'
        cfg.strategy = dict(type='SingleDeviceStrategy')
        runner = FlexibleRunner.from_cfg(cfg)
        runner.train()
        uskd = next(hook for hook in runner.hooks if isinstance(hook, USKDHook))
        return [*runner.model.state_dict().values(), *uskd.classifier.state_dict().values()]

    whole = run('whole')
    resumed = run('resumed', resume=True, load_from=str(tmp_path / 'whole/epoch_2.pth'))
    assert all(map(torch.equal, whole, resumed))


def test_a_wrapper_that_splits_the_model_is_refused():
    from types import SimpleNamespace

    from mmengine.model import MMSeparateDistributedDataParallel

    from mmskd.engine.hooks.preconditions import refuse_unsupported
    model = MMSeparateDistributedDataParallel.__new__(MMSeparateDistributedDataParallel)
    nn.Module.__init__(model)
    with pytest.raises(UsageError,
                       match='PSKDHook: the model wrapper MMSeparate.*model_wrapper_cfg'):
        refuse_unsupported(SimpleNamespace(cfg=Config(), model=model), PSKDHook())


@pytest.mark.parametrize('wrapper', [None, 'RepeatDataset', 'ConcatDataset'])
def test_a_class_that_no_category_has_is_refused(wrapper, data_root, tmp_path):
    """MMDetection would leave its objects out, and move the labels of those behind it."""
    cfg = runs.config(data_root, tmp_path, length=1, model__bbox_head__num_classes=3)
    dataset = cfg.train_dataloader.dataset
    dataset.metainfo = dict(classes=('circle', 'square', 'triangle'))
    if wrapper:
        cfg.train_dataloader.dataset = \
            dict(type=wrapper, times=2, dataset=dataset) if wrapper == 'RepeatDataset' else \
            dict(type=wrapper, datasets=[dataset])
    with pytest.raises(UsageError, match=r'PSKDHook: .*json has 2 of the 3 classes of '
                       r'train_dataloader.dataset.metainfo \(circle, square, triangle\)'):
        runs.train(cfg)
    dataset.metainfo = dict(classes=('circle', 'square', 'rhombus'))
    runs.train(cfg)
