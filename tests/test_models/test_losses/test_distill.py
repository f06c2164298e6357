"""DWPose's losses: the numbers of MMPose's own, and what the detectors' logit loss adds."""
import pytest
import torch

from mmskd.models.losses import (
    ClassDistillLoss,
    FeatureDistillLoss,
    HeatmapDistillLoss,
    LossCall,
    SimCCDistillLoss,
    feature_l2,
    heatmap_l2,
    simcc_kl,
)
from mmskd.models.pairing import pair

N, K = 3, 5


def simcc(dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(N, K, width, dtype=dtype, requires_grad=True) for width in (8, 6)]


@pytest.mark.parametrize('beta', [1., 10.])
def test_simcc_is_mmposes_kd_loss(beta):
    losses = pytest.importorskip('mmpose.models.losses')
    student, teacher = simcc(), [torch.randn_like(z) for z in simcc()]
    visible = torch.randint(2, (N, K)).double()
    theirs = losses.KDLoss(name='loss_logit', use_this=True, weight=0.1)(
        student, teacher, beta, visible)
    ours = SimCCDistillLoss(weight=0.1)(student, teacher, beta)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)
    for mine, reference in zip(torch.autograd.grad(ours, student),
                               torch.autograd.grad(theirs, student)):
        assert torch.allclose(mine, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize('channels', [(4, 4), (4, 7)], ids=['equal', 'projected'])
def test_feature_is_mmposes_fea_loss(channels):
    losses = pytest.importorskip('mmpose.models.losses')
    torch.manual_seed(0)
    theirs = losses.FeaLoss('loss_fea', True, *channels, alpha_fea=7e-5).double()
    ours = FeatureDistillLoss(7e-5, *channels).double()
    if theirs.align is not None:
        ours.projections[0].load_state_dict(theirs.align.state_dict())
    student = torch.randn(N, channels[0], 6, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(N, channels[1], 6, 5, dtype=torch.float64)
    mine, reference = ours(student, teacher), theirs(student, teacher)
    assert torch.allclose(mine, reference, rtol=0, atol=1e-10)
    assert torch.allclose(*torch.autograd.grad(mine, student),
                          *torch.autograd.grad(reference, student), rtol=0, atol=1e-10)


def test_formulas_by_hand():
    student, teacher = simcc(), [torch.randn_like(z) for z in simcc()]
    by_hand = 0.
    for z, q in zip(student, teacher):
        for n in range(N):
            for k in range(K):
                t, s = (torch.exp(2 * v[n, k]) / torch.exp(2 * v[n, k]).sum() for v in (q, z))
                by_hand += (t * (t / s).log()).sum() / N / K
    assert torch.allclose(simcc_kl(student, teacher, beta=2., weight=0.3), 0.3 * by_hand,
                          rtol=1e-12)
    a, b = torch.randn(2, N, 4, 3, 2, dtype=torch.float64)
    assert torch.allclose(feature_l2(a, b, 0.5), 0.5 * ((a - b)**2).sum() / N)
    assert torch.allclose(heatmap_l2(a, b, 0.5), 0.5 * ((a - b)**2).mean())


def test_no_gradient_where_both_agree_and_none_for_the_teacher():
    student = simcc()
    assert simcc_kl(student, student, 10.).abs() < 1e-12
    grads = torch.autograd.grad(simcc_kl(student, [z.detach() for z in student], 10.), student)
    assert max(grad.abs().max() for grad in grads) < 1e-12
    teacher = [torch.randn_like(z).requires_grad_() for z in student]
    simcc_kl(student, teacher, 1.).backward()
    heatmap_l2(student[0], teacher[0]).backward()
    feature_l2(student[0][..., None], teacher[0][..., None], 1.).backward()
    assert all(q.grad is None for q in teacher)


def test_levels_of_features_add_up_and_must_match():
    torch.manual_seed(0)
    student = [torch.randn(N, 4, 8, 8), torch.randn(N, 4, 4, 4)]
    teacher = [torch.randn(N, 6, 8, 8), torch.randn(N, 4, 4, 4)]
    loss = FeatureDistillLoss(weight=0.1)
    loss.connect(student, teacher)
    assert [type(projection).__name__ for projection in loss.projections] == ['Conv2d', 'Identity']
    single = feature_l2(loss.projections[0](student[0]), teacher[0], 0.1) + feature_l2(
        student[1], teacher[1], 0.1)
    assert torch.allclose(loss(student, teacher), single)
    with pytest.raises(ValueError, match=r'student are \[\(8, 8\).*teacher \[\(4, 4\)'):
        loss.connect(student, [torch.randn(N, 6, 4, 4)])


@pytest.mark.parametrize('name, value', [('student_channels', 5), ('teacher_channels', 7)])
def test_channels_that_are_named_are_those_of_the_features(name, value):
    loss = FeatureDistillLoss(**dict(dict(student_channels=4, teacher_channels=6), **{name: value}))
    with pytest.raises(ValueError, match=f'{name} is {value}, but the features have . channels'):
        loss.connect([torch.randn(2, 4, 3, 3)], [torch.randn(2, 6, 3, 3)])


def test_class_loss_is_the_heads_own_with_the_teacher_for_a_target():
    mmdet = pytest.importorskip('mmskd.models.losses.pskd_detection')
    own = mmdet.PSKDCrossEntropyLoss(loss_weight=2.)
    logits, past = torch.randn(2, N, K)
    labels, weight = torch.tensor([0, 4, 2]), torch.tensor([1., 0., 2.])
    call = LossCall(own, (pair(logits, past), labels, weight), dict(avg_factor=4.))
    soft = -(past.softmax(1) * logits.log_softmax(1)).sum(1)
    assert torch.allclose(ClassDistillLoss(0.5).of_call(call), 0.5 * 2 * (soft * weight).sum() / 4)
    assert own.alpha_t == 0
    # Mixed with the hard loss it is the loss towards the mixed target
    hard = own(logits, labels, weight, avg_factor=4.)
    own.alpha_t = 0.3
    mixed = own(pair(logits, past), labels, weight, avg_factor=4.)
    assert torch.allclose(0.7 * hard + ClassDistillLoss(0.3).of_call(call), mixed)


def test_a_loss_that_does_not_go_with_the_head_names_both():
    mmdet = pytest.importorskip('mmskd.models.losses.pskd_detection')
    for term in (SimCCDistillLoss(), HeatmapDistillLoss()):
        with pytest.raises(ValueError, match=f'{type(term).__name__} goes with .* PSKDFocalLoss'):
            term.check_head(mmdet.PSKDFocalLoss())
