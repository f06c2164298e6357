"""The soft forms of MMPreTrain's softmax losses against these, and against torch's."""
import copy

import pytest
import torch

losses = pytest.importorskip('mmpretrain.models.losses')

from mmskd.engine.hooks import PSKDHook  # noqa: E402
from mmskd.models.heads import TaughtHead  # noqa: E402
from mmskd.models.heads.classifier import classifier_head  # noqa: E402
from mmskd.models.losses import PSKDTorchCrossEntropyLoss, soft_form  # noqa: E402
from mmskd.models.pairing import pair  # noqa: E402

N, C = 8, 5
CLASS_WEIGHT = [1., 2., .5, 3., 0.]
STOCK = [losses.CrossEntropyLoss(loss_weight=2., class_weight=CLASS_WEIGHT),
         losses.CrossEntropyLoss(use_soft=True, class_weight=CLASS_WEIGHT),
         losses.LabelSmoothLoss(0.1, C, loss_weight=2.),
         losses.LabelSmoothLoss(0.1, C, mode='classy_vision', class_weight=CLASS_WEIGHT,
                                reduction='sum')]


def kinds(loss):
    return f'{type(loss).__name__}-{getattr(loss, "mode", getattr(loss, "use_soft", ""))}'


@pytest.fixture
def data():
    torch.manual_seed(0)
    logits, past = torch.randn(2, N, C, dtype=torch.float64)
    return logits.requires_grad_(), past, torch.randint(C, (N, ))


@pytest.mark.parametrize('call', [dict(), dict(avg_factor=3.), dict(reduction_override='none'),
                                  dict(weight=torch.rand(N)),
                                  dict(weight=torch.rand(N), avg_factor=2)],
                         ids=lambda call: '-'.join(call))
@pytest.mark.parametrize('stock', STOCK, ids=kinds)
def test_it_is_the_stock_loss_and_the_cross_entropy_to_the_past_self(stock, call, data):
    logits, past, labels = data
    if stock.reduction == 'sum' and 'avg_factor' in call:
        pytest.skip('which MMPreTrain refuses')
    soft = soft_form(copy.deepcopy(stock))
    if getattr(stock, 'use_soft', False):
        labels = torch.rand(N, C, dtype=torch.float64)
    expected = stock(logits, labels, **call)
    soft.alpha_t = 0.
    assert torch.equal(soft(pair(logits, past), labels, **call), expected)

    inner = getattr(stock, 'ce', stock)
    classes = torch.tensor(inner.class_weight or [1.] * C, dtype=torch.float64)
    of_sample = classes[labels] if labels.dim() == 1 else (labels * classes).sum(1)
    each = -(past.softmax(1) * logits.log_softmax(1)).sum(1) * of_sample
    each = each * call.get('weight', torch.ones(N)).double()
    reduction = call.get('reduction_override', stock.reduction)
    taught = each if reduction == 'none' else each.sum() if reduction == 'sum' else \
        each.sum() / call.get('avg_factor', N)
    soft.alpha_t = 0.3
    value = soft(pair(logits, past), labels, **call)
    torch.testing.assert_close(value, 0.7 * expected + 0.3 * stock.loss_weight * taught,
                               rtol=1e-6, atol=1e-6)


def test_it_is_that_of_torch(data):
    logits, past, labels = data
    for stock, settings in ((losses.CrossEntropyLoss(), {}),
                            (losses.LabelSmoothLoss(0.1, C), dict(label_smoothing=0.1))):
        soft, torchs = soft_form(stock), PSKDTorchCrossEntropyLoss(**settings)
        soft.alpha_t = torchs.alpha_t = 0.4
        torch.testing.assert_close(soft(pair(logits, past), labels),
                                   torchs(pair(logits, past), labels))


def test_no_gradient_where_present_and_past_self_agree(data):
    logits, _, labels = data
    for stock in STOCK[::2]:
        soft_form(stock)(pair(logits, logits.detach()), labels).backward()
    assert logits.grad.abs().max() < 1e-15


@pytest.mark.parametrize('loss', [losses.CrossEntropyLoss(use_sigmoid=True), losses.FocalLoss(),
                                  losses.LabelSmoothLoss(0.1, mode='multi_label'),
                                  losses.SeesawLoss(num_classes=C)],
                         ids=lambda loss: type(loss).__name__)
def test_what_is_no_softmax_of_one_class_is_refused(loss):
    model = torch.nn.Module()
    model.head = torch.nn.Module()
    model.head.loss_module = loss
    with pytest.raises(ValueError, match=f'head.loss_module.*({type(loss).__name__}|sigmoid)'):
        TaughtHead(classifier_head(model, 'head.loss_module'), soften=True)


@pytest.mark.parametrize('loss', [dict(type='CrossEntropyLoss'),
                                  dict(type='LabelSmoothLoss', label_smooth_val=0.1)],
                         ids=lambda loss: loss['type'])
def test_a_classifier_is_taught_unasked(loss):
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(
            type='ImageClassifier', backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=C, in_channels=64, loss=loss)))
    images = torch.rand(N, 3, 32, 32)
    samples = [DataSample().set_gt_label(index % C) for index in range(N)]
    stock = model(images, samples, mode='loss')['loss']
    hook = PSKDHook(past='average')
    hook.attach(model)
    hook.refresh_teacher()
    assert torch.equal(model(images, samples, mode='loss')['loss'], stock)
    hook.alpha_t = 0.5
    taught = model(images, samples, mode='loss')['loss']
    taught.backward()
    hook.average_teacher()
    assert hook.heads_taught[0].paired == 1 and abs(taught - stock) > 1e-3 * stock
    hook.detach()
    assert type(model.head.loss_module).__name__ == loss['type']
