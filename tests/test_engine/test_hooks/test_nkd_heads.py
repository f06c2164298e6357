"""NKDLoss in DistillHook and PSKDHook, on the heads of detectors and pose estimators that have a
softmax.
"""
import copy

import pytest
import torch

from mmskd.engine.hooks import DistillHook, PSKDHook
from mmskd.models.pairing import has_pair, map_leaves, student_side, teacher_side
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

if HAS_MMDET:
    from tests.support import detectors, runs
if HAS_MMPOSE:
    from tests.support import poses

needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')

SOFTMAX = ['faster_rcnn', 'cascade_rcnn', 'ssd', 'detr']
CHANGES = {
    'ssd': {'train_cfg.neg_pos_ratio': 10**6},  # all negatives: else it sums over the hardest
    'faster_rcnn': {'roi_head.bbox_head.fc_out_channels': 64},
    'cascade_rcnn': {
        key: value
        for stage in range(3)
        for key, value in ((f'roi_head.bbox_head.{stage}.fc_out_channels', 64),
                           (f'train_cfg.rcnn.{stage}.sampler.num', 64))
    },
}


def build(family):
    return detectors.build(family, **CHANGES.get(family, {}))


def other(model):
    """A model that predicts something else."""
    teacher = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for param in teacher.parameters():
            param += 0.03 * torch.randn(param.shape, generator=generator)
    return teacher


def listen(hook, calls):
    """Keep what the heads' own losses are called with."""
    for head in hook.heads_taught:
        for loss in head.losses.values():
            loss.register_forward_pre_hook(
                lambda module, args, kwargs: calls.append((module, args, kwargs))
                if has_pair(args) else None, with_kwargs=True)


def nkd(student, teacher, label, gamma=1.5, tau=1., ignored=None):
    """Of each sample, by the equation: S and T, then the softmax among the other classes."""
    values = []
    for s, t, i in zip(student, teacher, label.tolist()):
        if i == ignored:
            values.append(s.sum() * 0)
            continue
        others = [k for k in range(len(s)) if k not in (i, ignored)]
        log_s, log_t = (s[others] / tau).log_softmax(0), (t[others] / tau).log_softmax(0)
        values.append(-t.softmax(0)[i] * s.log_softmax(0)[i] -
                      gamma * tau**2 * (log_t.exp() * log_s).sum())
    return torch.stack(values)


def expected(calls, **options):
    """The sum over the calls of the heads' own losses, as these weigh and average."""
    total = 0
    for module, args, kwargs in calls:
        student, teacher = student_side(args[0]).double(), teacher_side(args[0]).double()
        label = args[1]
        weight = args[2] if len(args) > 2 else kwargs.get('weight')
        weight = torch.ones(len(label)) if weight is None else weight
        if module.class_weight is not None:
            weight = weight * torch.tensor(module.class_weight)[label]
        factor = kwargs.get('avg_factor')
        loss = (nkd(student, teacher, label, **options) * weight).sum()
        total = total + loss / (factor or 1.)
    return total


def terms(losses, stock):
    """What the hook added, whether it has a name of its own or is a part of the class loss."""
    return detectors.total(losses) - detectors.total(stock)


@needs_mmdet
@pytest.mark.parametrize('family, ignore_background', [
    *((family, False) for family in SOFTMAX), ('faster_rcnn', True)])
def test_another_model_teaches(family, ignore_background):
    model = build(family)
    stock = detectors.losses(model)
    hook = DistillHook(teacher=other(model), schedule='constant',
                       losses=[dict(type='mmskd.NKDLoss', ignore_background=ignore_background)])
    hook.attach(model)
    calls = []
    listen(hook, calls)
    losses = detectors.losses(model)
    assert ('loss_nkd' in losses) == (family != 'ssd')
    background = stock_classes(model) if ignore_background else None
    if family == 'cascade_rcnn':
        weights = model.roi_head.stage_loss_weights
        reference = sum(weight * expected([call], ignored=background)
                        for weight, call in zip(weights, calls))
    else:
        reference = expected(calls, ignored=background)
        reference = reference / max(_positives(calls), 1) if family == 'ssd' else reference
    assert terms(losses, stock).item() == pytest.approx(reference.item(), rel=1e-4)
    for key in stock:
        if family != 'ssd' and 'loss' in key:
            assert detectors.total({key: losses[key]}) == detectors.total({key: stock[key]}), key
    detectors.total(losses).backward()
    hook.detach()


def stock_classes(model):
    head = getattr(model, 'bbox_head', None)
    if head is None:
        head = model.roi_head.bbox_head
        head = head if hasattr(head, 'num_classes') else head[0]
    return head.num_classes


def _positives(calls):
    """Of SSD's images together."""
    return sum(int((call[1][1] < call[1][0].size(1) - 1).sum()) for call in calls)


@needs_mmdet
@pytest.mark.parametrize('family', SOFTMAX)
def test_the_past_self_teaches(family):
    model = build(family)
    hook = PSKDHook(loss=dict(type='mmskd.NKDLoss'))
    stock = detectors.losses(model)
    gradient = gradients(model, stock)
    hook.attach(model)
    for past in (False, True):  # without a weight
        if past:
            hook.refresh_teacher()
        losses = detectors.losses(model)
        assert 'loss_nkd' not in losses
        assert torch.equal(detectors.total(losses), detectors.total(stock))
        for mine, theirs in zip(gradients(model, losses), gradient):
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)
    seen = []
    for alpha_t in (0.25, 0.5):
        hook.alpha_t = alpha_t
        seen.append(terms(detectors.losses(model), stock).item())
    assert seen[0] > 0 and seen[1] == pytest.approx(2 * seen[0], rel=1e-3)
    hook.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def gradients(model, losses):
    model.zero_grad()
    detectors.total(losses).backward()
    return [None if param.grad is None else param.grad.clone() for param in model.parameters()]


@needs_mmdet
def test_a_run_resumes_where_it_was(tmp_path):
    data_root = runs.data(tmp_path / 'data')
    make = lambda name: runs.two_stage_config(  # noqa: E731
        data_root, tmp_path / name, length=3, hook=dict(loss=dict(type='mmskd.NKDLoss', gamma=1.)))
    whole = runs.train(make('whole'))
    term, _ = whole.message_hub.get_scalar('train/loss_nkd').data
    assert len(term) == 4 and (term > 0).all()  # epochs 2 and 3
    cfg = make('resumed')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / 'epoch_2.pth')
    runs.assert_equal(runs.weights(runs.train(cfg)), runs.weights(whole))


# ------------------------------------------------------------------ SimCC


@needs_mmpose
@pytest.mark.parametrize('family', ['rtmpose', 'simcc'])
@pytest.mark.parametrize('teach', ['other', 'past'])
def test_simcc(family, teach):
    """The target class of a keypoint on an axis is the bin with the largest label."""
    model = poses.build(family)
    data = poses.batch(model)
    stock = poses.losses(model, data)
    options = dict(type='mmskd.NKDLoss', gamma=1.5, tau=2.)
    if teach == 'other':
        hook = DistillHook(teacher=poses.build(family, seed=1), losses=[options],
                           schedule='constant')
        hook.attach(model)
    else:
        hook = PSKDHook(loss=options)
        hook.attach(model)
        hook.refresh_teacher()
        hook.alpha_t = 1.
    calls = []
    listen(hook, calls)
    losses = poses.losses(model, data)
    (module, (bins, labels, weight), _), = calls
    visible = weight.flatten() > 0
    reference = 0
    for axis, label in zip(bins, labels):
        student, teacher = (map_leaves(side, axis).flatten(0, 1)[visible].double() * module.beta
                            for side in (student_side, teacher_side))
        target = label.flatten(0, 1)[visible].argmax(1)
        reference = reference + nkd(student, teacher, target, tau=2.).mean()
    assert losses['loss_nkd'].item() == pytest.approx(reference.item(), rel=1e-5)
    assert torch.equal(losses['loss_kpt'], stock['loss_kpt'])
    losses['loss_nkd'].backward()
    assert all(param.grad is not None and param.grad.isfinite().all()
               for param in model.head.parameters())


@needs_mmpose
def test_simcc_without_a_visible_keypoint():
    model = poses.build('rtmpose')
    inputs, samples = poses.batch(model)
    for sample in samples:
        sample.gt_instance_labels.keypoint_weights[:] = 0
    hook = DistillHook(teacher=poses.build('rtmpose', seed=1), losses=[dict(type='mmskd.NKDLoss')])
    hook.attach(model)
    losses = poses.losses(model, (inputs, samples))
    assert losses['loss_nkd'] == 0
    poses.total(losses).backward()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize('family, own', [
    pytest.param('retinanet', 'FocalLoss', marks=needs_mmdet),
    pytest.param('gfl', 'QualityFocalLoss', marks=needs_mmdet),
    pytest.param('heatmap', 'KeypointMSELoss', marks=needs_mmpose)])
@pytest.mark.parametrize('teach', ['other', 'past'])
def test_heads_without_a_softmax_are_refused(family, own, teach):
    model = (poses if own == 'KeypointMSELoss' else detectors).build(family)
    classes = {name: type(module) for name, module in model.named_modules()}
    loss = dict(type='mmskd.NKDLoss')
    hook = DistillHook(copy.deepcopy(model), [loss]) if teach == 'other' else PSKDHook(loss=loss)
    with pytest.raises(ValueError, match=f'NKDLoss goes with .*, but the head has (PSKD)?{own}'):
        hook.attach(model)
    assert classes == {name: type(module) for name, module in model.named_modules()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@needs_mmdet
@pytest.mark.parametrize('loss, message', [
    (dict(type='mmdet.L1Loss'), 'L1Loss in the option `loss` is no loss between'),
    (dict(type='mmskd.FeatureDistillLoss'), 'the past self teaches predictions')])
def test_what_is_no_loss_of_predictions_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        PSKDHook(loss=loss).attach(detectors.build('faster_rcnn'))
