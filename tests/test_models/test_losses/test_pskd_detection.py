"""The drop-ins against their namesakes in mmdet.

The soft target equals the hard one if the past self was certain and right, whatever alpha_t is;
then the drop-in has to return what mmdet returns, with every weight, factor and reduction.
"""
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmdet')

from mmdet.models import losses as stock_losses  # noqa: E402

from mmskd.models.losses.soft_target import SOFT_FORMS  # noqa: E402
from mmskd.models.pairing import pair  # noqa: E402
from mmskd.registry import MODELS  # noqa: E402

N, C = 12, 5
CERTAIN = 1e4

REDUCTIONS = [dict(), dict(reduction_override='none'), dict(reduction_override='sum'),
              dict(avg_factor=7.), dict(avg_factor=3., reduction_override='none')]
FOCAL = [dict(), dict(gamma=1.5, alpha=0.4, loss_weight=2.)]

DETECTION = ('CrossEntropyLoss', 'FocalLoss', 'QualityFocalLoss', 'VarifocalLoss')


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(name, alpha_t=1., **options):
    loss = MODELS.build(dict(type=f'mmskd.PSKD{name}', **options))
    loss.alpha_t = alpha_t
    return loss, getattr(stock_losses, name)(**options)


def call_both(ours, stock, past, logits, *args, **kwargs):
    """Loss and gradient of both."""
    results = []
    for loss, wrap in ((ours, lambda x: pair(x, past)), (stock, lambda x: x)):
        leaf = logits.clone().requires_grad_()
        value = loss(wrap(leaf), *args, **kwargs)
        value.sum().backward()
        results += [value.detach(), leaf.grad]
    return results


def assert_same(ours, ours_grad, stock, stock_grad):
    assert ours.shape == stock.shape
    assert torch.allclose(ours, stock, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours_grad, stock_grad, rtol=1e-4, atol=1e-6)


def test_each_is_a_subclass_of_its_namesake_and_registered():
    for stock, counterpart in SOFT_FORMS.items():
        if not counterpart.__module__.startswith('mmskd.'):
            continue  # docs/extend.md's, if its snippets have run before
        # both have a CrossEntropyLoss
        prefix = 'PSKDTorch' if stock.__module__.startswith('torch.') else 'PSKD'
        assert issubclass(counterpart,
                          stock) and counterpart.__name__ == f'{prefix}{stock.__name__}'
        assert MODELS.get(counterpart.__name__) is counterpart


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('call', REDUCTIONS)
@pytest.mark.parametrize('options', [
    dict(), dict(class_weight=[1., 2., 3., .5, .1]), dict(loss_weight=3.),
    dict(ignore_index=2, avg_non_ignore=True), dict(ignore_index=2)])
def test_softmax_cross_entropy(options, call, weighted):
    ours, stock = build('CrossEntropyLoss', alpha_t=0.6, **options)
    labels = torch.randint(C, (N, ))
    past = F.one_hot(labels, C) * CERTAIN
    weight = torch.rand(N) if weighted else None
    assert_same(*call_both(ours, stock, past, torch.randn(N, C), labels, weight, **call))


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('call', REDUCTIONS)
@pytest.mark.parametrize('options', [
    dict(), dict(class_weight=[1., 2., 3., .5, .1]), dict(ignore_index=2, avg_non_ignore=True),
    dict(loss_weight=2.)])
def test_sigmoid_cross_entropy_of_labels(options, call, weighted):
    ours, stock = build('CrossEntropyLoss', alpha_t=0.6, use_sigmoid=True, **options)
    labels = torch.randint(C + 1, (N, ))  # C is background
    past = (F.one_hot(labels, C + 1)[:, :C] * 2. - 1) * CERTAIN
    weight = torch.rand(N) if weighted else None
    assert_same(*call_both(ours, stock, past, torch.randn(N, C), labels, weight, **call))


@pytest.mark.parametrize('call', REDUCTIONS)
def test_sigmoid_cross_entropy_of_targets(call):
    """YOLOX: IoU-aware targets for each class."""
    ours, stock = build('CrossEntropyLoss', use_sigmoid=True)
    target = torch.rand(N, C) * 0.98 + 0.01
    assert_same(*call_both(ours, stock, torch.logit(target), torch.randn(N, C), target,
                           torch.rand(N, C), **call))


@pytest.mark.parametrize('weight', [None, torch.rand(N), torch.rand(N, C), torch.rand(N * C)])
@pytest.mark.parametrize('call', REDUCTIONS)
@pytest.mark.parametrize('options', FOCAL)
def test_focal(options, call, weight):
    ours, stock = build('FocalLoss', alpha_t=0.6, **options)
    labels = torch.randint(C + 1, (N, ))
    past = (F.one_hot(labels, C + 1)[:, :C] * 2. - 1) * CERTAIN
    assert_same(*call_both(ours, stock, past, torch.randn(N, C), labels, weight, **call))


def test_focal_of_probabilities_and_of_one_hot_targets():
    target = F.one_hot(torch.randint(C, (N, )), C)
    ours, stock = build('FocalLoss', activated=True)
    assert_same(*call_both(ours, stock, target.float(), torch.rand(N, C), target))
    ours, stock = build('FocalLoss')
    assert_same(*call_both(ours, stock, (target * 2. - 1) * CERTAIN, torch.randn(N, C), target))


@pytest.mark.parametrize('activated', [False, True])
@pytest.mark.parametrize('call', REDUCTIONS)
def test_quality_focal(call, activated):
    ours, stock = build('QualityFocalLoss', activated=activated, beta=1.5)
    labels, quality = torch.randint(C + 1, (N, )), torch.rand(N)
    target = F.one_hot(labels, C + 1)[:, :C] * quality[:, None]
    past = target if activated else torch.logit(target)
    logits = torch.rand(N, C) if activated else torch.randn(N, C)
    for form in ((labels, quality), target):
        assert_same(*call_both(ours, stock, past, logits, form, torch.rand(N), **call))


@pytest.mark.parametrize('iou_weighted', [True, False])
@pytest.mark.parametrize('call', REDUCTIONS)
def test_varifocal(call, iou_weighted):
    ours, stock = build('VarifocalLoss', iou_weighted=iou_weighted)
    target = F.one_hot(torch.randint(C + 1, (N, )), C + 1)[:, :C] * torch.rand(N, 1)
    assert_same(*call_both(ours, stock, torch.logit(target), torch.randn(N, C), target,
                           torch.rand(N, C), **call))


@pytest.mark.parametrize('name', DETECTION)
@pytest.mark.parametrize('paired', [False, True])
def test_without_alpha_or_teacher_it_is_the_namesake(name, paired):
    ours, stock = build(name, alpha_t=0. if paired else 0.7)
    logits = torch.randn(N, C)
    target = dict(CrossEntropyLoss=torch.randint(C, (N, )), FocalLoss=torch.randint(C, (N, )),
                  QualityFocalLoss=(torch.randint(C, (N, )), torch.rand(N)),
                  VarifocalLoss=torch.rand(N, C))[name]
    scores = pair(logits, torch.randn(N, C)) if paired else logits
    assert torch.equal(ours(scores, target), stock(logits, target))


@pytest.mark.parametrize('name,options', [
    ('CrossEntropyLoss', {}), ('CrossEntropyLoss', dict(use_sigmoid=True)), ('FocalLoss', {}),
    ('QualityFocalLoss', {}), ('VarifocalLoss', {})])
def test_half_precision_and_empty_predictions(name, options):
    ours, _ = build(name, alpha_t=0.5, **options)
    for count, dtype in ((N, torch.bfloat16), (0, torch.float32)):
        target = dict(QualityFocalLoss=(torch.randint(C, (count, )), torch.rand(count)),
                      VarifocalLoss=torch.rand(count, C)).get(name, torch.randint(C, (count, )))
        logits = torch.randn(count, C, dtype=dtype, requires_grad=True)
        loss = ours(pair(logits, torch.randn(count, C, dtype=dtype)), target, avg_factor=1.)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()


def test_a_mask_loss_is_refused():
    with pytest.raises(ValueError, match='use_mask'):
        build('CrossEntropyLoss', use_mask=True)


def test_disagreement_is_the_mean_difference_of_probabilities():
    ours, _ = build('FocalLoss')
    ours.reset()
    assert not ours.differences()
    ours(pair(torch.full((2, 3), 0.), torch.full((2, 3), CERTAIN)), torch.tensor([0, 1]))
    (mean, count), = ours.differences()
    assert mean.item() == pytest.approx(0.5) and not mean.requires_grad and count == 6
    ours.reset()
    assert not ours.differences()
