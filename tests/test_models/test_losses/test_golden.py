"""The formulas against the numbers in tests/golden/losses.json, which mmskd has no part in."""
import json

import numpy as np
import pytest
import torch

from mmskd.models.losses import functional
from tests.golden.make_losses import ALPHA, BETA, FILE, LABELS, numbers, values

GOLDEN = json.loads(FILE.read_text())['values']


def calls():
    """Each function on the numbers that its golden value was made of."""

    def tensor(*shape, shift=0.):
        return torch.from_numpy(numbers(*shape, shift=shift))

    z, q, labels = tensor(4, 5), tensor(4, 5, shift=.9), torch.tensor(LABELS)
    maps = tensor(2, 3, 4, 5), tensor(2, 3, 4, 5, shift=.4)
    bins, teacher = tensor(2, 3, 8, shift=.2) / 5, tensor(2, 3, 8, shift=.6) / 5
    hard = functional.one_hot(labels, 5, torch.float64)
    return dict(
        pskd_cross_entropy=(z, labels, q, ALPHA), pskd_binary_cross_entropy=(z, hard, q, ALPHA),
        pskd_focal=(z, labels, q, ALPHA), nkd=(z, q, labels, 1.5, 2.), uskd=(z, q, labels),
        simcc_kl=((bins, bins), (teacher, teacher), BETA), feature_l2=(*maps, .5),
        heatmap_l2=maps, pearson_distance=maps, channel_kl=(*maps, 2.),
        bins_kl=(tensor(3, 4, 7), tensor(3, 4, 7, shift=.5), 10.))


@pytest.mark.parametrize('name', GOLDEN)
def test_what_a_formula_comes_to(name):
    value = getattr(functional, name)(*calls()[name])
    np.testing.assert_allclose(value.numpy(), GOLDEN[name], rtol=1e-9, atol=1e-12)


def test_the_file_is_what_the_script_makes():
    made = values()
    assert made.keys() == GOLDEN.keys() == calls().keys()
    for name, value in made.items():
        np.testing.assert_allclose(value, GOLDEN[name], rtol=1e-12)
