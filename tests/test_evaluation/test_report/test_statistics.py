import numpy as np
import pytest
from scipy import stats

from mmskd.evaluation.report.statistics import (
    difference,
    mean_interval,
    paired_difference,
    unpaired_difference,
)


@pytest.mark.parametrize('n', [2, 3, 10])
def test_interval_is_that_of_the_t_test(n):
    values = np.random.default_rng(n).normal(1, 2, n)
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high))
    assert found.n == n


def test_a_single_value_has_no_interval_and_proves_nothing():
    found = mean_interval([0.7])
    assert found.mean == 0.7 and np.isnan(found.margin) and not found.excludes_zero
    assert np.isnan(mean_interval([]).mean) and mean_interval([np.nan]).n == 0


def test_values_without_spread_prove_nothing():
    """As of metrics that are rounded to three digits."""
    assert not paired_difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5}).excludes_zero
    assert not mean_interval([0.25, 0.25, 0.25]).excludes_zero
    assert not unpaired_difference([0.5, 0.5], [0.25, 0.25]).excludes_zero


def test_difference_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    verdicts = set()
    for shift in np.linspace(0, 2, 20):
        base = rng.normal(0, 5, 6)
        other = base + shift + rng.normal(0, 1, 6)
        # In another order, and with seeds that the other side lacks
        values = dict(reversed(list(enumerate(other))), **{'x': 100.})
        baseline = dict(enumerate(base), **{'y': -100.})
        found = paired_difference(values, baseline)
        assert found.mean == pytest.approx((other - base).mean()) and found.n == 6
        assert found.excludes_zero == (stats.ttest_rel(other, base).pvalue < 0.05)
        verdicts.add(found.excludes_zero)
        assert difference(values, baseline) == found and found.paired
    assert verdicts == {True, False}


def test_unpaired_difference_is_that_of_welch():
    rng = np.random.default_rng(0)
    verdicts = set()
    for shift in np.linspace(0, 4, 20):
        base, other = rng.normal(0, 1, 4), rng.normal(shift, 2, 6)
        found = unpaired_difference([*other, np.nan], base)
        test = stats.ttest_ind(other, base, equal_var=False)
        low, high = test.confidence_interval(0.95)
        assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high))
        assert found.excludes_zero == (test.pvalue < 0.05) and found.n == 4 and not found.paired
        verdicts.add(found.excludes_zero)
    assert verdicts == {True, False}


def test_without_a_common_seed_there_is_no_pair():
    found = paired_difference({0: 1.}, {1: 2.})
    assert found.n == 0 and np.isnan(found.mean)


@pytest.mark.parametrize('values, baseline, paired, n', [
    ({'run 3': 1., 'run 4': 2.}, {'run 0': 0., 'run 1': 1., 'run 2': 2.}, False, 2),  # no seeds
    ({0: 1., 1: 2., 2: 4.}, {0: 0., 1: 0., 5: 1.}, True, 2),
    ({0: 1., 1: 2.}, {1: 0., 2: 3.}, False, 2),  # one pair has no interval, two runs have
    ({0: 1.}, {0: 0.5}, True, 1),
    ({0: 1.}, {1: 0.5}, False, 1),
    ({}, {0: 1.}, False, 0),
])
def test_pairs_where_seeds_pair(values, baseline, paired, n):
    found = difference(values, baseline)
    assert (found.paired, found.n) == (paired, n)
    assert np.isfinite(found.margin) == (n > 1) and np.isfinite(found.mean) == (n > 0)
