"""The forms in which hard target and teacher meet, against their formulas in float64."""
import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')

from mmdet.models import losses as mmdet_losses  # noqa: E402
from mmpose.models import losses as mmpose_losses  # noqa: E402

from mmskd.errors import UsageError  # noqa: E402
from mmskd.models.heads import HeadAdapter, adapter_of  # noqa: E402
from mmskd.models.heads.taught import TaughtHead  # noqa: E402
from mmskd.models.losses import functional as soft  # noqa: E402
from mmskd.models.losses.soft_target import FORMS, SoftTargetLoss, soft_form  # noqa: E402
from mmskd.models.pairing import pair  # noqa: E402

N, C, K = 9, 4, 3
LABELS = torch.tensor([0, 1, 2, 3, 4, 4, 4, 0, 1])  # 4 is background
CASES = {
    'softmax': (mmdet_losses.CrossEntropyLoss, {}),
    'class_weight': (mmdet_losses.CrossEntropyLoss, dict(class_weight=[1., 2., 3., .5, .1])),
    'sigmoid': (mmdet_losses.CrossEntropyLoss, dict(use_sigmoid=True)),
    'focal': (mmdet_losses.FocalLoss, dict(alpha=.3)),
    'focal_plain': (mmdet_losses.FocalLoss, dict(gamma=.5)),  # not block by block
    'quality': (mmdet_losses.QualityFocalLoss, dict(beta=1.5)),
    'varifocal': (mmdet_losses.VarifocalLoss, {}),
    'varifocal_one': (mmdet_losses.VarifocalLoss, dict(iou_weighted=False)),
    'simcc': (mmpose_losses.KLDiscretLoss, dict(beta=3., label_softmax=True)),
    'heatmap': (mmpose_losses.KeypointMSELoss, dict(use_target_weight=True, loss_weight=2.)),
    'hardest': (mmpose_losses.KeypointOHKMMSELoss, dict(use_target_weight=True, topk=2)),
}
DEFAULTS = {'focal_default': (mmdet_losses.FocalLoss, {}),
            'quality_default': (mmdet_losses.QualityFocalLoss, {})}
DETECTION = [name for name in CASES if name not in ('simcc', 'heatmap', 'hardest')]
LINEAR = ('softmax', 'class_weight', 'sigmoid', 'simcc', 'heatmap')


def inputs(name):
    """Predictions of student and past self, and what follows in the call, float64."""
    torch.manual_seed(0)
    # mmdet takes weights to float32
    weight, quality = torch.rand(N).double(), torch.rand(N).double()
    if name in ('simcc', 'heatmap', 'hardest'):
        shapes = [(N, K, 6), (N, K, 5)] if name == 'simcc' else [(N, K, 4, 5)]
        student, past, target = ([draw(shape, dtype=torch.float64) for shape in shapes]
                                 for draw in (torch.randn, torch.randn, torch.rand))
        return student, past, (target if name == 'simcc' else target[0],
                               torch.rand(N, K, dtype=torch.float64))
    width = C + (name in ('softmax', 'class_weight'))
    student, past = (torch.randn(N, width, dtype=torch.float64) for _ in range(2))
    dense = soft.one_hot(LABELS, C, torch.float64) * quality.unsqueeze(1)
    if 'varifocal' in name:
        return [student], [past], (dense, weight.unsqueeze(1).expand_as(student))
    return [student], [past], ((LABELS, quality) if name == 'quality' else LABELS, weight)


def softened(name, form='paper', alpha_t=.6, about='all'):
    kind, options = {**CASES, **DEFAULTS}[name]
    loss = soft_form(kind(**options))
    loss.form, loss.alpha_t, loss.about = form, alpha_t, about
    return loss


def called(loss, student, past, rest):
    """Value and gradients of a call with a prediction that carries the teacher's."""
    leaves = [one.clone().requires_grad_() for one in student]
    pairs = [pair(z, q) if q is not None else z for z, q in zip(leaves, past)]
    rest = [tuple(each) if isinstance(each, list) else each for each in rest]
    value = loss(tuple(pairs) if len(pairs) > 1 else pairs[0], *rest)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


def reference(name, form, alpha, student, past, rest):
    """The formulas of the documentation, element by element, with plain tensors."""
    factor = dict(rescaled=min(1 / (1 - alpha), 5.) if alpha < 1 else 5.).get(form, 1.)
    if name == 'simcc':
        (targets, weight), total = rest, 0.
        for z, past_z, y in zip(student, past, targets):
            y, logp, q = (10. * y).softmax(-1), (3. * z).log_softmax(-1), (3. * past_z).softmax(-1)

            def kl(t, logp=logp):
                return t * (t.log() - logp)

            total = total + (mix(form, alpha, y, q, kl, kl) * factor).mean(-1).mul(weight).sum() / K
        return total
    if name in ('heatmap', 'hardest'):
        (z, ), (q, ), (y, weight) = student, past, rest

        def squared(t):
            return (z - t)**2

        loss = mix(form, alpha, y, q, squared, squared) * factor
        if name == 'heatmap':
            return 2 * (loss * weight[..., None, None]).mean()
        loss = (loss * weight[..., None, None]**2).mean((2, 3))
        hard = (squared(y) * weight[..., None, None]**2).mean((2, 3))
        kept = torch.zeros_like(hard).scatter(1, hard.argsort(1, descending=True)[:, :2], 1.)
        return (loss * kept).sum() / (2 * N)
    (z, ), (past_z, ), (target, weight) = student, past, rest
    if name in ('softmax', 'class_weight'):
        y, q, logp = soft.one_hot(target, C + 1, z.dtype), past_z.softmax(1), z.log_softmax(1)
        loss = mix(form, alpha, y, q, lambda t: -t * logp, lambda t: t * (t.log() - logp)).sum(1)
        if name == 'class_weight':
            loss = loss * loss.new_tensor(CASES[name][1]['class_weight'])[target]
        return (loss * factor * weight).mean()
    p, q = 1 / (1 + torch.exp(-z)), 1 / (1 + torch.exp(-past_z))

    def bce(t):
        return -(t * p.log() + (1 - t) * (1 - p).log())

    def entropy(t):
        return -(t * t.log() + (1 - t) * (1 - t).log())

    y = target if 'varifocal' in name else soft.one_hot(LABELS, C, z.dtype)
    if name == 'quality':
        y = y * target[1].unsqueeze(1)

    def weigh(t):
        if name == 'sigmoid':
            return torch.ones_like(t)
        if name == 'quality':
            return (t - p).abs()**1.5
        if 'varifocal' in name:
            return torch.where(y > 0, t if name == 'varifocal' else torch.ones_like(t), .75 *
                               (p - t)**2)
        a, gamma = (.3, 2.) if name == 'focal' else (.25, .5)
        return (a * t + (1 - a) * (1 - t)) * (t - p).abs()**gamma

    exponent = dict(quality=1.5, focal_plain=.5, sigmoid=0.).get(name, 2.)
    loss = mix(
        form, alpha, y, q, lambda t: weigh(t) * bce(t), lambda t: weigh(y) * (bce(t) - entropy(t)),
        lambda t: (t - p).abs()**exponent * (bce(t) - (entropy(t) if name == 'sigmoid' else 0.)))
    loss = loss * factor * (weight if weight.dim() == 2 else weight.unsqueeze(1))
    return loss.sum() / N if name == 'quality' else loss.mean()


def mix(form, alpha, y, q, loss, divergence, distance=None):
    if form == 'kl':
        return (1 - alpha) * loss(y) + alpha * divergence(q)
    if form == 'added':
        return loss(y) + alpha * (distance or divergence)(q)
    return loss((1 - alpha) * y + alpha * q)


@pytest.mark.parametrize('alpha', [.3, .9, 1.])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', CASES)
def test_value_and_gradient(name, form, alpha):
    student, past, rest = inputs(name)
    value, gradients = called(softened(name, form, alpha), student, past, rest)
    leaves = [one.clone().requires_grad_() for one in student]
    expected = reference(name, form, alpha, leaves, past, rest)
    assert value.item() == pytest.approx(expected.item(), rel=1e-11)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, leaves)):
        assert theirs.abs().max() > 1e-4
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', CASES)
def test_at_alpha_zero_it_is_the_stock_loss_bit_for_bit(name, form):
    student, past, rest = inputs(name)
    value, gradients = called(softened(name, form, 0.), student, past, rest)
    kind, options = CASES[name]
    stock, theirs = called(kind(**options), student, [None] * len(student), rest)
    assert torch.equal(value, stock)
    assert all(map(torch.equal, gradients, theirs))


@pytest.mark.parametrize('form', ['paper', 'kl', 'rescaled'])
@pytest.mark.parametrize('name', CASES)
def test_no_gradient_where_both_agree_at_alpha_one(name, form):
    student, _, rest = inputs(name)
    _, gradients = called(softened(name, form, 1.), student, student, rest)
    assert max(gradient.abs().max() for gradient in gradients) < 1e-12


@pytest.mark.parametrize('name', CASES)
def test_added_leaves_the_hard_gradient_where_both_agree(name):
    student, past, rest = inputs(name)
    _, added = called(softened(name, 'added', 1.), student, student, rest)
    _, hard = called(softened(name, alpha_t=0.), student, past, rest)
    for one, other in zip(added, hard):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)  # mmdet's own is float32 in places


@pytest.mark.parametrize('name', LINEAR)
def test_losses_linear_in_the_target_have_one_gradient_in_paper_and_kl(name):
    student, past, rest = inputs(name)
    (paper, of_paper), (kl, of_kl) = (called(softened(name, form), student, past, rest)
                                      for form in ('paper', 'kl'))
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(of_paper, of_kl))
    assert not torch.allclose(paper, kl)


@pytest.mark.parametrize('name', DETECTION)
def test_kl_is_linear_in_alpha(name):
    student, past, rest = inputs(name)
    at = [called(softened(name, 'kl', alpha), student, past, rest)[1][0] for alpha in (.2, .5, .8)]
    assert torch.allclose((at[0] + at[2]) / 2, at[1], atol=1e-12)
    if name in ('focal', 'quality', 'varifocal'):
        at = [
            called(softened(name, 'paper', alpha), student, past, rest)[1][0]
            for alpha in (.2, .5, .8)
        ]
        assert not torch.allclose((at[0] + at[2]) / 2, at[1], atol=1e-4)


@pytest.mark.parametrize('form', FORMS)
def test_a_small_alpha_is_a_small_change_with_class_weights_and_labels_between_0_and_1(form):
    """As YOLOX's, which are IoUs."""
    student, past, _ = inputs('sigmoid')
    loss = mmdet_losses.CrossEntropyLoss(use_sigmoid=True, class_weight=[1., 3., .5, 2.])
    labels = torch.rand(N, C).double()
    stock, hard = called(loss, student, [None], (labels, ))
    near = soft_form(loss)
    near.form, near.alpha_t = form, 1e-6
    value, gradients = called(near, student, past, (labels, ))
    assert value.item() == pytest.approx(stock.item(), rel=1e-4)
    assert torch.allclose(gradients[0], hard[0], rtol=1e-4, atol=1e-7)
    near.alpha_t = 1.
    _, gradients = called(near, student, student, (labels, ))
    assert form == 'added' or gradients[0].abs().max() < 1e-12


# whose targets are softened
# ------------------------------------------------------------------------


def alphas(name, about, student, past, rest):
    """What alpha_of says in a call."""
    loss, said = softened(name, about=about), []
    stock = loss.alpha_of
    loss.alpha_of = lambda *args: said.append(stock(*args)) or said[-1]
    called(loss, student, past, rest)
    return said


def test_samples_with_an_object_or_nearly_one():
    student, past, rest = inputs('focal')
    past = [torch.full_like(past[0], -10.)]
    past[0][4, 2] = torch.logit(torch.tensor(.11))  # background to the labels
    past[0][5, 2] = torch.logit(torch.tensor(.09))
    expected = [.6, .6, .6, .6, .6, 0, 0, .6, .6]
    for name in ('focal', 'quality', 'varifocal', 'sigmoid'):
        said, = alphas(name, 'positives', student, past, inputs(name)[2])
        assert said.flatten().tolist() == pytest.approx(expected)
        sure, = alphas(name, 'confidence', student, past, inputs(name)[2])
        assert sure.shape == (N, 1)
        assert sure.flatten()[4:6].tolist() == pytest.approx([.6 * .11, .6 * .09])


def test_background_of_a_softmax_is_no_object():
    student, past, rest = inputs('softmax')
    past = [torch.zeros_like(past[0])]
    past[0][:, C] = 20.  # sure of the background
    past[0][4, 1] = 20.  # and in two minds
    said, = alphas('softmax', 'positives', student, past, rest)
    assert said.flatten().tolist() == pytest.approx([.6, .6, .6, .6, .6, 0, 0, .6, .6])
    sure, = alphas('softmax', 'confidence', student, past, rest)
    assert sure.flatten().tolist() == pytest.approx([0, 0, 0, 0, .3, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize('kind,options', [
    (mmdet_losses.CrossEntropyLoss, dict(use_sigmoid=True)), (mmdet_losses.FocalLoss, {}),
    (mmdet_losses.CrossEntropyLoss, {})], ids=['sigmoid', 'focal', 'softmax'])
def test_background_of_a_roi_is_no_object_whatever_its_loss(kind, options):
    """Sigmoids have a score of it, too."""
    from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
    from mmengine.registry import DefaultScope
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = Shared2FCBBoxHead(num_classes=C, in_channels=2, roi_feat_size=1, fc_out_channels=2,
                                 loss_cls=dict(type=kind, **options))
    taught = TaughtHead(adapter_of('roi_head.bbox_head', head), soften=True)
    loss, past = head.loss_cls, torch.full((N, C + 1), -9.)
    past[:, C] = 9.  # sure of the background
    past[5, 1] = 9. if kind is mmdet_losses.CrossEntropyLoss else 0.
    for about, there in (('positives', 1.), ('confidence', None)):
        taught.set_form('paper', about)
        loss.alpha_t = .6
        hard = soft.one_hot(LABELS, C + 1) if options else LABELS
        said = loss.alpha_of(past, hard).flatten()
        found = LABELS < C if there else torch.zeros(N, dtype=torch.bool)
        found[5] = True
        assert torch.equal(said > .2, found), (about, said)
    taught.remove()
    assert 'foreground' not in vars(loss)


@pytest.mark.parametrize('name', ['simcc', 'heatmap', 'hardest'])
def test_keypoints_that_are_visible_or_that_the_past_self_is_sure_of(name):
    student, past, (target, weight) = inputs(name)
    weight[2, 1], past = 0., [each * .3 for each in past]
    for said in alphas(name, 'positives', student, past, (target, weight)):
        assert torch.equal(said.flatten(2).squeeze(2), .6 * (weight > 0).double())
    said, *_ = alphas(name, 'confidence', student, past, (target, weight))
    if name == 'simcc':
        peak = (3. * past[0]).softmax(-1).amax(-1) / (10. * target[0]).softmax(-1).max()
    else:
        peak = past[0].amax((2, 3)) / target.max()
    assert torch.allclose(said.flatten(2).squeeze(2), .6 * peak.clamp(0, 1))
    assert 0 < said.min() < .6


@pytest.mark.parametrize('name, form', itertools.product(DETECTION, FORMS))
def test_a_sample_that_is_left_out_has_the_stock_gradient_and_a_positive_the_soft_one(name, form):
    student, past, rest = inputs(name)
    past = [torch.full_like(past[0], -3.)]  # .05
    if name in ('softmax', 'class_weight'):
        past[0][:, C] = .5  # .03 for each other class
    gradients = [called(softened(name, form, alpha, about), student, past, rest)[1][0]
                 for alpha, about in ((.6, 'positives'), (.6, 'all'), (0., 'all'))]
    positive = LABELS < C
    assert torch.allclose(gradients[0][positive], gradients[1][positive], atol=1e-12)
    assert torch.allclose(gradients[0][~positive], gradients[2][~positive], atol=1e-12)
    assert not torch.allclose(gradients[1][~positive], gradients[2][~positive], atol=1e-6)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', CASES)
def test_no_sample_and_half_precision(name, form):
    student, past, rest = inputs(name)
    for about in ('positives', 'confidence'):
        few = [[each[:0]
                for each in one] if isinstance(one, (list, tuple)) else one[:0]
               for one in rest]
        _, gradients = called(softened(name, form, about=about), [z[:0] for z in student],
                              [q[:0] for q in past], few)
        assert all(gradient.shape[0] == 0 for gradient in gradients)
        value, gradients = called(softened(name, form,
                                           about=about), [z.bfloat16() for z in student],
                                  [q.bfloat16() for q in past], rest)
        assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


def test_a_loss_of_ones_own_that_knows_no_other_form_is_refused():

    class Own(SoftTargetLoss, torch.nn.CrossEntropyLoss):
        pass

    head = TaughtHead.__new__(TaughtHead)
    head.losses = {'bbox_head.loss_cls': Own()}
    head.adapter = HeadAdapter('bbox_head', torch.nn.Identity())
    with pytest.raises(UsageError,
                       match="bbox_head.*its loss_cls, Own, knows no form 'kl', only 'paper'"):
        head.set_form('kl', 'all')
    with pytest.raises(UsageError, match="knows no about 'confidence', only 'all'"):
        head.set_form('paper', 'confidence')
    head.set_form('paper', 'all')


# what the documentation says
# -----------------------------------------------------------------------


def shares(name, form):
    """What remains of the hard gradient at alpha 0.8 where the past self agrees, in percent, of one
    class.
    """
    found = []
    for p, y in ((.1, 1.), (.5, 1.), (.01, 0.), (.5, 0.)):
        z, y = torch.logit(torch.tensor([[p]],
                                        dtype=torch.float64)), torch.tensor([[y]],
                                                                            dtype=torch.float64)
        soft_one, hard_one = (called(softened(name, form, alpha), [z], [z], (y, ))[1][0].item()
                              for alpha in (.8, 0.))
        found.append(100 * soft_one / hard_one)
    return found


ROWS = {'cross entropy': 'sigmoid', 'focal': 'focal_default', 'quality focal': 'quality_default',
        'varifocal': 'varifocal'}


def test_the_table_of_what_remains_of_the_hard_gradient():
    lines = (Path(__file__).parents[3] / 'docs' / 'pskd.md').read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith('| loss | form |'))
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in itertools.takewhile(lambda line: line.startswith('|'), lines[start + 2:])]
    seen = set()
    for losses, forms, *cells in rows:
        for loss, form in itertools.product(losses.split(', '), forms.replace('`', '').split(', ')):
            expected = [f'{share:.3g} %' for share in shares(ROWS[loss], form)]
            assert cells == expected, (loss, form)
            seen.add((loss, form))
    assert seen == set(itertools.product(ROWS, FORMS))


def test_a_focal_loss_towards_the_mix_shifts_the_balance_to_the_background():
    """The numbers of PS-KD's paper form: 6.5 % of a hard positive's gradient, 62 % of an easy
    negative's.
    """
    positive, _, negative, _ = shares('focal_default', 'paper')
    assert (round(positive, 1), round(negative)) == (6.5, 62)
    assert shares('sigmoid', 'paper') == pytest.approx([20.] * 4)
