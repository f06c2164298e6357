"""The localisation terms against references in float64, and for MMDetection's box heads."""
import copy
from types import SimpleNamespace

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss as giou

pytest.importorskip('mmdet')

from mmdet.models.roi_heads.bbox_heads import BBoxHead, Shared2FCBBoxHead  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

import mmskd.models.losses.boxes as boxes  # noqa: E402
from mmskd.errors import UsageError  # noqa: E402
from mmskd.models.box_terms import BoxTerms, require_boxes  # noqa: E402
from mmskd.models.heads import TaughtHead, adapter_of  # noqa: E402
from mmskd.models.losses import BoxDistillLoss, BoxLesson, bins_kl  # noqa: E402

N, BINS, CLASSES = 6, 5, 3


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def corners(n=N):
    corner, extent = torch.rand(n, 2).double() * 20, torch.rand(n, 2).double() * 20 + 5
    return torch.cat([corner, corner + extent], 1)


def gradient(loss, student):
    student = student.clone().requires_grad_()
    value = loss(student)
    return value.detach(), torch.autograd.grad(value, student)[0]


def assert_same(first, second, **tolerance):
    for mine, theirs in zip(first, second):
        assert torch.allclose(mine, theirs, **{'rtol': 3e-7, 'atol': 1e-12, **tolerance})


@pytest.mark.parametrize('total', [4., 0.3], ids=['sum', 'at least 1'])
def test_overlaps_by_the_formula(total):
    student, teacher, weight = corners(), corners(), torch.rand(N).double()
    weight *= total / weight.sum()
    loss = BoxDistillLoss(2.)

    def expected(boxes):
        return 2 * (weight * giou(boxes, teacher, eps=1e-12)).sum() / max(total, 1)

    assert_same(gradient(lambda s: loss([BoxLesson(s, teacher, weight)]), student),
                gradient(expected, student))


@pytest.mark.parametrize('tau', [1., 10.])
def test_bins_by_the_formula(tau):
    student, teacher = torch.randn(2, N, 4, BINS).double() * 3
    weight = torch.rand(N).double() + 1
    powers = [(side / tau).exp() for side in (student, teacher)]
    p, q = (side / side.sum(-1, keepdim=True) for side in powers)
    expected = (weight * tau**2 * (q * (q / p).log()).sum((1, 2)) / 4).sum() / weight.sum()
    slope = weight[:, None, None] * tau * (p - q) / 4 / weight.sum()
    loss = BoxDistillLoss(BINS, tau)  # the mean over the bins, as in LD's code
    assert_same(gradient(lambda s: loss([BoxLesson(s, teacher, weight)]), student),
                (expected, slope))
    assert bins_kl(student, teacher, tau).shape == (N, )


def test_the_weights_are_averaged_over_the_ranks(monkeypatch):
    student, teacher, weight = corners(), corners(), torch.rand(N).double() + 1
    alone = BoxDistillLoss()([BoxLesson(student, teacher, weight)])
    monkeypatch.setattr(boxes, 'all_reduce', lambda total, op: total.mul_(3))
    assert torch.allclose(BoxDistillLoss()([BoxLesson(student, teacher, weight)]) * 3, alone)


@pytest.mark.parametrize('bins', [False, True])
def test_a_teacher_that_agrees_teaches_nothing(bins):
    answers = torch.randn(N, 4, BINS).double() if bins else corners()
    loss, weight = BoxDistillLoss(), torch.ones(N)
    value, slope = gradient(lambda s: loss([BoxLesson(s, answers, weight)]), answers)
    assert value.abs() < 1e-15 and slope.abs().max() < 1e-15


def test_rounding_teaches_nothing():
    """An overlap has slopes on both sides of agreement, as a distance has."""
    teacher = corners().float()
    loss, weight = BoxDistillLoss(), torch.ones(N)
    student = teacher * (1 + torch.finfo(torch.float32).eps)
    value, slope = gradient(lambda s: loss([BoxLesson(s, teacher, weight)]), student)
    assert not torch.equal(student, teacher) and value.abs() < 1e-6 and (slope == 0).all()
    assert gradient(lambda s: loss([BoxLesson(s, teacher, weight)]),
                    teacher * 1.001)[1].abs().sum() > 0


def test_the_teacher_gets_no_gradient():
    student, teacher, weight = (
        side.requires_grad_() for side in (corners(), corners(), torch.rand(N).double()))
    BoxDistillLoss()([BoxLesson(student, teacher, weight)]).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None and weight.grad is None


def test_half_precision_is_compared_in_single():
    student, teacher, weight = (side.bfloat16() for side in (corners(), corners(), torch.rand(N)))
    value = BoxDistillLoss()([BoxLesson(student, teacher, weight)])
    exact = BoxDistillLoss()([BoxLesson(student.double(), teacher.double(), weight.double())])
    assert value.dtype == torch.float32 and torch.allclose(value.double(), exact, rtol=1e-5)


# ------------------------------------------------------------------ of RoIs


def roi_head(agnostic, kind=Shared2FCBBoxHead, **options):
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = kind(num_classes=CLASSES, in_channels=4, roi_feat_size=2,
                    reg_class_agnostic=agnostic, **options)
    return adapter_of('roi_head.bbox_head', head)


@pytest.mark.parametrize('agnostic', [False, True])
def test_rois_by_their_decoded_boxes(agnostic):
    """Overlaps of what two heads say of a RoI of size 1 are those of the boxes in the image."""
    adapter, per_roi = roi_head(agnostic), 1 if agnostic else CLASSES
    (z, d), (t, e) = ((torch.randn(N, CLASSES + 1).double(), torch.randn(N, per_roi * 4).double())
                      for _ in range(2))
    rois = corners().repeat_interleave(per_roi, 0)
    q = t.softmax(1)[:, :CLASSES]
    weight = (q.sum(1, keepdim=True) if agnostic else q).flatten()

    def expected(offsets):
        boxes = (adapter.head.bbox_coder.decode(rois, side.view(-1, 4)) for side in (offsets, e))
        return (weight * giou(*boxes, eps=1e-12)).sum() / weight.sum()

    assert_same(gradient(lambda s: BoxDistillLoss()(adapter.box_lessons((z, s), (t, e))), d),
                gradient(expected, d), rtol=1e-6)


def test_no_roi_has_nothing_to_learn_but_a_gradient():
    adapter = roi_head(False)
    scores, offsets = torch.zeros(0, CLASSES + 1), torch.zeros(0, CLASSES * 4, requires_grad=True)
    value = BoxDistillLoss()(adapter.box_lessons((scores, offsets), (scores, offsets.detach())))
    value.backward()
    assert value == 0 and offsets.grad is not None


class MyHead(Shared2FCBBoxHead):
    """May return anything."""


@pytest.mark.parametrize('options,reason', [
    (dict(kind=MyHead), r'bbox_head \(MyHead\) cannot be compared: it is not known'),
    (dict(kind=BBoxHead, with_reg=False), 'it predicts no boxes'),
    (dict(bbox_coder=dict(type='LegacyDeltaXYWHBBoxCoder')), 'LegacyDeltaXYWHBBoxCoder'),
    (dict(bbox_coder=dict(type='DeltaXYWHBBoxCoder', add_ctr_clamp=True)), 'ctr_clamp'),
])
def test_boxes_that_are_not_known_are_refused(options, reason):
    with pytest.raises(UsageError, match=f'{reason}.*Leave BoxDistillLoss out'):
        require_boxes([TaughtHead(roi_head(False, **options))])


# ------------------------------------------------------------------ in a forward pass


class Rope:
    """A mirror that one pulls by hand."""

    def listen(self, name, listener):
        self.pull = listener


@pytest.mark.parametrize('scale', [1., 0.25, 0.])
def test_terms_are_scaled_and_summed_over_the_calls(scale):
    adapter, rope = roi_head(True), Rope()
    head = SimpleNamespace(adapter=adapter, name='', weight=.5)
    terms = BoxTerms([head], [BoxDistillLoss()], rope)
    terms.scale = scale
    output, answer = ((torch.randn(N, CLASSES + 1), torch.randn(N, 4)) for _ in range(2))
    for _ in range(2):
        rope.pull(output, answer)
    with torch.no_grad():  # a pass that only chooses samples
        rope.pull(output, answer)
    once = BoxDistillLoss()(adapter.box_lessons(output, answer))  # of two, with half the weight
    assert terms.take() == ({'loss_box': pytest.approx(scale * once)} if scale else {})
    assert terms.take() == {}


def test_what_is_not_finite_teaches_nothing_and_keeps_the_graph():
    """DDP waits for the gradient of every parameter, and all ranks average the weights."""
    adapter, rope, seen = roi_head(True), Rope(), []
    head = SimpleNamespace(adapter=adapter, name='', weight=1.)
    terms = BoxTerms([head], [BoxDistillLoss()], rope)
    output = torch.randn(N, CLASSES + 1), torch.randn(N, 4, requires_grad=True)
    answer = tuple(side.detach() * float('nan') for side in copy.deepcopy(output))
    original = boxes.all_reduce
    boxes.all_reduce = lambda total, op: seen.append(total.item())
    try:
        rope.pull(output, answer)
    finally:
        boxes.all_reduce = original
    value = terms.take()['loss_box']
    value.backward()
    assert value == 0 and (output[1].grad == 0).all() and terms.refused == 1
    assert seen and seen[0] == seen[0]
