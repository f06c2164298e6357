"""The formulas against scalar loops in float64, values and gradients."""
import math

import pytest
import torch

from mmskd.models.losses import functional as soft

N, C = 7, 4
ALPHAS = pytest.mark.parametrize('alpha_t', [0., 0.3, 1.])


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)


def numbers():
    """Logits, past logits and labels, one of which is no class."""
    logits = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    past = torch.randn(N, C, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    return logits, past, labels


def sigmoid(z):
    return 1 / (1 + torch.exp(-z))


def scalar_sum(term):
    """Sum term(n, c) over all elements, one scalar at a time."""
    return sum(term(n, c) for n in range(N) for c in range(C))


def bce(p, y):
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p))


def assert_equal(ours, reference, logits):
    """Same value, same gradient."""
    ours_grad, = torch.autograd.grad(ours, logits, retain_graph=True)
    reference_grad, = torch.autograd.grad(reference, logits)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-12)
    assert torch.allclose(ours_grad, reference_grad, rtol=1e-9, atol=1e-12)


def mixed(labels, past_prob, alpha_t):
    def target(n, c):
        return (1 - alpha_t) * float(labels[n] == c) + alpha_t * past_prob[n, c]
    return target


def test_progressive_target():
    hard, past = torch.tensor([1., 0.]), torch.tensor([0.6, 0.4], requires_grad=True)
    target = soft.progressive_target(hard, past, 0.25)
    assert torch.allclose(target, torch.tensor([0.9, 0.1])) and not target.requires_grad


def test_one_hot_of_what_is_no_class_is_zero():
    assert soft.one_hot(torch.tensor([1, 2, -1, 7]), 2).tolist() == [[0, 1], [0, 0], [0, 0], [0, 0]]


@ALPHAS
def test_cross_entropy(alpha_t):
    logits, past, labels = numbers()

    def softmax(z, n):
        return [torch.exp(z[n, c]) / sum(torch.exp(z[n, k]) for k in range(C)) for c in range(C)]

    past_prob = torch.stack([torch.stack(softmax(past, n)) for n in range(N)])
    target = mixed(labels, past_prob, alpha_t)
    reference = scalar_sum(lambda n, c: -target(n, c) * torch.log(softmax(logits, n)[c]))
    ours = soft.pskd_cross_entropy(logits, labels, past, alpha_t)
    assert ours.shape == (N, )
    assert_equal(ours.sum(), reference, logits)


@ALPHAS
def test_binary_cross_entropy(alpha_t):
    logits, past, labels = numbers()
    target = mixed(labels, sigmoid(past), alpha_t)
    reference = scalar_sum(lambda n, c: bce(sigmoid(logits[n, c]), target(n, c)))
    hard = soft.one_hot(labels, C, torch.float64)
    assert_equal(
        soft.pskd_binary_cross_entropy(logits, hard, past, alpha_t).sum(), reference, logits)


@ALPHAS
@pytest.mark.parametrize('gamma', [0., 1.5, 2.])
def test_focal(alpha_t, gamma):
    logits, past, labels = numbers()
    labels[-1] = C  # background
    target = mixed(labels, sigmoid(past), alpha_t)

    def term(n, c):
        y, p = target(n, c), sigmoid(logits[n, c])
        return (0.25 * y + 0.75 * (1 - y)) * abs(y - p)**gamma * bce(p, y)

    ours = soft.pskd_focal(logits, labels, past, alpha_t, gamma=gamma, alpha=0.25)
    assert ours.shape == (N, C)
    assert_equal(ours.sum(), scalar_sum(term), logits)


@ALPHAS
def test_quality_focal(alpha_t):
    logits, past, labels = numbers()
    quality = torch.rand(N, dtype=torch.float64)
    hard = soft.one_hot(labels, C, torch.float64) * quality.unsqueeze(1)
    target = soft.progressive_target(hard, sigmoid(past), alpha_t)

    def term(n, c):
        y, p = target[n, c], sigmoid(logits[n, c])
        return abs(y - p)**2 * bce(p, y)

    assert_equal(soft.quality_focal_to_target(logits, target, 2.0).sum(), scalar_sum(term), logits)
    probability = torch.sigmoid(logits)
    assert_equal(soft.quality_focal_to_target(probability, target, 2.0, activated=True).sum(),
                 scalar_sum(term), logits)


@ALPHAS
@pytest.mark.parametrize('iou_weighted', [True, False])
def test_varifocal(alpha_t, iou_weighted):
    logits, past, labels = numbers()
    hard = soft.one_hot(labels, C, torch.float64) * torch.rand(N, 1, dtype=torch.float64)
    target = soft.progressive_target(hard, sigmoid(past), alpha_t)

    def term(n, c):
        y, p = target[n, c], sigmoid(logits[n, c])
        if hard[n, c] > 0:
            return (y if iou_weighted else 1.) * bce(p, y)
        return 0.75 * abs(p - y)**2 * bce(p, y)

    ours = soft.varifocal_to_target(logits, target, hard > 0, 0.75, 2.0, iou_weighted)
    assert_equal(ours.sum(), scalar_sum(term), logits)


@pytest.mark.parametrize('gamma', [0.5, 1., 2.])
def test_no_gradient_at_the_target_whatever_the_exponent(gamma):
    logits = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(N, dtype=torch.long)
    soft.pskd_focal(logits, labels, logits.detach(), 1., gamma=gamma).sum().backward()
    assert logits.grad.abs().max() < 1e-6 and math.isfinite(logits.grad.sum())


def test_gradients_pass_gradcheck():
    logits, past, labels = numbers()
    functions = [lambda z: soft.pskd_cross_entropy(z, labels, past, 0.4),
                 lambda z: soft.pskd_focal(z, labels, past, 0.4)]
    assert all(torch.autograd.gradcheck(function, logits) for function in functions)


def test_no_gradient_reaches_the_past():
    logits, past, labels = numbers()
    past.requires_grad_()
    (soft.pskd_cross_entropy(logits, labels, past, 0.5).sum() +
     soft.pskd_focal(logits, labels, past, 0.5).sum()).backward()
    assert past.grad is None and logits.grad is not None
