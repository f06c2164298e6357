"""How much a teacher's terms weigh beside the head's own loss, in gradients and per batch size."""
import pytest
import torch

pytest.importorskip('mmpose')

from mmskd.engine.hooks import DistillHook  # noqa: E402
from mmskd.models.losses import (  # noqa: E402
    CWDLoss,
    FeatureDistillLoss,
    PKDLoss,
    SimCCDistillLoss,
)
from tests.support import poses  # noqa: E402

FEATURES = dict(type='mmskd.FeatureDistillLoss')
SIMCC = dict(type='mmskd.SimCCDistillLoss')
DWPOSE = 64  # images on a GPU


def taught(family, times=1, losses=None):
    """The losses of a fresh model that another fresh one teaches, on two images ``times`` over.

    So that any mean over the batch is the same at each size.
    """
    student, teacher = poses.build(family), poses.build(family, seed=1).eval()
    hook = DistillHook(teacher=teacher, losses=losses)
    hook.attach(student)
    inputs, samples = poses.batch(student, 2)
    found = poses.losses(student, (inputs.repeat(times, 1, 1, 1), samples * times))
    hook.detach()
    return student, {key: value for key, value in found.items() if 'loss' in key}


def gradients(family, losses=None):
    """The norm of each loss's gradient in the backbone, over that of the head's own loss."""
    student, values = taught(family, losses=losses)
    parameters, norms = list(student.backbone.parameters()), {}
    for key, value in values.items():
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        norms[key] = torch.cat([g.flatten() for g in found if g is not None]).norm().item()
    own = norms.pop('loss_kpt')
    return {key: norm / own for key, norm in norms.items()}


def test_defaults_do_not_drown_the_loss_of_heatmaps():
    ratios = gradients('heatmap')
    assert set(ratios) == {'loss_logit'}, 'logits alone'
    assert 0.1 < ratios['loss_logit'] < 2


def test_why_heatmaps_are_distilled_alone():
    assert gradients('heatmap', [FEATURES])['loss_feature'] > 3, 'even at these small crops'


@pytest.mark.parametrize('family', ['rtmpose', 'simcc'])
def test_defaults_beside_simcc_at_the_batch_size_of_dwpose(family):
    ratios = gradients(family)
    assert set(ratios) == {'loss_feature', 'loss_logit'}, 'the defaults'
    assert 1e-4 < ratios['loss_logit'] < 1 and .01 < ratios['loss_feature'] < 10, ratios


@torch.no_grad()
def shares(times, **options):
    _, values = taught('rtmpose', times, [dict(term, **options) for term in (FEATURES, SIMCC)])
    own = values.pop('loss_kpt')
    return {key: (value / own).item() for key, value in values.items()}


def test_the_defaults_keep_their_balance_at_any_batch_size():
    features = dict(type='mmskd.PKDLoss', weight=8.)
    for times in (1, 4):
        _, values = taught('rtmpose', times)
        explicit = taught('rtmpose', times, [dict(term, for_batch_size=DWPOSE)
                                             for term in (SIMCC, features)])[1]
        assert {key: value.item() for key, value in values.items()} == {
            key: value.item() for key, value in explicit.items()}


def test_for_batch_size_keeps_the_balance():
    kept, plain = shares(1, for_batch_size=DWPOSE), shares(1)
    for images in (8, 16):
        assert shares(images // 2, for_batch_size=DWPOSE) == pytest.approx(kept, rel=1e-3)
    assert shares(4) == pytest.approx({key: value / 4 for key, value in plain.items()}, rel=1e-3), (
        'without it they weigh a quarter in a batch of four times the size')


def test_for_batch_size_is_the_plain_mean_at_that_size():
    maps, teacher = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    logits, others = [torch.rand(4, 5, 6)] * 2, [torch.rand(4, 5, 6)] * 2
    for size, factor in ((None, 1), (4, 1), (8, 0.5), (2, 2)):
        for loss in (FeatureDistillLoss, PKDLoss, CWDLoss):
            given = dict(weight=0.1, student_channels=3, teacher_channels=3)
            assert loss(**given, for_batch_size=size)(maps, teacher) == pytest.approx(
                factor * loss(**given)(maps, teacher).item())
        assert SimCCDistillLoss(for_batch_size=size)(logits, others, 10.) == pytest.approx(
            factor * SimCCDistillLoss()(logits, others, 10.).item())


def test_for_batch_size_beside_a_mean_is_refused():
    hook = DistillHook(teacher=poses.build('heatmap'), losses=[dict(FEATURES, for_batch_size=64)])
    with pytest.raises(ValueError, match='for_batch_size goes with KLDiscretLoss, .* Leave it out'):
        hook.attach(poses.build('heatmap'))


@pytest.mark.parametrize('loss', [FeatureDistillLoss, PKDLoss, CWDLoss, SimCCDistillLoss])
def test_for_batch_size_is_checked(loss):
    with pytest.raises(ValueError,
                       match=f'{loss.__name__}: for_batch_size must be a whole number, at least 1'):
        loss(for_batch_size=0)
