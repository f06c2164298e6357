import numpy as np
import pytest

from mmskd.evaluation.bootstrap import bootstrap


def mean(values):
    return lambda weights: dict(mean=float(np.average(values, weights=weights)))


def test_of_a_mean_it_is_what_theory_says():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap(mean(values), 400)['mean']
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=.05)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=.05)
    narrower = bootstrap(mean(values), 400, level=.5)['mean']
    assert low < narrower[0] < narrower[1] < high


def test_it_is_seeded_and_draws_as_many_images_as_there_are():
    values, drawn = np.arange(30.), []

    def statistic(weights):
        drawn.append(weights)
        return mean(values)(weights)

    first = bootstrap(statistic, 30, n=20)
    assert first == bootstrap(mean(values), 30, n=20) != bootstrap(mean(values), 30, n=20, seed=1)
    assert len(drawn) == 20 and all(weights.sum() == 30 for weights in drawn)
    assert any((weights > 1).any() for weights in drawn)


def test_undefined_values_are_left_out():

    def statistic(weights):
        return dict(never=np.nan, sometimes=np.nan if weights[0] else 1.)

    ends = bootstrap(statistic, 5, n=50)
    assert np.isnan(ends['never']).all() and ends['sometimes'] == (1, 1)


@pytest.mark.parametrize('n_images', [0, 1])
def test_one_image_has_no_interval(n_images):
    ends = bootstrap(lambda weights: dict(sum=float(weights.sum())), n_images)
    assert np.isnan(ends['sum']).all()
