"""Temperature scaling against cases with a known answer, and what it must leave alone."""
import numpy as np
import pytest

from mmskd.evaluation.calibration import aurc, eaurc, ece, nll, olrp
from mmskd.evaluation.temperature import apply_temperature, fit_temperature


def logit(p):
    return np.log(p / (1 - p))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def honest(n=20_000, seed=0):
    """Scores that are the chance of a hit, and hits."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(.05, .95, n)
    return scores, rng.random(n) < scores


def test_formula():
    scores = np.array([.1, .5, .8])
    np.testing.assert_allclose(apply_temperature(scores, 2.), sigmoid(logit(scores) / 2))
    assert apply_temperature(.5, 7.) == .5


def test_one_changes_nothing():
    scores = np.array([0, 1e-9, .3, 1.])
    np.testing.assert_array_equal(apply_temperature(scores, 1.), scores)


def test_is_the_softmax_of_two_classes():
    logits = np.random.default_rng(0).normal(0, 3, (50, 2))

    def softmax(z):
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    np.testing.assert_allclose(apply_temperature(softmax(logits)[:, 0], 1.7),
                               softmax(logits / 1.7)[:, 0])


@pytest.mark.parametrize('temperature', [.4, 1., 2.5])
def test_finds_the_temperature_that_was_there(temperature):
    truth, hits = honest()
    distorted = sigmoid(logit(truth) * temperature)  # undone by dividing
    assert fit_temperature(distorted, hits) == pytest.approx(temperature, rel=.05)


@pytest.mark.parametrize('seed', range(3))
def test_no_other_temperature_is_more_likely(seed):
    rng = np.random.default_rng(seed)
    scores = rng.random(300)
    hits = rng.random(300) < scores ** .7
    best = fit_temperature(scores, hits)

    def loss(temperature):
        p = sigmoid(logit(scores) / temperature)
        return -np.mean(np.log(np.where(hits, p, 1 - p)))

    for factor in (.5, .9, .999, 1.001, 1.1, 2):
        assert loss(best) < loss(best * factor)
    assert loss(best) <= loss(1.)


@pytest.mark.parametrize('power', [.5, 2.])
def test_mends_what_it_is_for(power):
    truth, hits = honest()
    scores = sigmoid(logit(truth) * power)
    fitted, measured = slice(None, 10_000), slice(10_000, None)  # on other predictions
    after = apply_temperature(scores, fit_temperature(scores[fitted], hits[fitted]))[measured]
    assert ece(scores[measured], hits[measured]) > .05
    assert ece(after, hits[measured]) < .025
    assert nll(after, hits[measured]) < nll(scores[measured], hits[measured])


@pytest.mark.parametrize('temperature', [.3, 3.])
def test_what_judges_the_order_stays(temperature):
    scores, hits = honest(500)
    scores[:50] = scores[50]  # ties
    ious = np.where(hits, np.random.default_rng(1).uniform(.5, 1, 500), 0.)
    mapped = apply_temperature(scores, temperature)
    assert ((mapped >= 0) & (mapped <= 1)).all() and not np.allclose(mapped, scores)
    assert aurc(mapped, hits) == aurc(scores, hits)
    assert eaurc(mapped, hits) == eaurc(scores, hits)
    assert olrp(mapped, hits, ious, 400, .5) == olrp(scores, hits, ious, 400, .5)


def test_certain_scores_are_finite():
    mapped = apply_temperature([0., 1.], 2.)
    assert 0 < mapped[0] < 1e-3 and mapped[1] == pytest.approx(1 - mapped[0])
    assert np.isfinite(fit_temperature([0., 1., .6, .6], [0, 1, 1, 0]))


@pytest.mark.parametrize('scores, hits, message', [
    ([], [], 'there are no predictions'),
    ([.1, .9], [0, 1], 'right side of 0.5'),
    ([.2, .3, .4], [1, 1, 0], '0.5 for all would fit better'),
    ([.5, 1.2], [0, 1], 'must be probabilities'),
    ([.5, np.nan], [0, 1], 'must be probabilities'),
])
def test_says_when_there_is_none(scores, hits, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(scores, hits)
