"""NaN and infinity in a teacher: it teaches nothing, and that is said and counted."""
import copy
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet')

from mmskd.engine.hooks import (  # noqa: E402
    DistillHook,
    HeadDistillHook,
    PSKDHook,
    TeachingHook,
    teaching_hook,  # noqa: E402
)
from mmskd.errors import RunStopped, UsageError  # noqa: E402
from mmskd.models.teachers import past_self  # noqa: E402
from mmskd.models.teachers.past_self import fingerprint, require_agreement  # noqa: E402
from tests.support import detectors, poses  # noqa: E402

NAN = float('nan')


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(teaching_hook, 'print_log', lambda line, *args: lines.append(line))
    return lines


def models(name):
    """A student, a teacher of other weights, and what computes its losses."""
    support = poses if name in poses.FAMILIES else detectors
    student = support.build(name)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    return student, teacher, support.losses


def poison(model):
    """NaN in what a head says last; the features stay as they are."""
    last = [parameter for name, parameter in model.named_parameters()
            if 'head' in name and name.endswith('bias')]
    with torch.no_grad():
        for parameter in last:
            parameter.fill_(NAN)


def assert_equal(first, second):
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn', 'rtmpose', 'heatmap'])
def test_a_past_self_that_says_nan_leaves_the_hard_targets(name, said):
    student, _, losses = models(name)
    expected = losses(copy.deepcopy(student))
    hook = PSKDHook()
    hook.attach(student)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    poison(hook.teacher)
    for _ in range(2):
        assert_equal(expected, losses(student))
    assert hook.counts == Counter(teacher_not_finite=2)
    line, = said
    assert line.startswith(
        'PSKDHook: what the teacher says is not finite') and 'teacher_not_finite' in line
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    losses(student)
    assert hook.counts['teacher_not_finite'] == 2, 'a good one teaches again'


def test_it_is_counted_in_the_log(said):
    student, _, losses = models('retinanet')
    hook = PSKDHook()
    hook.attach(student)
    hook.refresh_teacher()
    poison(hook.teacher)
    logged = {}
    runner = SimpleNamespace(model=student, iter=0, message_hub=SimpleNamespace(
        update_scalar=logged.__setitem__, log_scalars={}))
    for count in (1, 2):
        losses(student)
        TeachingHook.after_train_iter(hook, runner, 0)
        assert logged['train/teacher_not_finite'] == count
    student.bbox_head.retina_cls.weight.data.fill_(NAN)
    hook.refresh_teacher()
    TeachingHook.after_train_iter(hook, runner, 0)
    assert logged['train/pskd_snapshots_refused'] == 1


def test_a_snapshot_that_is_not_finite_is_refused_and_the_last_good_one_kept(said):
    student, _, losses = models('retinanet')
    hook = PSKDHook()
    hook.attach(student)
    weight = student.bbox_head.retina_cls.weight
    good = weight.detach().clone()
    weight.data[0, 0, 0, 0] = NAN
    hook.refresh_teacher()
    assert hook.teacher is None and hook.counts['pskd_snapshots_refused'] == 1
    weight.data.copy_(good)
    hook.refresh_teacher()
    weight.data[0, 0, 0, 0] = float('inf')
    hook.refresh_teacher()
    assert torch.equal(hook.teacher.bbox_head.retina_cls.weight, good)
    assert hook.counts['pskd_snapshots_refused'] == 2
    line, = said
    assert 'bbox_head.retina_cls.weight is not finite' in line and 'targets are hard' in line
    # It is saved where a good student would be its own past self
    hook._resting = True
    assert torch.equal(hook.state()['bbox_head.retina_cls.weight'], good)
    weight.data.copy_(good)
    assert hook.state() is None


def test_terms_of_a_teacher_that_says_nan_are_nothing(said):
    student, teacher, losses = models('rtmpose')
    expected = losses(copy.deepcopy(student))
    hook = DistillHook(teacher, gt_weight=.5)
    hook.attach(student)
    assert losses(student)['loss_logit'] > 0 and not hook.counts
    poison(teacher)
    found = losses(student)
    torch.testing.assert_close(found['loss_kpt'], expected['loss_kpt'] * .5, rtol=0, atol=0)
    assert found['loss_logit'] == 0 and found['loss_feature'] > 0, 'the features are finite'
    with torch.no_grad():
        for parameter in teacher.backbone.parameters():
            parameter.fill_(NAN)
    found = losses(student)
    assert found['loss_feature'] == 0
    sum(value for key, value in found.items() if 'loss' in key).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())
    projections = list(hook.losses.parameters())
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in projections)
    assert hook.counts == Counter(teacher_not_finite=2) and len(said) == 1


@pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn', 'rtmpose'])
def test_a_trained_head_that_says_nan_teaches_nothing(name, tmp_path, said):
    student, trained, losses = models(name)
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'trained.pth')
    hook = HeadDistillHook(str(tmp_path / 'trained.pth'))
    hook.attach(student)
    poison(hook._distiller.teacher)
    found = losses(student)
    total = sum(sum(value) if isinstance(value, list) else value
                for key, value in found.items() if 'loss' in key)
    assert total == 0
    total.backward()
    assert all(parameter.grad is None or not parameter.grad.any()
               for parameter in student.parameters())
    assert hook.counts == Counter(teacher_not_finite=1) and len(said) == 1


def test_a_teacher_whose_weights_are_not_finite_is_refused(tmp_path):
    student, teacher, _ = models('retinanet')
    poison(teacher)
    with pytest.raises(
            UsageError, match='DistillHook: a model that was given cannot teach: its weight '
            r'bbox_head\S+ is not finite'):
        DistillHook(teacher).attach(student)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'nan.pth')
    with pytest.raises(UsageError, match='nan.pth cannot teach: its weight bbox_head'):
        HeadDistillHook(str(tmp_path / 'nan.pth')).attach(student)


# ------------------------------------------------------------------ the past selves of all ranks


def test_a_fingerprint_knows_each_bit_and_the_order():
    tensors = [torch.randn(3, 4), torch.arange(5), torch.tensor(True), torch.randn(2).half()]
    known = {fingerprint(tensors).item()}
    for index in range(len(tensors)):
        changed = [each.clone() for each in tensors]
        flat = changed[index].view(-1)
        flat[-1] = ~flat[-1] if flat.dtype == torch.bool else flat[-1] + 1e-3 * (
            1 if flat.is_floating_point() else 1000)
        known.add(fingerprint(changed).item())
    known.add(fingerprint(tensors[::-1]).item())
    known.add(fingerprint([tensors[0].flip(0), *tensors[1:]]).item())
    assert len(known) == 2 + len(tensors) + 1
    assert fingerprint([each.clone() for each in tensors]).item() in known


def test_past_selves_that_differ_stop_the_run(monkeypatch):
    monkeypatch.setattr(past_self, 'get_world_size', lambda: 3)
    mine = [('weight', torch.ones(3))]
    others = [torch.ones(3), torch.ones(3)]
    monkeypatch.setattr(past_self, 'all_gather', lambda value: [
        value, *(fingerprint([other]) for other in others)])
    require_agreement(mine)
    others[1] = torch.ones(3) + 1e-6
    with pytest.raises(RunStopped, match='the past self of rank 2 is not that of rank 0'):
        require_agreement(mine)
