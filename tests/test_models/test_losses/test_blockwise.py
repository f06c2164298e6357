"""The soft focal loss in blocks is the plain formula, in value and gradient."""
import pytest
import torch

from mmskd.models.losses import blockwise
from mmskd.models.losses.blockwise import soft_focal_rows
from mmskd.models.losses.functional import pskd_focal


@pytest.mark.parametrize('gamma', [1., 1.5, 2., 3.])
@pytest.mark.parametrize('soft_labels', [False, True])
def test_equals_the_formula_and_its_gradient(gamma, soft_labels, monkeypatch):
    monkeypatch.setattr(blockwise, 'CPU_BLOCK', 20)  # several blocks, the last one smaller
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 11, 7, dtype=torch.float64) * 3
    hard = torch.rand(11, 7, dtype=torch.float64) if soft_labels else torch.randint(0, 9, (11, ))
    weight = torch.rand(11, dtype=torch.float64)
    results = []
    for formula in (lambda z: pskd_focal(z, hard, teacher, 0.6, gamma, 0.3).sum(1),
                    lambda z: soft_focal_rows(z, hard, teacher, 0.6, gamma, 0.3)):
        z = logits.clone().requires_grad_()
        rows = formula(z)
        (rows * weight).sum().backward()
        results += [(rows.detach(), z.grad)]
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_gradcheck():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: soft_focal_rows(z, torch.tensor(
            [0, 4, 2]), torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), 0.5), logits)


@pytest.mark.parametrize('value', [0., 60., -60., 200.])
def test_extreme_logits_stay_finite(value):
    z = torch.full((2, 3), value, requires_grad=True)
    rows = soft_focal_rows(z, torch.tensor([0, 3]), -z.detach(), 0.5)
    rows.sum().backward()
    assert rows.isfinite().all() and z.grad.isfinite().all()


def test_one_tensor_is_kept_and_none_without_a_gradient():
    kept = []
    z, teacher = torch.randn(2, 50, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        soft_focal_rows(z.clone().requires_grad_(), torch.zeros(50, dtype=torch.long), teacher, 0.5)
    assert kept == [z.shape]
    assert not soft_focal_rows(z, torch.zeros(50, dtype=torch.long), teacher, 0.5).requires_grad
    assert soft_focal_rows(z[:0], torch.zeros(0, dtype=torch.long), teacher[:0], 0.5).shape == (0, )
