"""NKD and USKD against scalar loops in float64, and the properties that the paper asks for."""
import math

import pytest
import torch

from mmskd.models.losses import functional as soft
from mmskd.models.losses.functional import nkd, uskd
from mmskd.registry import MODELS

N, C = 6, 5


def numbers(seed=0):
    """Logits of two sources, and labels."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (2 * torch.randn(N, C, dtype=torch.float64, generator=generator)
                     for _ in range(2))
    labels = torch.randint(C, (N, ), generator=generator)
    return first.requires_grad_(), second.requires_grad_(), labels


def mixtures():
    """Soft labels of mixup: two classes each, but for one sample that was mixed with its own class.
    """
    labels = torch.zeros(N, C, dtype=torch.float64)
    for n in range(N):
        labels[n, n % C] += 0.7
        labels[n, (2 * n) % C] += 0.3
    return labels


# Reference: one number at a time, written from the equations --------------------------------------


def softmax(z):
    total = sum(torch.exp(value) for value in z)
    return [torch.exp(value) / total for value in z]


def nkd_reference(student, teacher, labels, gamma, tau):
    total = 0
    for s, t, label in zip(student, teacher.detach(), labels.tolist()):
        total = total - softmax(t)[label] * torch.log(softmax(s)[label])
        rest = [i for i in range(C) if i != label]
        n_s, n_t = softmax([s[i] / tau for i in rest]), softmax([t[i] / tau for i in rest])
        total = total - gamma * tau**2 * sum(b * torch.log(a) for a, b in zip(n_s, n_t))
    return total / len(student)


def zipf_reference(s, w, targets):
    """N(Z) as {class: weight}, from the ranks by N(W) + N(S)."""
    rest = [i for i in range(C) if i not in targets]

    def normalised(z):
        probability = [value.item() for value in softmax(z)]
        return [value / sum(probability[i] for i in rest) for value in probability]

    score = [a + b for a, b in zip(normalised(s.detach()), normalised(w.detach()))]
    rank = {i: 1 + sum(other > score[i] for other in score) for i in range(C)}
    total = sum(1 / rank[i] for i in rest)
    return {i: 1 / rank[i] / total for i in rest}


def uskd_reference(logits, weak, labels, alpha, beta, mu):
    if labels.dim() == 1:
        label_rows = [[float(i == label) for i in range(C)] for label in labels.tolist()]
    else:
        label_rows = labels.tolist()
    # The larger and the smaller label of each sample
    places = 1 if labels.dim() == 1 else 2
    order = [sorted(range(C), key=lambda i: -row[i])[:places] for row in label_rows]
    squares = [[softmax(s)[i].item()**2 for i in top] for s, top in zip(logits, order)]
    total = 0
    for n, (s, w, y) in enumerate(zip(logits, weak, label_rows)):
        for k, i in enumerate(order[n]):
            if y[i] > 0:
                others = [row[k] for row, top, label_row in zip(squares, order, label_rows)
                          if label_row[top[k]] > 0]
                average = sum(others) / len(others)
                total = total - alpha * (squares[n][k] + y[i] - average) * torch.log(softmax(s)[i])
        targets = [i for i in range(C) if y[i] > 0]
        weights = zipf_reference(s, w, targets)
        n_s = dict(zip(weights, softmax([s[i] for i in weights])))
        total = total - beta * sum(weights[i] * torch.log(n_s[i]) for i in weights)
        total = total - mu * sum(
            (0.9 * y[i] + 0.1 / C) * torch.log(softmax(w)[i]) for i in range(C))
    return total / len(logits)


def assert_same(ours, reference, *inputs):
    """Same value, same gradients."""
    assert ours.item() == pytest.approx(reference.item(), rel=1e-12)
    grads = [torch.autograd.grad(value, inputs, allow_unused=True) for value in (ours, reference)]
    for mine, theirs in zip(*grads):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('gamma,tau', [(1.5, 1.), (0.7, 3.), (0., 1.)])
def test_nkd(gamma, tau):
    student, teacher, labels = numbers()
    assert_same(nkd(student, teacher, labels, gamma, tau),
                nkd_reference(student, teacher, labels, gamma, tau), student, teacher)


@pytest.mark.parametrize('soft_labels', [False, True])
@pytest.mark.parametrize('alpha,beta,mu', [(1., 0.1, 0.005), (0.3, 2., 1.)])
def test_uskd(soft_labels, alpha, beta, mu):
    logits, weak, labels = numbers()
    labels = mixtures() if soft_labels else labels
    assert_same(uskd(logits, weak, labels, alpha, beta, mu),
                uskd_reference(logits, weak, labels, alpha, beta, mu), logits, weak)


def test_gradients_pass_gradcheck():
    student, teacher, labels = numbers()
    target = labels.unsqueeze(1)
    others = ~soft.mask_of(labels, student)
    bracket = soft.uskd_target(student,
                               labels) / -student.log_softmax(1).gather(1, target).squeeze(1)
    assert torch.autograd.gradcheck(lambda z: nkd(z, teacher, labels, 1.5, 2.), student)
    # The parts whose targets do not depend on the argument
    assert torch.autograd.gradcheck(lambda w: uskd(student.detach(), w, labels), teacher)
    weights = soft.zipf_weights(student, teacher, others)
    assert torch.autograd.gradcheck(
        lambda z: soft.cross_entropy_among(z, weights, others), student)
    grad, = torch.autograd.grad(soft.uskd_target(student, labels).sum(), student)
    expected, = torch.autograd.grad(
        -(bracket.detach() * student.log_softmax(1).gather(1, target).squeeze(1)).sum(), student)
    assert torch.allclose(grad, expected), 'a gradient flows through the soft target'


# Properties -----------------------------------------------------------------------------------


@pytest.mark.parametrize('shift', [-30., 4., 500.])
def test_the_nontarget_part_does_not_see_the_target(shift):
    student, teacher, labels = numbers()
    others = ~soft.mask_of(labels, student)
    moved = [z.detach() + shift * ~others for z in (student, teacher)]
    for tau in (1., 4.):
        assert torch.allclose(soft.nkd_nontarget(student, teacher, others, tau),
                              soft.nkd_nontarget(*moved, others, tau), rtol=1e-12)


def test_nkd_has_its_minimum_over_the_others_where_they_agree_whatever_the_target():
    """What plain distillation cannot reach: the sums over the other classes differ."""
    _, teacher, labels = numbers()
    others = ~soft.mask_of(labels, teacher)
    student = (teacher.detach() + 3. * ~others).requires_grad_()
    loss = soft.nkd_nontarget(student, teacher, others, tau=1.)
    grad, = torch.autograd.grad(loss.sum(), student)
    assert grad.abs().max() < 1e-12
    entropy = torch.distributions.Categorical(
        logits=teacher[others].view(N, C - 1)).entropy()
    assert torch.allclose(loss, entropy)
    plain = -(teacher.softmax(1) * student.log_softmax(1)).sum()
    assert torch.autograd.grad(plain, student)[0].abs().max() > 0.01


def test_temperature_leaves_the_size_of_the_gradient_alone():
    student, teacher, labels = numbers()
    others = ~soft.mask_of(labels, student)
    grads = [
        torch.autograd.grad(soft.nkd_nontarget(student, teacher, others, tau).sum(), student)[0]
        for tau in (100., 200.)
    ]
    assert torch.allclose(*grads, rtol=0.1, atol=1e-3)


def test_no_gradient_reaches_the_teacher_nor_the_weak_logits_but_by_their_own_loss():
    student, teacher, labels = numbers()
    nkd(student, teacher, labels).backward()
    assert teacher.grad is None and student.grad is not None
    logits, weak, labels = numbers()
    uskd(logits, weak, labels, mu=0.).backward()
    assert not weak.grad.any()
    logits.grad = None
    uskd(logits, weak, labels, alpha=0., beta=0.).backward()
    assert weak.grad.any() and not logits.grad.any()


def test_zipf_weights_follow_the_rank_and_sum_to_one():
    for seed in range(10):
        logits, weak, labels = numbers(seed)
        others = ~soft.mask_of(labels, logits)
        weights = soft.zipf_weights(logits, weak, others)
        assert torch.allclose(weights.sum(1), torch.ones(N, dtype=torch.float64))
        assert not weights[~others].any() and not weights.requires_grad
        score = sum(torch.where(others, z, -math.inf).softmax(1) for z in (logits, weak)).detach()
        for row, mask, value in zip(weights, others, score):
            assert (row[mask][value[mask].argsort(descending=True)].diff() < 0).all()


def test_zipf_weights_are_those_of_the_ranks():
    logits = torch.tensor([[5., 3., 2., 1.], [0., 3., 2., 1.]], dtype=torch.float64)
    others = torch.tensor([[False, True, True, True]] * 2)
    weights = soft.zipf_weights(logits, logits, others)
    right, wrong = [0, 1 / 2, 1 / 3, 1 / 4], [0, 1, 1 / 2, 1 / 3]  # the target is first, last
    for row, zipf in zip(weights, (right, wrong)):
        assert row.tolist() == pytest.approx([value / sum(zipf) for value in zipf])


def test_both_weak_and_final_logits_rank():
    logits, weak, _ = numbers()
    others = torch.ones(N, C, dtype=torch.bool)
    flat = torch.zeros_like(weak)
    assert torch.equal(soft.zipf_weights(logits, flat, others).argsort(1), logits.argsort(1))
    assert torch.equal(soft.zipf_weights(flat, weak, others).argsort(1), weak.argsort(1))
    assert not torch.equal(soft.zipf_weights(logits, weak, others).argsort(1), logits.argsort(1))


def test_a_surer_sample_gets_the_larger_target_and_the_mean_is_the_label():
    logits, _, labels = numbers()
    target = labels.unsqueeze(1)
    log_prob = logits.log_softmax(1).gather(1, target).squeeze(1)
    bracket = soft.uskd_target(logits, labels) / -log_prob
    assert torch.equal(bracket.argsort(), log_prob.argsort())
    assert bracket.mean().item() == pytest.approx(1)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_extreme_logits(dtype):
    logits = (torch.eye(C, dtype=dtype) * 2e4 - 1e4).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0])
    loss = nkd(logits, logits, labels) + uskd(logits, logits, labels)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


# Modules --------------------------------------------------------------------------------------

LOSSES = pytest.mark.parametrize('name,function', [('NKDLoss', nkd), ('USKDLoss', uskd)])


def build(name, **options):
    return MODELS.build(dict(type=f'mmskd.{name}', **options))


@LOSSES
def test_module_is_the_function(name, function):
    first, second, labels = numbers()
    assert torch.equal(build(name)(first, second, labels), function(first, second, labels))
    mixed = mixtures()
    assert torch.equal(build(name)(first, second, mixed), function(first, second, mixed))


def test_options_are_the_arguments():
    first, second, labels = numbers()
    assert build('NKDLoss', gamma=.3, tau=2.)(first, second, labels).item() == pytest.approx(
        nkd(first, second, labels, .3, 2.).item())
    assert build('USKDLoss', alpha=.3, beta=2., mu=.7)(first, second, labels).item() == \
        pytest.approx(uskd(first, second, labels, .3, 2., .7).item())


@LOSSES
def test_samples_without_a_class_or_weight_do_not_exist(name, function):
    first, second, labels = numbers()
    loss = build(name, weight=2.)
    for absent in (-100, C):
        gaps = labels.clone()
        gaps[[1, 4]] = absent
        kept = [0, 2, 3, 5]
        assert_same(loss(first, second, gaps),
                    2 * function(first[kept], second[kept], labels[kept]), first)
    weight = torch.tensor([1., 0., 1., 1., 0., 1.])
    assert_same(loss(first, second, labels, weight, avg_factor=10.),
                2 * function(first[kept], second[kept], labels[kept]) * 4 / 10, first)


def test_weights_are_factors_of_the_samples():
    first, second, labels = numbers()
    weight = torch.rand(N, dtype=torch.float64) + 0.1
    alone = [nkd(first[n:n + 1], second[n:n + 1], labels[n:n + 1]) for n in range(N)]
    expected = sum(value * factor for value, factor in zip(alone, weight)) / 7.
    assert_same(build('NKDLoss')(first, second, labels, weight, avg_factor=7.), expected, first)


@LOSSES
def test_nothing_to_do_is_zero_with_a_graph(name, function):
    first, second, labels = numbers()
    loss = build(name)(first, second, torch.full_like(labels, C))
    loss.backward()
    assert loss == 0 and not first.grad.any()
    assert build(name)(first[:0], second[:0], labels[:0]) == 0


@LOSSES
def test_ignored_background(name, function):
    first, second, _ = numbers()
    labels = torch.tensor([0, 1, C - 1, 2, C - 1, 0])
    loss = build(name, ignore_background=True)
    value = loss(first, second, labels)
    grad, = torch.autograd.grad(value, first)
    assert not grad[[2, 4]].any() and grad[[0, 1, 3, 5]].any(1).all()
    assert not torch.equal(value, build(name)(first, second, labels))
    # Among the other classes there is none: their part does not see it
    others = ~soft.mask_of(labels, first)
    others[:, -1] = False
    moved = first.detach().clone()
    moved[:, -1] += 5
    nontarget = dict(NKDLoss=soft.nkd_nontarget, USKDLoss=soft.uskd_nontarget)[name]
    kept = labels < C - 1
    if name == 'NKDLoss':
        assert torch.allclose(nontarget(first, second, others)[kept],
                              nontarget(moved, second, others)[kept])
    # With one class and the background, nothing is left to compare
    pair = [z[:, :2].detach().requires_grad_() for z in (first, second)]
    value = loss(*pair, torch.zeros(N, dtype=torch.long))
    value.backward()
    assert value.isfinite() and pair[0].grad.isfinite().all()


@LOSSES
def test_half_precision_is_computed_in_float32(name, function):
    first, second, labels = numbers()
    halves = [z.detach().bfloat16() for z in (first, second)]
    value = build(name)(*halves, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, function(*(z.float() for z in halves), labels))


@LOSSES
def test_shapes_that_do_not_fit_are_refused(name, function):
    first, second, labels = numbers()
    with pytest.raises(ValueError,
                       match=rf'{name}: cls_score and \w+_score .*\(6, 5\) and \(6, 4\)'):
        build(name)(first, second[:, :4], labels)
    with pytest.raises(ValueError, match='two classes or more'):
        build(name)(first[:, :1], second[:, :1], labels)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match='tau must be a number, above 0, got 0'):
        build('NKDLoss', tau=0)


def test_the_loss_of_each_sample():
    first, second, labels = numbers()
    labels[2] = -1  # ignored
    weight = torch.rand(N, dtype=torch.float64) + 0.1
    loss = build('NKDLoss')
    each = loss(first, second, labels, weight, reduction='none')
    assert each.shape == (N, ) and each[2] == 0
    for n in range(N):
        alone = loss(first[n:n + 1], second[n:n + 1], labels[n:n + 1], weight[n:n + 1])
        assert torch.allclose(each[n], alone)
    assert torch.autograd.grad(each.sum(), first)[0][2].abs().sum() == 0
