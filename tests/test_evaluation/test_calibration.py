"""The formulas against cases computed by hand, slow definitions and published packages."""
import numpy as np
import pytest

from mmskd.evaluation.calibration import (
    aurc,
    brier,
    eaurc,
    ece,
    laace,
    laece,
    laece_by_class,
    lrp,
    lrp_optimal_threshold,
    nll,
    olrp,
    optimal_lrp_by_class,
    reliability_bins,
    risk_coverage,
)

N_OBJECTS, IOU_THR = 400, 0.5


def predictions(n=500, seed=0):
    """Scores with many ties, some exactly 0 and 1, hits that follow them loosely, and IoUs."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(n), 2)
    scores[:4] = 0, 0, 1, 1
    hits = rng.random(n) < scores ** 2
    return scores, hits, np.where(hits, rng.uniform(IOU_THR, 1, n), 0.)


def all_metrics(scores, hits, ious, n_objects=N_OBJECTS):
    return np.array([
        nll(scores, hits), ece(scores, hits), laece(scores, hits, ious), brier(scores, hits),
        laace(scores, hits, ious), aurc(scores, hits), eaurc(scores, hits),
        olrp(scores, hits, ious, n_objects, IOU_THR)])


# By hand: two bins, [0, .5) with .2 (miss) and .4 (hit), [.5, 1] with .6 (hit), .8 (miss), 1 (hit)
SCORES = [.2, .4, .6, .8, 1.]
HITS = [0, 1, 1, 0, 1]
IOUS = [0., .5, .75, 0., 1.]


def test_reliability_bins_by_hand():
    bins = reliability_bins(SCORES, HITS, n_bins=2)
    np.testing.assert_allclose(bins.confidence, [.3, .8])
    np.testing.assert_allclose(bins.precision, [1 / 2, 2 / 3])
    np.testing.assert_array_equal(bins.count, [2, 3])


def test_bins_hold_their_lower_edge_and_the_last_one():
    assert reliability_bins([0, .25, .5, .75, 1], [1] * 5, n_bins=4).count.tolist() == [1, 1, 1, 2]


def test_an_empty_bin_is_nan():
    bins = reliability_bins([.1], [1], n_bins=2)
    assert np.isnan(bins.confidence[1]) and np.isnan(bins.precision[1]) and bins.count[1] == 0


def test_ece_by_hand():
    assert ece(SCORES, HITS, n_bins=2) == pytest.approx(.4 * abs(.3 - 1 / 2) + .6 * abs(.8 - 2 / 3))


def test_laece_by_hand():
    # precision times mean IoU of the hits: 1/2 * .5 and 2/3 * .875
    expected = .4 * abs(.3 - 1 / 2 * .5) + .6 * abs(.8 - 2 / 3 * .875)
    assert laece(SCORES, HITS, IOUS, n_bins=2) == pytest.approx(expected)


def test_a_score_on_the_edge_of_two_bins_is_in_the_lower_one_of_laece():
    """As in the code of both papers; ECE has it in the upper one, as netcal."""
    scores, hits = [.4, .5], [1, 0]
    assert ece(scores, hits, n_bins=2) == pytest.approx((.6 + .5) / 2)
    assert laece(scores, hits, hits, n_bins=2) == pytest.approx(abs(.45 - .5))
    assert laece([0., 1.], [1, 1], [1., 1.], n_bins=2) == pytest.approx(.5)


def test_laace_by_hand():
    assert laace(SCORES, HITS, IOUS) == pytest.approx((.2 + .1 + .15 + .8 + 0) / 5)
    # No bin balances what is too high by what is too low
    assert laece([.5, .5], [1, 0], [1., 0.]) == 0 and laace([.5, .5], [1, 0], [1., 0.]) == .5


def test_the_iou_of_a_miss_is_not_read():
    ious = np.where(HITS, IOUS, np.nan)
    assert laece(SCORES, HITS, ious) == laece(SCORES, HITS, IOUS)
    assert laace(SCORES, HITS, ious) == laace(SCORES, HITS, IOUS)
    assert olrp(SCORES, HITS, ious, 4, .5) == olrp(SCORES, HITS, IOUS, 4, .5)


def test_lrp_by_hand():
    # 3 hits with 1 - IoU of .5, .25, 0, two misses, of 4 objects one not found
    error = lrp(HITS, IOUS, n_objects=4, iou_thr=.5)
    assert error.total == pytest.approx((1.5 + 2 + 1) / 6)
    assert error.localisation == pytest.approx(.75 / 3)
    assert error.false_positives == 2 / 5 and error.false_negatives == 1 / 4
    # The total is made of its components
    assert error.total * 6 == pytest.approx(
        3 * error.localisation / .5 + 5 * error.false_positives + 4 * error.false_negatives)
    assert lrp([], [], 2, 0.)[0] == 1 and lrp([], [], 2, 0.)[3] == 1
    assert np.isnan(lrp([], [], 2, 0.)[1:3]).all()
    assert np.isnan(lrp([0], [0.], 0, 0.)[0]) and lrp([0], [0.], 0, 0.)[2] == 1


def test_the_optimal_threshold_by_hand():
    # .75 from 1 on, .8, .7, .7, .75: the highest of those that are equally good
    assert lrp_optimal_threshold(SCORES, HITS, IOUS, n_objects=4, iou_thr=.5) == .6
    assert lrp_optimal_threshold([.9, .3], [1, 0], [1., 0.], 1, 0.) == .9
    # Equal scores are kept together
    assert lrp_optimal_threshold([.9, .5, .5], [0, 1, 0], [0., .8, 0.], 1, 0.) == .5
    # A hit that just makes it is no better than nothing
    assert np.isnan(lrp_optimal_threshold([.9], [1], [.5], 1, .5))
    for nothing in (([], [], []), ([.9], [0], [0.])):
        assert np.isnan(lrp_optimal_threshold(*nothing, 3, 0.))
    assert np.isnan(lrp_optimal_threshold([.9], [0], [0.], 0, 0.))


def test_no_other_threshold_is_better():
    scores, hits, ious = predictions()
    for iou_thr in (0., .1, .5):
        best = lrp_optimal_threshold(scores, hits, ious, N_OBJECTS, iou_thr)
        errors = {thr: lrp(hits[scores >= thr], ious[scores >= thr], N_OBJECTS, iou_thr).total
                  for thr in np.unique(scores)}
        assert errors[best] == pytest.approx(min(errors.values()))
        assert errors[best] == pytest.approx(olrp(scores, hits, ious, N_OBJECTS, iou_thr))


def test_all_classes_at_once_are_each_by_itself():
    scores, hits, ious = predictions()
    labels = np.random.default_rng(3).integers(0, 4, len(scores))
    labels[labels == 2] = 4  # a class in the middle without predictions
    n_objects = [100, 50, 30, 0, 90]
    together = laece_by_class(scores, hits, ious, labels, 5)
    lowest, thresholds = optimal_lrp_by_class(scores, hits, ious, labels, n_objects, .5)
    for label in range(5):
        mine = labels == label
        of = scores[mine], hits[mine], ious[mine]
        np.testing.assert_allclose(together[label], laece(*of))
        np.testing.assert_allclose(lowest[label], olrp(*of, n_objects[label], .5))
        np.testing.assert_allclose(thresholds[label],
                                   lrp_optimal_threshold(*of, n_objects[label], .5))


def test_nll_and_brier_by_hand():
    scores, hits = [.25, .5], [1, 0]
    assert nll(scores, hits) == pytest.approx((np.log(4) + np.log(2)) / 2)
    assert brier(scores, hits) == pytest.approx((.75 ** 2 + .5 ** 2) / 2)


def test_nll_of_a_certain_miss_is_finite():
    assert nll([1.], [0]) == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert nll([1., 0.], [1, 0]) == pytest.approx(0, abs=1e-6)


def test_aurc_by_hand():
    # risks at the thresholds 1, .8, .6, .4, .2: 0, 1/2, 1/3, 1/4, 2/5
    assert aurc(SCORES, HITS) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    # one threshold for all: the risk of all
    assert aurc([.5] * 5, HITS) == pytest.approx(2 / 5)


def test_eaurc_by_hand():
    assert eaurc(SCORES, HITS) == pytest.approx(aurc(SCORES, HITS) - (.4 + .6 * np.log(.6)))
    assert eaurc([.5, .6], [1, 1]) == 0
    assert eaurc([.5, .6], [0, 0]) == 0


def test_eaurc_of_the_best_order_vanishes_with_n():
    for n in (10, 100, 1000):
        hits = np.arange(n) >= n // 2
        assert 0 < eaurc(np.arange(n) / n, hits) < 1 / n


def test_risk_coverage_by_hand():
    coverage, risk = risk_coverage([.9, .5, .5, .1], [1, 0, 1, 0])
    np.testing.assert_allclose(coverage, [1 / 4, 3 / 4, 1])
    np.testing.assert_allclose(risk, [0, 1 / 3, 1 / 2])


def test_olrp_by_hand():
    # Best threshold .4 or below: 3 hits with (1 - IoU) / (1 - .5) of 0, .5, 1, one miss, of 4 one
    # not found. Threshold 1: one hit, error 0, 3 not found: 3/4. Threshold .6: (.5 + 1 + 2) / 5.
    assert olrp(SCORES, HITS, IOUS, n_objects=4, iou_thr=.5) == pytest.approx(.7)
    assert olrp([.9], [1], [1.], n_objects=1, iou_thr=.5) == 0
    assert olrp([.9], [0], [0.], n_objects=3, iou_thr=.5) == 1


def test_aurc_and_olrp_follow_their_definitions():
    scores, hits, ious = predictions()
    risks = [1 - hits[scores >= s].mean() for s in scores]
    assert aurc(scores, hits) == pytest.approx(np.mean(risks))

    errors = []
    for s in scores:
        tp = hits & (scores >= s)
        fp, fn = np.sum(~hits & (scores >= s)), N_OBJECTS - tp.sum()
        errors.append((((1 - ious[tp]) / (1 - IOU_THR)).sum() + fp + fn) / (tp.sum() + fp + fn))
    assert olrp(scores, hits, ious, N_OBJECTS, IOU_THR) == pytest.approx(min(errors))


@pytest.mark.parametrize('n_bins', [10, 25])
def test_a_calibrated_detector_scores_zero_and_a_shifted_one_the_shift(n_bins):
    rng = np.random.default_rng(0)
    truth = rng.uniform(.2, .8, 200_000)
    hits = rng.random(truth.size) < truth
    assert ece(truth, hits, n_bins) < .01
    for shift in (-.15, .05, .15):
        assert ece(truth + shift, hits, n_bins) == pytest.approx(abs(shift), abs=.01)
    # A score is the expected IoU: a hit fits with .9 on average.
    ious = np.where(hits, rng.uniform(.8, 1, truth.size), 0.)
    assert laece(.9 * truth, hits, ious, n_bins) < .01
    assert laece(.9 * truth + .1, hits, ious, n_bins) == pytest.approx(.1, abs=.01)
    # Proper scores are lowest for the truth.
    assert min((-.15, 0, .15), key=lambda s: nll(truth + s, hits)) == 0
    assert min((-.15, 0, .15), key=lambda s: brier(truth + s, hits)) == 0


def test_order_and_repetition_change_nothing():
    data = predictions()
    expected = all_metrics(*data)
    assert np.isfinite(expected).all()
    order = np.random.default_rng(1).permutation(len(data[0]))
    np.testing.assert_allclose(all_metrics(*(a[order] for a in data)), expected, rtol=1e-12)
    twice = [np.tile(a, 2) for a in data]
    np.testing.assert_allclose(all_metrics(*twice, 2 * N_OBJECTS), expected, rtol=1e-12)


def test_weights_are_repetitions():
    scores, hits, _ = predictions()
    often = np.random.default_rng(2).integers(0, 4, len(scores))
    for metric in (ece, nll, brier, aurc, eaurc):
        assert metric(scores, hits, weights=often) == pytest.approx(
            metric(np.repeat(scores, often), np.repeat(hits, often)), rel=1e-12)
        assert np.isnan(metric(scores, hits, weights=0 * often))
    with pytest.raises(ValueError, match='weights must have the shape'):
        ece(scores, hits, weights=often[1:])


@pytest.mark.parametrize('n_bins', [0, -1, 2.5])
def test_less_than_one_bin_is_an_error(n_bins):
    for metric in (ece, reliability_bins):
        with pytest.raises(ValueError, match='n_bins must be a positive whole number'):
            metric([.5], [1], n_bins)
    with pytest.raises(ValueError, match='n_bins must be a positive whole number'):
        laece([.5], [1], [1.], n_bins)


def test_undefined_is_nan():
    values = all_metrics([], [], [])
    assert np.isnan(values[:-1]).all()
    assert values[-1] == 1  # nothing found
    assert np.isnan(olrp([.5], [0], [0.], n_objects=0, iou_thr=.5))
    assert all(len(a) == 0 for a in risk_coverage([], []))


@pytest.mark.parametrize('scores, hits', [([.5, .5], [1]), ([[.5]], [[1]]), ([1.5], [1]),
                                          ([-.1], [1]), ([np.nan], [1])])
@pytest.mark.parametrize('metric', [ece, nll, brier, aurc, eaurc])
def test_what_is_no_probability_is_an_error(metric, scores, hits):
    with pytest.raises(ValueError, match='scores'):
        metric(scores, hits)


@pytest.mark.parametrize('n_bins', [10, 15, 25])
def test_ece_is_that_of_torchmetrics(n_bins):
    functional = pytest.importorskip('torchmetrics.functional.classification')
    import torch
    rng = np.random.default_rng(0)
    scores = rng.random(2000)
    hits = rng.random(2000) < scores ** 2
    theirs = functional.binary_calibration_error(
        torch.from_numpy(scores), torch.from_numpy(hits).long(), n_bins=n_bins, norm='l1')
    assert ece(scores, hits, n_bins) == pytest.approx(theirs.item(), abs=1e-12)


@pytest.mark.parametrize('n_bins', [10, 20, 25])
def test_ece_is_that_of_netcal(n_bins):
    metrics = pytest.importorskip('netcal.metrics')
    scores, hits, _ = predictions(2000)
    theirs = metrics.ECE(bins=n_bins, detection=True).measure(scores[:, None], hits.astype(int))
    assert ece(scores, hits, n_bins) == pytest.approx(theirs, abs=1e-12)
