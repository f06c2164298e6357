"""Calibrators against cases with a known answer, and what they must leave alone."""
import json

import numpy as np
import pytest

from mmskd.errors import UsageError
from mmskd.evaluation.calibration import aurc, eaurc, ece, nll
from mmskd.evaluation.calibrators import Calibrator, LogitMap, StepMap, fit_calibrator

MAPS = ('temperature', 'platt', 'isotonic')


def logit(p):
    return np.log(p / (1 - p))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def honest(n=20_000, seed=0):
    """Scores that are the chance of a hit, and hits."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(.05, .95, n)
    return scores, rng.random(n) < scores


def fit(kind, scores, targets, **kwargs):
    return fit_calibrator(kind, scores, targets, np.zeros(len(scores), int), ['all'], **kwargs)


# ------------------------------------------------------------------ maps


def test_temperature_is_the_softmax_of_two_classes():
    logits = np.random.default_rng(0).normal(0, 3, (50, 2))

    def softmax(z):
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    calibrator = Calibrator('detection', 'temperature', 'hit', ['all'], [LogitMap(1 / 1.7, 0.)])
    np.testing.assert_allclose(calibrator(softmax(logits)[:, 0]), softmax(logits / 1.7)[:, 0])


def test_none_changes_nothing():
    scores = np.array([0, 1e-9, .3, 1.])
    np.testing.assert_array_equal(fit('none', scores, scores)(scores), scores)


def test_certain_scores_are_finite():
    calibrator = Calibrator('detection', 'platt', 'hit', ['all'], [LogitMap(.5, 0.)])
    low, high = calibrator([0., 1.])
    assert 0 < low < 1e-3 and high == pytest.approx(1 - low)


def test_each_class_has_its_map():
    maps = [LogitMap(1., 0.), LogitMap(.5, 1.), LogitMap(2., -1.)]
    calibrator = Calibrator('detection', 'platt', 'hit', list('abc'), maps)
    scores, labels = np.random.default_rng(0).random(50), np.arange(50) % 3
    for label, one in enumerate(maps):
        alone = Calibrator('detection', 'platt', 'hit', ['x'], [one])
        np.testing.assert_allclose(calibrator(scores, labels)[labels == label],
                                   alone(scores[labels == label]))
    with pytest.raises(ValueError, match='a label is 3, but the calibrator has maps for 3 classes'):
        calibrator([.5], [3])


@pytest.mark.parametrize('scores', [[.5, 1.2], [-.1], [np.nan]])
def test_what_is_no_probability_is_an_error(scores):
    calibrator = Calibrator('detection', 'platt', 'hit', ['all'], [LogitMap(1., 0.)])
    with pytest.raises(ValueError, match='must be probabilities|not finite'):
        calibrator(scores)


# ------------------------------------------------------------------ fits


@pytest.mark.parametrize('temperature', [.4, 1., 2.5])
def test_finds_the_temperature_that_was_there(temperature):
    truth, hits = honest()
    calibrator = fit('temperature', sigmoid(logit(truth) * temperature), hits)
    assert 1 / calibrator.maps[0].slope == pytest.approx(temperature, rel=.05)
    assert not calibrator.notes


@pytest.mark.parametrize('slope, offset', [(.5, -1.), (2., .7)])
def test_finds_platts_parameters(slope, offset):
    truth, hits = honest()
    calibrator = fit('platt', sigmoid((logit(truth) - offset) / slope), hits)
    assert calibrator.maps[0] == pytest.approx((slope, offset), rel=.06)
    assert not calibrator.notes


@pytest.mark.parametrize('kind', ['temperature', 'platt'])
@pytest.mark.parametrize('soft', [False, True])
def test_no_other_parameters_are_more_likely(kind, soft):
    rng = np.random.default_rng(1)
    scores = rng.random(300)
    targets = scores**.7 * rng.random(300) if soft else rng.random(300) < scores**.7
    best = fit(kind, scores, targets).maps[0]

    def loss(slope, offset):
        p = sigmoid(slope * logit(scores) + offset)
        return -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p))

    for factor in (.9, .999, 1.001, 1.1):
        assert loss(*best) < loss(best.slope * factor, best.offset)
    if kind == 'platt':
        for shift in (-.1, -.001, .001, .1):
            assert loss(*best) < loss(best.slope, best.offset + shift)


def test_isotonic_by_hand():
    scores, hits = [.2, .4, .6, .8], [0, 1, 0, 1]
    calibrator = fit('isotonic', scores, hits)
    # 1 and 0 are in the wrong order and become 1/2 each; below, a line to 0; above, level
    np.testing.assert_allclose(calibrator([0, .1, .2, .4, .5, .6, .7, .8, 1]),
                               [0, 0, 0, .5, .5, .5, .75, 1, 1], atol=2e-4)


def test_isotonic_is_that_of_scikit_learn():
    isotonic = pytest.importorskip('sklearn.isotonic')
    scores, hits = honest(500)
    scores = np.round(scores, 2)
    theirs = isotonic.IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip').fit(scores, hits)
    at = np.linspace(scores.min(), .99, 200)
    np.testing.assert_allclose(fit('isotonic', scores, hits)(at), theirs.predict(at), atol=2e-4)


def test_platt_is_that_of_scikit_learn():
    linear_model = pytest.importorskip('sklearn.linear_model')
    scores, hits = honest(500)
    theirs = linear_model.LogisticRegression(C=np.inf, tol=1e-10).fit(
        logit(scores)[:, None], hits)
    assert fit('platt', scores, hits).maps[0] == pytest.approx(
        (theirs.coef_[0, 0], theirs.intercept_[0]), rel=1e-5)


@pytest.mark.parametrize('kind', MAPS)
@pytest.mark.parametrize('power', [.5, 2.])
def test_mends_what_it_is_for(kind, power):
    truth, hits = honest()
    scores = sigmoid(logit(truth) * power)
    fitted, measured = slice(None, 10_000), slice(10_000, None)  # on other predictions
    after = fit(kind, scores[fitted], hits[fitted])(scores[measured])
    assert ece(scores[measured], hits[measured]) > .05
    assert ece(after, hits[measured]) < .025
    assert nll(after, hits[measured]) < nll(scores[measured], hits[measured])


@pytest.mark.parametrize('kind', MAPS)
def test_the_order_stays(kind):
    """In float32, as a model keeps scores, that differ by a thousandth."""
    rng = np.random.default_rng(0)
    scores = rng.choice(1000, 500) / 1000  # ties among them
    hits = rng.random(500) < scores**2
    few = rng.random(500) < .2
    mapped = fit(kind, scores[few], hits[few])(scores).astype(np.float32)
    order = np.argsort(scores, kind='stable')
    steps, mapped_steps = np.diff(scores[order]), np.diff(mapped[order])
    assert (mapped_steps[steps > 0] > 0).all() and (mapped_steps[steps == 0] == 0).all()
    assert ((mapped >= 0) & (mapped <= 1)).all() and not np.allclose(mapped, scores)
    for metric in (aurc, eaurc):
        assert metric(mapped, hits) == metric(scores, hits)


def test_a_class_with_few_predictions_takes_the_map_of_all():
    scores, hits = honest(400)
    labels = np.where(np.arange(400) < 10, 1, 0)
    calibrator = fit_calibrator('platt', scores, hits, labels, ['many', 'few', 'none'], True)
    pooled = fit_calibrator('platt', scores, hits, labels, ['many', 'few', 'none'])
    assert calibrator.maps[0] != pooled.maps[0]
    assert calibrator.maps[1] == calibrator.maps[2] == pooled.maps[0]
    assert calibrator.notes == ['few: only 10 predictions: the map of all classes is used',
                                'none: only 0 predictions: the map of all classes is used']


# ------------------------------------------------------------------ what is said of a bad fit


def test_scores_that_are_all_too_low_are_said_to_be_out_of_a_temperatures_reach():
    """The case in which T = 150 came back without a word."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(.05, .48, 2000)
    hits = rng.random(2000) < .5 + scores
    calibrator = fit('temperature', scores, hits)
    assert 1 / calibrator.maps[0].slope == pytest.approx(20)
    note, = calibrator.notes
    assert 'edge of its range (T = 20)' in note and 'need a shift' in note
    assert not fit('platt', scores, hits).notes
    assert ece(fit('platt', scores, hits)(scores), hits) < ece(calibrator(scores), hits) / 3


@pytest.mark.parametrize('kind', ['temperature', 'platt'])
def test_scores_that_part_hits_from_misses_are_at_the_other_edge(kind):
    scores = np.linspace(.01, .99, 50)
    calibrator = fit(kind, scores, scores > .5)
    assert any('T = 0.05' in note for note in calibrator.notes)
    assert np.isfinite(calibrator(scores)).all()


@pytest.mark.parametrize('kind', MAPS)
def test_scores_that_fall_with_the_hits_are_said_to_say_nothing(kind):
    scores, hits = honest(2000)
    calibrator = fit(kind, scores, ~hits)
    assert any('may say nothing' in note for note in calibrator.notes)
    assert (np.diff(calibrator(np.linspace(0, 1, 50))) > 0).all(), 'it rises all the same'


@pytest.mark.parametrize('kind', MAPS)
@pytest.mark.parametrize('scores, targets, what', [
    ([.3] * 30, [0, 1] * 15, 'score'), (np.linspace(.1, .9, 30), [1] * 30, 'target')])
def test_nothing_to_learn_is_said(kind, scores, targets, what):
    calibrator = fit(kind, np.array(scores), np.array(targets))
    assert any(f'have the same {what}: there is nothing to learn' in note
               for note in calibrator.notes)
    assert np.isfinite(calibrator([.1, .5, .9])).all()


@pytest.mark.parametrize('arguments, error, message', [
    (('platt', [], []), UsageError, 'there are no predictions'),
    (('beta', [.5], [1]), ValueError, "'beta' is none of"),
    (('platt', [1.5], [1]), ValueError, 'must be probabilities'),
    (('platt', [.5], [1.5]), ValueError, r'targets must be in \[0, 1\]')])
def test_what_cannot_be_fitted(arguments, error, message):
    with pytest.raises(error, match=message):
        fit(*arguments)
    with pytest.raises(ValueError, match='2 labels|labels'):
        fit_calibrator('platt', [.5], [1], [0, 0], ['a'])


# ------------------------------------------------------------------ keypoints: any finite scores


@pytest.mark.parametrize('kind', ['platt', 'isotonic'])
def test_scores_of_any_scale(kind):
    truth, hits = honest()
    scores = 3 * logit(truth) + 40  # as of SimCC, without a softmax
    calibrator = fit(kind, scores[:10_000], hits[:10_000], task='pose')
    assert not calibrator.notes
    after = calibrator(scores[10_000:])
    assert ece(after, hits[10_000:]) < .025
    assert ece(scores[10_000:].clip(0, 1), hits[10_000:]) > .4
    if kind == 'platt':
        assert calibrator.maps[0] == pytest.approx((1 / 3, -40 / 3), rel=.06)
    assert ((calibrator([-1e6, 1e6]) >= 0) & (calibrator([-1e6, 1e6]) <= 1)).all()


def test_a_temperature_of_keypoint_scores_is_refused():
    with pytest.raises(UsageError, match='choose platt or isotonic'):
        fit('temperature', [.5], [1], task='pose')


# ------------------------------------------------------------------ files


def example(**changes):
    fields = dict(task='detection', kind='isotonic', target='iou', classes=['a', 'b'],
                  maps=[StepMap((0., .5, 1.), (0., .2, .9))], thresholds=[.3, None],
                  images=['0123456789'], fitted_on=dict(split='val'), notes=['a: only 3'])
    return Calibrator(**{**fields, **changes})


def test_a_file_is_what_was_saved(tmp_path):
    scores, labels = np.random.default_rng(0).random(30), np.arange(30) % 2
    for calibrator in (example(), example(kind='platt', maps=[LogitMap(.5, 1.), LogitMap(2., 0.)]),
                       example(kind='none', maps=[]),
                       example(task='pose', thresholds=None, kind='platt',
                               maps=[LogitMap(9., -3.)])):
        path = tmp_path / 'calibrator.json'
        calibrator.save(path)
        loaded = Calibrator.load(path)
        assert loaded.to_dict() == calibrator.to_dict() and loaded.digest == calibrator.digest
        np.testing.assert_array_equal(loaded(scores, labels), calibrator(scores, labels))
    assert example().digest != example(thresholds=[.3, .4]).digest


def test_thresholds_before_and_after_the_map():
    calibrator = example(thresholds=[.5, None])
    np.testing.assert_array_equal(calibrator.lrp_thresholds(), [.5, np.nan])
    np.testing.assert_array_equal(calibrator.lrp_thresholds(mapped=True), [np.float32(.2), np.nan])


@pytest.mark.parametrize('change, message', [
    (dict(format='something else'), 'its format is not'),
    (dict(extra=1), 'its fields are'),
    (dict(task='segmentation'), 'task is'),
    (dict(kind='eval'), 'kind is'),
    (dict(target='mask'), 'target is'),
    (dict(classes=[1, 2]), 'classes is no list of names'),
    (dict(classes='ab'), 'classes is no list of names'),
    (dict(maps=[]), 'there are 0 maps'),
    (dict(maps=[dict(scores=[0, 1], values=[0, 1])] * 3), 'there are 3 maps'),
    (dict(maps=[dict(scores=[0, 1], values=[1, 0])]), 'a map does not rise'),
    (dict(maps=[dict(scores=[1, 0], values=[0, 1])]), 'a map does not rise'),
    (dict(maps=[dict(scores=[0, 1], values=[0, 2])]), 'a map does not rise'),
    (dict(maps=[dict(scores=[0, 1], values=[0])]), 'a map does not rise'),
    (dict(maps=[dict(scores=[0, float('nan')], values=[0, 1])]), 'a map does not rise'),
    (dict(maps=[dict(slope=1, offset=0)]), 'scores'),
    (dict(kind='platt', maps=[dict(slope=-1, offset=0)]), 'a map is'),
    (dict(kind='platt', maps=[dict(slope='x', offset=0)]), 'could not convert'),
    (dict(kind='temperature', maps=[dict(slope=1, offset=1)]), 'a map is'),
    (dict(thresholds=[.5]), 'its thresholds are'),
    (dict(thresholds=None), 'its thresholds are'),
    (dict(thresholds=[2, None]), 'its thresholds are'),
    (dict(task='pose'), 'its thresholds are')])
def test_a_file_that_no_fit_wrote_is_refused(change, message, tmp_path):
    path = tmp_path / 'calibrator.json'
    path.write_text(json.dumps({**example().to_dict(), **change}))
    with pytest.raises(UsageError, match=f'calibrator.json is no calibrator .*{message}'):
        Calibrator.load(path)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / 'calibrator.json'
    for text in ('{', '[]', '"x"', 'null'):
        path.write_text(text)
        with pytest.raises(UsageError, match='calibrator.json is no calibrator'):
            Calibrator.load(path)
    with pytest.raises(FileNotFoundError):
        Calibrator.load(tmp_path / 'nowhere.json')
