"""The PS-KD drop-ins of MMPose's losses: stock numbers without a past self, the formula with one.
"""
import pytest
import torch

pytest.importorskip('mmpose')

from mmpose.registry import MODELS  # noqa: E402

from mmskd.models.losses.soft_target import SOFT_FORMS  # noqa: E402
from mmskd.models.pairing import pair  # noqa: E402

N, K, WX, WY = 3, 4, 6, 5
SIMCC = [dict(), dict(beta=10., label_softmax=True), dict(label_softmax=True, label_beta=3.),
         dict(use_target_weight=False), dict(mask=[1, 3], mask_weight=0.25)]
HEATMAP = [dict(), dict(use_target_weight=True), dict(skip_empty_channel=True),
           dict(use_target_weight=True, skip_empty_channel=True, loss_weight=0.5)]


def build(name, alpha_t=0., **options):
    """The drop-in and the stock loss."""
    stock = MODELS.build(dict(type=name, _scope_='mmpose', **options))
    ours = next(ours for known, ours in SOFT_FORMS.items() if known is type(stock))(**options)
    ours.alpha_t = alpha_t
    return ours, stock


def simcc(dtype=torch.float64):
    torch.manual_seed(0)
    draw = lambda: [torch.randn(N, K, width, dtype=dtype) for width in (WX, WY)]  # noqa: E731
    labels = [torch.rand(N, K, width, dtype=dtype) for width in (WX, WY)]
    return [z.requires_grad_() for z in draw()], labels, draw(), torch.rand(N, K, dtype=dtype)


def heatmaps(dtype=torch.float64):
    torch.manual_seed(0)
    target = torch.rand(N, K, WY, WX, dtype=dtype)
    target[0, 1] = 0.
    output = torch.randn(N, K, WY, WX, dtype=dtype).requires_grad_()
    return output, target, torch.randn_like(target), torch.rand(N, K, dtype=dtype)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


def assert_same(first, second):
    assert torch.equal(torch.as_tensor(first[0]), torch.as_tensor(second[0]))
    for one, other in zip(first[1], second[1]):
        assert torch.equal(one, other)


@pytest.mark.parametrize('options', SIMCC)
@pytest.mark.parametrize('paired', [False, True])
def test_simcc_without_a_past_self_is_the_stock_loss(options, paired):
    ours, stock = build('KLDiscretLoss', **options)
    logits, labels, past, weight = simcc(torch.float32)
    pred = [pair(z, q) for z, q in zip(logits, past)] if paired else logits
    mine, theirs = ours(tuple(pred), tuple(labels), weight), stock(tuple(logits), tuple(labels),
                                                                   weight)
    assert_same((mine.detach(), gradients(mine, *logits)),
                (theirs.detach(), gradients(theirs, *logits)))


@pytest.mark.parametrize('options', SIMCC)
@pytest.mark.parametrize('alpha_t', [0.3, 1.])
def test_simcc_loss_by_hand(options, alpha_t):
    """Scalar loops: KL of the mixed target from the prediction, averaged as mmpose does."""
    ours, _ = build('KLDiscretLoss', alpha_t, **options)
    logits, labels, past, weight = simcc()
    beta, label_beta = options.get('beta', 1.), options.get('label_beta', 10.)
    total = 0.
    for z, y, q in zip(logits, labels, past):
        for n in range(N):
            for k in range(K):
                target = y[n, k]
                if options.get('label_softmax'):
                    target = torch.exp(label_beta * target) / torch.exp(label_beta * target).sum()
                past_prob = torch.exp(beta * q[n, k]) / torch.exp(beta * q[n, k]).sum()
                prob = torch.exp(beta * z[n, k]) / torch.exp(beta * z[n, k]).sum()
                soft = (1 - alpha_t) * target + alpha_t * past_prob
                divergence = sum(soft[w] * (soft[w].log() - prob[w].log())
                                 for w in range(len(soft))) / len(soft)
                scale = weight[n, k] if options.get('use_target_weight', True) else 1.
                if k in options.get('mask', []):
                    scale = scale * options['mask_weight']
                total = total + scale * divergence / K
    loss = ours(tuple(pair(z, q) for z, q in zip(logits, past)), tuple(labels), weight)
    assert torch.allclose(loss, total, rtol=1e-10)
    for mine, reference in zip(gradients(loss, *logits), gradients(total, *logits)):
        assert torch.allclose(mine, reference, atol=1e-10)


@pytest.mark.parametrize('options', SIMCC)
def test_simcc_has_no_gradient_where_past_and_present_agree(options):
    ours, _ = build('KLDiscretLoss', 1., **options)
    logits, labels, _, weight = simcc()
    ours.reset()
    loss = ours(tuple(pair(z, z) for z in logits), tuple(labels), weight)
    assert max(grad.abs().max() for grad in gradients(loss, *logits)) < 1e-12
    assert abs(loss.item()) < 1e-12 and [mean.item() for mean, _ in ours.differences()] == [0, 0]


@pytest.mark.parametrize('options', HEATMAP)
@pytest.mark.parametrize('paired', [False, True])
def test_heatmaps_without_a_past_self_are_the_stock_loss(options, paired):
    ours, stock = build('KeypointMSELoss', **options)
    output, target, past, weight = heatmaps(torch.float32)
    weight = weight if options.get('use_target_weight') else None
    mine = ours(pair(output, past) if paired else output, target, weight)
    theirs = stock(output, target, weight)
    assert_same((mine.detach(), gradients(mine, output)),
                (theirs.detach(), gradients(theirs, output)))


@pytest.mark.parametrize('options', HEATMAP)
@pytest.mark.parametrize('with_mask', [False, True])
def test_heatmap_loss_by_hand(options, with_mask):
    ours, _ = build('KeypointMSELoss', 0.4, **options)
    output, target, past, weight = heatmaps()
    weight = weight if options.get('use_target_weight') else None
    mask = torch.rand(N, 1, WY, WX, dtype=torch.float64) if with_mask else None
    scale = torch.ones_like(target)
    if weight is not None:
        scale = scale * weight[..., None, None]
    if mask is not None:
        scale = scale * mask
    if options.get('skip_empty_channel'):
        scale = scale * (target.flatten(2).max(-1).values > 0)[..., None, None]
    reference = (scale *
                 (output - 0.6 * target - 0.4 * past)**2).mean() * options.get('loss_weight', 1.)

    loss = ours(pair(output, past), target, weight, mask)
    assert torch.allclose(loss, reference, rtol=1e-12)
    assert torch.allclose(*gradients(loss, output), *gradients(reference, output), atol=1e-12)


def test_hardest_keypoints_are_those_of_the_soft_target():
    ours, stock = build('KeypointOHKMMSELoss', 0.4, use_target_weight=True, topk=2)
    output, target, past, weight = heatmaps()
    loss = ours(pair(output, past), target, weight)
    reference = stock(output, 0.6 * target + 0.4 * past, weight)
    assert torch.allclose(loss, reference, rtol=1e-12)
    ours.alpha_t = 0.
    assert torch.equal(ours(pair(output, past), target, weight), stock(output, target, weight))


@pytest.mark.parametrize('name', ['KeypointMSELoss', 'KeypointOHKMMSELoss'])
def test_heatmaps_cost_nothing_where_past_and_present_agree(name):
    options = dict(topk=2) if 'OHKM' in name else {}
    ours, _ = build(name, 1., use_target_weight=True, **options)
    output, target, _, weight = heatmaps()
    assert ours(pair(output, output), target, weight) == 0


def test_registered_by_name():
    from mmskd.registry import MODELS as OURS
    for name in ('PSKDKLDiscretLoss', 'PSKDKeypointMSELoss', 'PSKDKeypointOHKMMSELoss'):
        assert type(OURS.build(dict(type=f'mmskd.{name}'))).__name__ == name
