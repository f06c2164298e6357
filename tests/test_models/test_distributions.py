"""Distributions over places on other bins: the summit stays, what a label is becomes what a label
is there.
"""
import numpy as np
import pytest
import torch

from mmskd.models.distributions import (
    Axis,
    bridge,
    heatmap_to_heatmap,
    heatmap_to_simcc,
    simcc_to_heatmap,
    simcc_to_simcc,
)

# Of RTMPose 256x192 along x: 384 bins of half a pixel, sigma 4.9 bins, label_beta 10
SMALL = Axis(384, 0.5, 0., (4.9 / 2)**2 / 10)
SHIFT = 0.5 / 1.5 - 0.5  # of pixel centres where 288 pixels become 192
LARGE = Axis(576, 0.5, 0., (6 / 2)**2 / 10).mapped(1 / 1.5, SHIFT)
ONE_A_PIXEL = Axis(192, 1., 0., 4.)
WIDE = Axis(384, 0.5, 0., 9.)
MAP = Axis(48, 4., 0., 64.)
UDP = Axis(72, 287 / 71, 0., (2 * 287 / 71)**2).mapped(1 / 1.5, SHIFT)
ONES = dict(small=SMALL, large=LARGE, one_a_pixel=ONE_A_PIXEL, wide=WIDE, map=MAP, udp=UDP)


def at(axis):
    return axis.start + axis.step * torch.arange(axis.count, dtype=torch.float64)


def bump(axis, places):
    """What a label is on these bins, its summit 1."""
    distance = at(axis) - torch.as_tensor(places, dtype=torch.float64)[:, None]
    return torch.exp(-distance**2 / (2 * axis.variance))


def logits(axis, places, beta):
    return (bump(axis, places).log() / beta)[None]


def summit(axis, masses):
    return at(axis)[masses.argmax(-1)]


PLACES = np.random.default_rng(0).uniform(30, 160, 40)


@pytest.mark.parametrize('theirs', ONES)
@pytest.mark.parametrize('mine', ['small', 'large', 'one_a_pixel', 'wide'])
def test_simcc_keeps_summit_and_mean_and_adds_up_to_one(theirs, mine, beta=10.):
    source, target = ONES[theirs], ONES[mine]
    (found, ), inside = simcc_to_simcc([logits(source, PLACES, beta)], beta,
                                       [bridge(source, target)])
    coarser = max(abs(source.step), abs(target.step))
    assert torch.allclose(found.sum(-1), torch.ones(1, 40, dtype=found.dtype))
    assert torch.allclose(inside, torch.ones_like(inside), atol=1e-4)
    # Half a bin of the student's: nothing is nearer to where the label was, between the teacher's
    # bins
    off = (summit(target, found[0]) - torch.as_tensor(PLACES)).abs().max()
    assert off <= target.step / 2 + 0.02 * coarser
    mean = (found[0] * at(target)).sum(-1)
    assert (mean - torch.as_tensor(PLACES)).abs().max() < 0.02 * coarser


@pytest.mark.parametrize('theirs,mine', [
    ('large', 'small'), ('small', 'large'), ('small', 'wide'), ('wide', 'small'),
    ('small', 'small'), ('one_a_pixel', 'wide'), ('map', 'wide')])
def test_a_label_becomes_a_label(theirs, mine):
    """Where the student's bins are not finer than the teacher's can tell."""
    source, target = ONES[theirs], ONES[mine]
    (found, ), _ = simcc_to_simcc([logits(source, PLACES, 1.)], 1., [bridge(source, target)])
    wanted = bump(target, PLACES)
    wanted = wanted / wanted.sum(-1, keepdim=True)
    limit = (0.8 * abs(source.step))**2 + (0.8 * max(abs(source.step), abs(target.step)))**2
    if target.variance > limit:
        assert (found[0] - wanted).abs().sum(-1).max() / 2 < 0.03  # total variation
    mean = (found[0] * at(target)).sum(-1, keepdim=True)
    variance = (found[0] * (at(target) - mean)**2).sum(-1)
    expected = max(target.variance, limit if target.variance < limit else 0)
    assert variance.mean().item() == pytest.approx(expected, rel=0.1)


def test_nothing_changes_where_nothing_differs():
    given = torch.randn(2, 3, 384, dtype=torch.float64)
    (found, ), inside = simcc_to_simcc([given], 10., [bridge(SMALL, SMALL)])
    assert torch.allclose(found, (given * 10).softmax(-1), rtol=1e-12)
    assert torch.allclose(inside, torch.ones(2, 3, dtype=torch.float64))
    heatmaps = torch.randn(2, 3, 64, 48)
    assert heatmap_to_heatmap(heatmaps, [bridge(MAP, MAP)] * 2)[0] is heatmaps


def test_the_matrix_is_a_gaussian_over_bins():
    """Against the same sum, written out."""
    way = bridge(SMALL, ONE_A_PIXEL)
    variance = 4. - SMALL.variance
    given = np.random.default_rng(1).dirichlet(np.ones(384))
    ours = torch.as_tensor(given)[None, None].log()
    (found, ), inside = simcc_to_simcc([ours], 1., [way])
    expected = np.zeros(192)
    for i in range(384):
        kernel = np.exp(-(np.arange(-50, 250) - i / 2)**2 / 2 / variance)
        expected += given[i] * kernel[50:242] / kernel.sum()
    assert inside.item() == pytest.approx(expected.sum(), abs=1e-6)
    assert np.allclose(found[0, 0], expected / expected.sum(), atol=1e-7)


def test_what_lies_outside_is_told():
    beyond = Axis(100, 1., -60., 4.)  # letterboxed: sixty pixels more to the left
    target = Axis(40, 1., 0., 4.)
    _, inside = simcc_to_simcc([logits(beyond, [-30., 0., 20.], 1.)], 1., [bridge(beyond, target)])
    assert inside[0, 0] < 1e-6 and inside[0, 2] > 0.999
    assert inside[0, 1].item() == pytest.approx(0.6, abs=0.05)  # the bin at 0, and half of the rest


def test_a_mirrored_axis_runs_backwards():
    way = bridge(LARGE.mirrored(192), SMALL)
    (found, ), _ = simcc_to_simcc([logits(LARGE, PLACES, 1.)], 1., [way])
    mean = (found[0] * at(SMALL)).sum(-1)
    assert (mean - (191 - torch.as_tensor(PLACES))).abs().max() < 0.01


def maps(x, y, places):
    across, down = bump(x, [place[0] for place in places]), bump(y, [place[1] for place in places])
    return (down.unsqueeze(-1) * across.unsqueeze(-2))[None]


POINTS = list(zip(PLACES[:10], np.random.default_rng(2).uniform(30, 220, 10)))
ROWS = dict(map=Axis(64, 4., 0., 64.), udp=Axis(96, 383 / 95, 0.,
                                                (2 * 383 / 95)**2).mapped(1 / 1.5, SHIFT))
TALL = Axis(512, 0.5, 0., (5.66 / 2)**2 / 10)


@pytest.mark.parametrize('theirs', ['map', 'udp'])
def test_heatmap_to_simcc_is_its_marginals(theirs):
    x, y = ONES[theirs], ROWS[theirs]
    given = maps(x, y, POINTS)
    found, inside = heatmap_to_simcc(given, [bridge(x, SMALL), bridge(y, TALL)])
    for axis, masses, source, place in zip((SMALL, TALL), found, (x, y), zip(*POINTS)):
        assert (summit(axis, masses[0])
                - torch.as_tensor(place)).abs().max() <= 0.25 + 0.02 * source.step
        assert ((masses[0] * at(axis)).sum(-1) - torch.as_tensor(place)).abs().max() < 0.1
    # Exact where nothing is to be done but to add up
    same = [Axis(48, 4., 0., 64.), Axis(64, 4., 0., 64.)]
    (across, down), _ = heatmap_to_simcc(given, [bridge(axis, axis) for axis in same])
    whole = given.sum((-2, -1), keepdim=True).squeeze(-1)
    assert torch.allclose(across,
                          given.sum(-2) / whole) and torch.allclose(down,
                                                                    given.sum(-1) / whole)


def test_a_noisy_floor_does_not_drown_the_bump():
    given = maps(MAP, ROWS['map'], POINTS)
    noisy = given + 0.01 * torch.rand(given.shape, generator=torch.manual_seed(0))
    (across, _), _ = heatmap_to_simcc(noisy, [bridge(MAP, SMALL), bridge(ROWS['map'], TALL)])
    assert ((across[0] * at(SMALL)).sum(-1) - torch.as_tensor(PLACES[:10])).abs().max() < 0.5


def test_simcc_to_heatmap_is_the_outer_product_as_high_as_a_label():
    pair = [logits(SMALL, [place[0] for place in POINTS], 10.),
            logits(TALL, [place[1] for place in POINTS], 10.)]
    found, inside = simcc_to_heatmap(pair, 10., [bridge(SMALL, MAP), bridge(TALL, ROWS['map'])])
    assert (found - maps(MAP, ROWS['map'], POINTS)).abs().max() < 0.02
    unsure = [axis * 0.2 for axis in pair]
    lower, _ = simcc_to_heatmap(unsure, 10., [bridge(SMALL, MAP), bridge(TALL, ROWS['map'])])
    assert (lower.flatten(2).amax(-1) < found.flatten(2).amax(-1)).all()


@pytest.mark.parametrize('height', [1., 0.3])
def test_heatmaps_on_other_cells_are_labels_there_and_as_high(height):
    given = height * maps(ONES['udp'], ROWS['udp'], POINTS)
    found, _ = heatmap_to_heatmap(given, [bridge(UDP, MAP), bridge(ROWS['udp'], ROWS['map'])])
    assert (found / height - maps(MAP, ROWS['map'], POINTS)).abs().max() < 0.05
    back, _ = heatmap_to_heatmap(found, [bridge(MAP, UDP), bridge(ROWS['map'], ROWS['udp'])])
    assert (back - given).abs().max() < 0.15 * height


def test_without_a_positive_value_nothing_lies_inside():
    _, inside = heatmap_to_simcc(torch.zeros(1, 1, 64, 48), [bridge(MAP, SMALL),
                                                            bridge(ROWS['map'], TALL)])
    assert inside.item() == 0
    found, _ = heatmap_to_heatmap(-torch.ones(1, 1, 96, 72), [
        bridge(UDP, MAP), bridge(ROWS['udp'], ROWS['map'])])
    assert found.abs().max() == 0


def test_half_precision_is_kept_out_of_the_way():
    given = torch.randn(1, 2, 576).half()
    (found, ), _ = simcc_to_simcc([given.float()], 10., [bridge(LARGE, SMALL)])
    assert found.dtype == torch.float32 and found.isfinite().all()
