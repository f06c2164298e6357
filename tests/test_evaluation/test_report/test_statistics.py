import numpy as np
import pytest
from scipy import stats

from mmskd.evaluation.report.statistics import mean_interval, paired_difference


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
    assert verdicts == {True, False}


def test_without_a_common_seed_there_is_no_difference():
    found = paired_difference({0: 1.}, {1: 2.})
    assert found.n == 0 and np.isnan(found.mean)
