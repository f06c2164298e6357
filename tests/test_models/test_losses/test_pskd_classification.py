"""The soft form of torch's softmax loss against torch, and against the formula."""
import itertools

import pytest
import torch
from torch import nn

from mmskd.engine.hooks import PSKDHook
from mmskd.models.losses import PSKDTorchCrossEntropyLoss, pskd_cross_entropy
from mmskd.models.losses.soft_target import FORMS, soft_class
from mmskd.models.pairing import pair
from tests.support.classifiers import TinyClassifier

N, C = 12, 5
CLASS_WEIGHT = torch.tensor([1., 2., .5, 3., 0.])
REDUCTIONS = [dict(reduction='mean', ignore_index=-100),
              *(dict(reduction=each, ignore_index=3) for each in ('sum', 'none', 'mean'))]
SETTINGS = [dict(weight=weight, label_smoothing=smoothing, **reduction)
            for weight, smoothing, reduction in itertools.product(
                (None, CLASS_WEIGHT), (0., 0.2), REDUCTIONS)]


def by_settings(settings):
    return '-'.join(f'{"weighted" if key == "weight" else value}' for key, value in settings.items()
                    if value is not None)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(alpha_t, weight=None, **settings):
    weight = None if weight is None else weight.double()
    loss = PSKDTorchCrossEntropyLoss(weight=weight, **settings)
    loss.alpha_t = alpha_t
    return loss


def sample(soft_labels=False):
    logits, past = torch.randn(2, N, C, dtype=torch.float64)
    labels = torch.randint(C, (N, ))
    labels[:C] = torch.arange(C)
    if soft_labels:
        labels = torch.randn(N, C, dtype=torch.float64).softmax(1)
    return logits.requires_grad_(), past, labels


def reference(logits, past, labels, alpha, weight, label_smoothing, reduction, ignore_index):
    """Class by class and sample by sample, in Python."""
    classes = [1.] * C if weight is None else weight.tolist()
    total, count, each = 0., 0., []
    for row, teacher, label in zip(logits, past, labels):
        logs, prob = row - row.exp().sum().log(), teacher.exp() / teacher.exp().sum()
        index = label.dim() == 0
        if index and label == ignore_index:
            each.append(row.sum() * 0)
            continue
        hard = [float(c == label) if index else label[c].item() for c in range(C)]
        of_sample = sum(w * y for w, y in zip(classes, hard))
        smooth = [(1 - label_smoothing) * y + label_smoothing / C for y in hard]
        stock = -sum(w * y * log for w, y, log in zip(classes, smooth, logs))
        soft = -sum(of_sample * q * log for q, log in zip(prob, logs))
        each.append((1 - alpha) * stock + alpha * soft)
        count += of_sample if index else 1.
    each = torch.stack(each)
    total = each.sum()
    return dict(none=each, sum=total, mean=total / count)[reduction]


@pytest.mark.parametrize('soft_labels', [False, True], ids=['index', 'probabilities'])
@pytest.mark.parametrize('settings', SETTINGS, ids=by_settings)
def test_it_is_the_formula_and_torch_at_alpha_zero(settings, soft_labels):
    if soft_labels and settings['ignore_index'] == 3:
        settings = dict(settings, ignore_index=-100)
    logits, past, labels = sample(soft_labels)
    for alpha in (0.3, 1.):
        value = build(alpha, **settings)(pair(logits, past), labels)
        expected = reference(logits, past, labels, alpha, **settings)
        torch.testing.assert_close(value, expected)
        gradients = [torch.autograd.grad(each.sum(), logits, retain_graph=True)[0]
                     for each in (value, expected)]
        torch.testing.assert_close(*gradients)
    weight = None if settings['weight'] is None else settings['weight'].double()
    stock = nn.CrossEntropyLoss(**dict(settings, weight=weight))(logits, labels)
    for value in (build(0., **settings)(pair(logits, past), labels),
                  build(0.7, **settings)(logits, labels)):
        assert torch.equal(value, stock)
    near = build(1e-9, **settings)(pair(logits, past), labels)  # a small alpha is a small change
    torch.testing.assert_close(near, stock, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize('settings', SETTINGS[::3], ids=by_settings)
def test_no_gradient_where_present_and_past_self_agree(settings):
    logits, _, labels = sample()
    loss = build(1., **settings)(pair(logits, logits.detach()), labels)
    loss.sum().backward()
    assert logits.grad.abs().max() < 1e-15


def test_pixels_and_a_single_sample():
    logits, past = torch.randn(2, 3, C, 4, 2, dtype=torch.float64)
    labels = torch.randint(C, (3, 4, 2))
    for reduction in ('mean', 'sum', 'none'):
        loss = build(0.4, CLASS_WEIGHT, reduction=reduction)
        flat = [each.movedim(1, -1).reshape(-1, C) for each in (logits, past)]
        whole, rows = loss(pair(logits, past), labels), loss(pair(*flat), labels.flatten())
        torch.testing.assert_close(whole.flatten(), rows.flatten())
    one = build(0.4)(pair(flat[0][0], flat[1][0]), labels.flatten()[0])
    expected = build(0.4)(pair(flat[0][:1], flat[1][:1]), labels.flatten()[:1])
    torch.testing.assert_close(one, expected)


def test_half_precision_is_computed_in_float32():
    logits, past, labels = sample()
    half, teacher = logits.detach().bfloat16(), past.bfloat16()
    loss = build(0.5)(pair(half, teacher), labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, build(0.5)(pair(half.float(), teacher.float()), labels))


def test_only_the_class_itself_has_a_soft_form():
    class Subclass(nn.CrossEntropyLoss):
        pass

    assert soft_class(nn.CrossEntropyLoss()) is PSKDTorchCrossEntropyLoss
    assert soft_class(Subclass()) is None


@pytest.mark.parametrize('about', ['all', 'confidence'])
@pytest.mark.parametrize('form', FORMS)
def test_forms(form, about):
    logits, past, labels = sample()
    loss = build(0.9, reduction='none')
    loss.form, loss.about = form, about
    alpha = 0.9 if about == 'all' else 0.9 * past.softmax(1).amax(1, keepdim=True)
    value = loss(pair(logits, past), labels)
    expected = pskd_cross_entropy(logits, labels, past, alpha, form)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), logits, retain_graph=True)[0]
                                 for each in (value, expected)))


def test_a_sample_of_a_classifier_is_always_positive():
    with pytest.raises(ValueError, match="^PSKDHook: model.criterion.* knows no about 'positives', "
                       "only 'all', 'confidence'"):
        PSKDHook(loss_module='criterion', about='positives').attach(TinyClassifier())
