"""PKD and CWD against numpy, and that they do not depend on scale, size or batch."""
import numpy as np
import pytest
import torch

from mmskd.models.losses import CWDLoss, PKDLoss, channel_kl, pearson_distance

N, C, H, W = 3, 4, 5, 6


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return [torch.randn(N, C, H, W).double() for _ in range(2)]


def test_pearson_distance_is_that_of_numpy(maps):
    student, teacher = maps
    rows = [side.transpose(0, 1).reshape(C, -1).numpy() for side in maps]
    expected = 1 - np.mean([np.corrcoef(mine, theirs)[0, 1] for mine, theirs in zip(*rows)])
    assert pearson_distance(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert pearson_distance(teacher * 3 - 2, teacher).abs() < 1e-12
    assert pearson_distance(torch.ones_like(teacher), teacher) == 1


@pytest.mark.parametrize('tau', [1., 4.])
def test_channel_divergence_by_hand(maps, tau):
    total = 0.
    standard = [((side - side.mean((0, 2, 3), keepdim=True)) /
                 side.std((0, 2, 3), keepdim=True, unbiased=False)).numpy() for side in maps]
    for n in range(N):
        for c in range(C):
            s, t = (np.exp(side[n, c].ravel() / tau) for side in standard)
            s, t = s / s.sum(), t / t.sum()
            total += (t * np.log(t / s)).sum()
    assert channel_kl(*maps, tau).item() == pytest.approx(tau**2 * total / (N * C), rel=1e-10)


@pytest.mark.parametrize('loss', [PKDLoss(), CWDLoss(tau=2.)], ids=['pkd', 'cwd'])
def test_scale_batch_and_agreement(loss, maps):
    student, teacher = maps
    loss.connect([student], [teacher])
    once = loss([student], [teacher])
    assert torch.allclose(loss([10 * student + 1], [teacher / 7]), once)
    assert torch.allclose(loss([torch.cat([student] * 2)], [torch.cat([teacher] * 2)]), once)
    same = teacher.clone().requires_grad_()
    agreed = loss([same], [teacher])
    agreed.backward()
    assert agreed.abs() < 1e-12 and same.grad.abs().max() < 1e-12


@pytest.mark.parametrize('loss', [PKDLoss(), CWDLoss()], ids=['pkd', 'cwd'])
def test_a_dead_channel_has_no_gradient(loss, maps):
    """What is left of it is rounding, which divided by its size would be a gradient beyond measure.
    """
    student, teacher = (side.float() for side in maps)
    scale = torch.tensor([1e-20, 1., 1., 1.]).view(1, C, 1, 1)
    student = (student * scale).requires_grad_()
    loss.connect([student], [teacher])
    loss([student], [teacher]).backward()
    assert (student.grad[:, 0] == 0).all() and 0 < student.grad.abs().max() < 10


def test_two_numbers_have_no_correlation(maps):
    student, teacher = (side[:2, :, :1, :1].clone().requires_grad_() for side in maps)
    value = pearson_distance(student, teacher)
    value.backward()
    assert value == 1 and (student.grad == 0).all()


@pytest.mark.parametrize('kind', ['PKDLoss', 'CWDLoss'])
def test_a_wider_teacher_of_a_detector(kind):
    pytest.importorskip('mmdet')
    from mmskd.engine.hooks import DistillHook
    from tests.support import detectors
    student = detectors.build('retinanet')
    teacher = detectors.build('retinanet',
                              **{'neck.out_channels': 128, 'bbox_head.in_channels': 128})
    hook = DistillHook(teacher=teacher, losses=[dict(type=f'mmskd.{kind}')])
    hook.attach(student)
    losses = detectors.losses(student)
    losses['loss_feature'].backward()
    levels = list(hook.losses[0].projections)[:3]  # the last two of a small image have one place
    assert all(level.weight.grad.abs().sum() > 0 for level in levels)
    assert student.backbone.layer4[0].conv1.weight.grad.abs().sum() > 0
