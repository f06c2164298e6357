"""Every loss, with what training meets on its bad days: logits to 1e4, constant maps, no sample.

It is finite, and so are its gradients; it is not negative where the maths says so; and it is what
it is in float64 but for ``RELATIVE`` of its value and ``ABSOLUTE`` of the largest number that goes
in.
"""
import inspect
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')

from mmdet.models.losses import CrossEntropyLoss, FocalLoss  # noqa: E402
from mmpose.models.losses import KeypointMSELoss, KLDiscretLoss, MLECCLoss  # noqa: E402

import mmskd.models.losses as ours  # noqa: E402
from mmskd.models.losses import functional as soft  # noqa: E402
from mmskd.models.losses.distill import LossCall  # noqa: E402
from mmskd.models.losses.soft_target import ABOUT, FORMS, SoftTargetLoss  # noqa: E402
from mmskd.models.pairing import pair  # noqa: E402
from mmskd.registry import MODELS  # noqa: E402

RELATIVE, ABSOLUTE = 1e-5, 2e-6
BETA = 10.
HELPERS = {'progressive_target', 'one_hot', 'zipf_weights', 'target_classes', 'mask_of', 'mean_of',
           'soft_loss', 'rescaling'}


class Drawn(NamedTuple):
    """What is drawn: sizes, a type, the largest number, a weight, and a seed for the numbers."""
    n: int
    c: int
    dtype: torch.dtype
    largest: float
    alpha: float
    seed: int

    def numbers(self, *shape, places=16):
        """Whole multiples of a step: where two differ, they do by 1/16 of the largest."""
        steps = torch.randint(-places, places + 1, shape)
        return (steps * (self.largest / places)).to(self.dtype).double()

    def maps(self):
        """Features of student and teacher, (N, C, H, W); a channel of each may be constant."""
        found = []
        for channel in (0, self.c - 1):
            maps = self.numbers(self.n, self.c, 2, 3)
            maps[:, channel] = maps[:1, channel, :1, :1].sum() * 0 + self.largest / 3
            found.append(maps.to(self.dtype).double())
        return found

    def labels(self, least=0):
        return torch.randint(least, self.c, (self.n, ))

    def mixed(self):
        """Soft labels (N, C) of two classes."""
        first, second = (soft.one_hot(self.labels(), self.c, torch.float64) for _ in range(2))
        return .75 * first + .25 * second

    def certainties(self, *shape):
        return torch.randint(0, 9, shape).double() / 8

    def logits(self, count=2):
        return [self.numbers(self.n, self.c) for _ in range(count)]

    def densities(self):
        """Normalised heatmaps of student and teacher, (N, C, 2, 3)."""
        maps = [self.numbers(self.n, self.c, 2, 3) for _ in range(2)]
        return [one.flatten(2).softmax(-1).view_as(one).to(self.dtype).double() for one in maps]

    def bins(self):
        """SimCC logits over the bins of x and y, of the student and of the teacher."""
        return [self.numbers(self.n, self.c, width) for width in (3, 5, 3, 5)]


drawn = st.builds(
    Drawn, n=st.sampled_from([0, 1, 2, 5]), c=st.sampled_from([2, 3, 7]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]),
    largest=st.sampled_from([.01, 1., 30., 1e4]), alpha=st.sampled_from([.1, .8, 1.]),
    seed=st.integers(0, 2**20))

CASES = {}


def case(*names, least=0., half=True):
    """A function that makes of what is drawn ``(loss, tensors)``, for each of these losses.

    Args:
        names (str): Functions of ``functional``, or registered losses.
        least (float): What the loss is never below (but for rounding); None if it may be.
        half (bool): Whether it takes half precision. Default: True.
    """

    def register(make):
        for name in names:
            CASES[name] = make, least, half
        return make

    return register


def same_ranks(loss):
    """A loss that ranks classes, with the ranks of its first call in all: ties may go either way.
    """
    ranked, known = soft.zipf_weights, []

    def zipf_weights(z, weak, others):
        known[:] = known or [ranked(z, weak, others)]
        return known[0].to(z)

    def call(*args):
        with mock.patch.object(soft, 'zipf_weights', zipf_weights):
            return loss(*args)

    return call


def form_of(d):
    return FORMS[d.seed % len(FORMS)]


def kl_target(d, width):
    return torch.softmax(torch.randn(d.n, d.c, width, dtype=torch.float64), -1)


@case('pskd_cross_entropy', half=False)
def _(d):
    labels = d.labels()
    return (lambda z, past: soft.pskd_cross_entropy(z, labels, past, d.alpha, form_of(d)),
            d.logits())


@case('pskd_focal', 'soft_focal', half=False)
def _(d):
    labels = torch.randint(-1, d.c + 1, (d.n, ))
    return (lambda z, past: soft.pskd_focal(z, labels, past, d.alpha, form=form_of(d)), d.logits())


@case('pskd_binary_cross_entropy', half=False)
def _(d):
    hard = d.certainties(d.n, d.c)
    return (
        lambda z, past: soft.pskd_binary_cross_entropy(z, hard.to(z), past, d.alpha, form_of(d)),
        d.logits())


@case('soft_quality_focal', 'soft_varifocal', half=False)
def _(d):
    hard, options = d.certainties(d.n, d.c), dict(form=form_of(d))
    return (lambda z, past: soft.soft_quality_focal(
        z, hard.to(z), past.sigmoid(), d.alpha, 2., **options) + soft.soft_varifocal(
            z, hard.to(z), past.sigmoid(), d.alpha, .75, 2., **options), d.logits())


@case('pskd_heatmap', half=False)
def _(d):
    target = d.certainties(d.n, d.c, 2, 3)
    return (lambda student, past: soft.pskd_heatmap(student, target.to(student), past, d.alpha,
                                                    form_of(d)), d.maps())


@case('focal_to_target', 'quality_focal_to_target', half=False)
def _(d):
    target, exponent = d.certainties(d.n, d.c), [0., .5, 2.][d.seed % 3]

    def both(z):
        return soft.focal_to_target(z, target.to(z), exponent, .25) + soft.quality_focal_to_target(
            z, target.to(z), exponent)

    return both, d.logits(1)


@case('varifocal_to_target', half=False)
def _(d):
    target = d.certainties(d.n, d.c)
    return lambda z: soft.varifocal_to_target(z, target.to(z), target > .5, .75, 2.), d.logits(1)


@case('pskd_simcc_kl', half=False)
def _(d):
    target = kl_target(d, 5)
    return (lambda z, past: soft.pskd_simcc_kl(z, target.to(z), past, d.alpha, BETA),
            [d.numbers(d.n, d.c, 5), d.numbers(d.n, d.c, 5)])


@case('simcc_kl')
def _(d):
    return lambda a, b, c, e: soft.simcc_kl([a, b], [c, e], BETA, .1), d.bins()


@case('density_kl', half=False)
def _(d):
    return soft.density_kl, d.densities()


@case('heatmap_l2')
def _(d):
    return soft.heatmap_l2, d.maps()


@case('feature_l2')
def _(d):
    return lambda student, teacher: soft.feature_l2(student, teacher, 7e-5), d.maps()


@case('pearson_distance')
def _(d):
    return soft.pearson_distance, d.maps()


@case('channel_kl')
def _(d):
    return lambda student, teacher: soft.channel_kl(student, teacher, .5), d.maps()


@case('nkd', 'nkd_target', 'nkd_nontarget', 'cross_entropy_among', half=False)
def _(d):
    labels = d.mixed() if d.seed % 2 else d.labels()
    return lambda z, teacher: soft.nkd(z, teacher, labels, tau=2.), d.logits()


@case('uskd', 'uskd_target', 'uskd_nontarget', 'uskd_weak', half=False)
def _(d):
    labels = d.labels()
    return same_ranks(lambda z, weak: soft.uskd(z, weak, labels)), d.logits()


# ------------------------------------------------------------------ what configs name


def softened(name, d, **options):
    loss = MODELS.build(dict(type=f'mmskd.{name}', **options))
    loss.alpha_t, loss.form, loss.about = d.alpha, form_of(d), ABOUT[d.seed % len(ABOUT)]
    return loss


@case('PSKDCrossEntropyLoss')
def _(d):
    loss = softened('PSKDCrossEntropyLoss', d, use_sigmoid=bool(d.seed % 2),
                    class_weight=[2.] * d.c if d.seed % 3 else None)
    labels = d.labels()
    return lambda z, past: loss(pair(z, past), labels), d.logits()


@case('PSKDTorchCrossEntropyLoss')
def _(d):
    loss = softened('PSKDTorchCrossEntropyLoss', d, label_smoothing=.1 * (d.seed % 2),
                    weight=torch.full((d.c, ), 2.) if d.seed % 3 else None)
    loss.about = loss.abouts[d.seed % len(loss.abouts)]
    labels = d.labels()
    return lambda z, past: loss(pair(z, past), labels), d.logits()


@case('PSKDFocalLoss')
def _(d):
    loss, labels = softened('PSKDFocalLoss', d), torch.randint(0, d.c + 1, (d.n, ))
    return lambda z, past: loss(pair(z, past), labels), d.logits()


@case('PSKDQualityFocalLoss')
def _(d):
    loss = softened('PSKDQualityFocalLoss', d)
    target = torch.randint(0, d.c + 1, (d.n, )), d.certainties(d.n)
    return lambda z, past: loss(pair(z, past), target), d.logits()


@case('PSKDVarifocalLoss')
def _(d):
    loss, target = softened('PSKDVarifocalLoss', d), d.certainties(d.n, d.c)
    return lambda z, past: loss(pair(z, past), target), d.logits()


@case('PSKDKLDiscretLoss')
def _(d):
    loss = softened('PSKDKLDiscretLoss', d, beta=BETA)
    targets, weight = (kl_target(d, 3), kl_target(d, 5)), d.certainties(d.n, d.c)
    return lambda a, b, c, e: loss((pair(a, c), pair(b, e)), targets, weight), d.bins()


@case('PSKDKeypointMSELoss')
def _(d):
    loss, target = softened('PSKDKeypointMSELoss', d), d.certainties(d.n, d.c, 2, 3)
    return lambda student, past: loss(pair(student, past), target.to(student)), d.maps()


@case('PSKDKeypointOHKMMSELoss')
def _(d):
    loss, target = softened('PSKDKeypointOHKMMSELoss', d, topk=d.c), d.certainties(d.n, d.c, 2, 3)
    weight = torch.ones(d.n, d.c)
    return lambda student, past: loss(pair(student, past), target.to(student), weight), d.maps()


@case('FeatureDistillLoss', 'CWDLoss', 'PKDLoss')
def _(d):
    losses = [MODELS.build(dict(type=f'mmskd.{name}', student_channels=d.c, teacher_channels=d.c))
              for name in ('FeatureDistillLoss', 'CWDLoss', 'PKDLoss')]
    return lambda student, teacher: sum(loss(student, teacher) for loss in losses), d.maps()


@case('bins_kl')
def _(d):
    return soft.bins_kl, [d.numbers(d.n, 4, d.c) for _ in range(2)]


@case('BoxDistillLoss')
def _(d):
    loss = MODELS.build(dict(type='mmskd.BoxDistillLoss', tau=1.))
    weight = d.certainties(d.n)
    return (lambda student, teacher: loss([ours.BoxLesson(student, teacher, weight.to(student))]),
            [d.numbers(d.n, 4, d.c) for _ in range(2)])


@case('SimCCDistillLoss')
def _(d):
    loss = MODELS.build(dict(type='mmskd.SimCCDistillLoss', for_batch_size=64))
    call = KLDiscretLoss(beta=BETA)
    return (lambda a, b, c, e: loss.of_call(LossCall(call, ((pair(a, c), pair(b, e)), ), {})),
            d.bins())


@case('HeatmapDistillLoss')
def _(d):
    loss = MODELS.build(dict(type='mmskd.HeatmapDistillLoss'))
    return lambda a, b: loss.of_call(LossCall(KeypointMSELoss(), (pair(a, b), ), {})), d.maps()


@case('DSNTDistillLoss', half=False)
def _(d):
    loss = MODELS.build(dict(type='mmskd.DSNTDistillLoss'))
    return lambda a, b: loss.of_call(LossCall(None, (pair(a, b), ), {})), d.densities()


@case('RTMODistillLoss', half=False)
def _(d):
    loss = MODELS.build(dict(type='mmskd.RTMODistillLoss'))
    return lambda a, b: loss.of_call(LossCall(MLECCLoss(),
                                              ((pair(a, b), pair(a, b)), ), {})), d.densities()


@case('ClassDistillLoss')
def _(d):
    loss, own = MODELS.build(dict(type='mmskd.ClassDistillLoss')), FocalLoss()
    labels = torch.randint(0, d.c + 1, (d.n, ))
    options = dict(avg_factor=3.)
    return (lambda z, teacher: loss.of_call(LossCall(own, (pair(z, teacher), labels), options)),
            d.logits())


@case('NKDLoss')
def _(d):
    loss = MODELS.build(dict(type='mmskd.NKDLoss', ignore_background=bool(d.seed % 2)))
    labels, own = d.labels(), CrossEntropyLoss()
    return (lambda z, teacher: loss.of_call(LossCall(own, (pair(z, teacher), labels), {})),
            d.logits())


@case('USKDLoss')
def _(d):
    loss = MODELS.build(dict(type='mmskd.USKDLoss', ignore_background=bool(d.seed % 2)))
    labels = d.labels(least=-1)
    return same_ranks(lambda z, weak: loss(z, weak, labels)), d.logits()


@pytest.mark.parametrize('name', CASES)
@settings(max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))
@given(d=drawn)
def test_any_numbers(name, d):
    make, least, half = CASES[name]
    d = d if half or d.dtype == torch.float32 else d._replace(dtype=torch.float32)
    torch.manual_seed(d.seed)
    call, tensors = make(d)
    leaves = [tensor.to(d.dtype).requires_grad_() for tensor in tensors]
    value, exact = call(*leaves), call(*tensors)
    assert torch.isfinite(value).all() and torch.isfinite(exact).all()
    assert least is None or (value >= least - ABSOLUTE * (1 + BETA * d.largest)).all()
    allowed = RELATIVE * exact.abs() + ABSOLUTE * (1 + BETA * d.largest)
    assert (value - exact).abs().le(allowed).all(), (value, exact)
    value.sum().backward()
    assert leaves[0].grad is not None
    assert all(leaf.grad is None or torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_none_is_left_out():
    functions = {name for name, value in inspect.getmembers(soft, inspect.isfunction)
                 if value.__module__ == soft.__name__ and name[0] != '_'}
    registered = {name for name, value in MODELS.module_dict.items()
                  if value.__module__.startswith(ours.__name__)}
    assert CASES.keys() == functions - HELPERS | registered
    assert {name for name in registered if issubclass(MODELS.get(f'mmskd.{name}'), SoftTargetLoss)}
