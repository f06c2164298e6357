import numpy as np
import pytest

from mmskd.evaluation.average_precision import precision_at_recalls
from mmskd.evaluation.detection import DetectionRule
from mmskd.evaluation.matching import match
from mmskd.evaluation.report.judging import judge
from mmskd.evaluation.report.thresholds import (
    best_thresholds,
    mean_over_classes,
    mean_tradeoff,
    tradeoff,
)
from tests.support.report_runs import detections


@pytest.fixture(scope='module')
def judged():
    predictions = detections(names=['a', 'b', 'c', 'nowhere'])
    predictions.arrays['gt_labels'] %= 3
    return predictions, judge(predictions, DetectionRule())


def test_precision_over_recall_is_that_of_the_average_precision(judged):
    predictions, of = judged
    expected = precision_at_recalls(match(predictions.detections, predictions.objects), 4)
    found = tradeoff(of)
    np.testing.assert_allclose(found.precision_at_recall, expected, atol=1e-12)
    assert np.isnan(found.precision_at_recall[3]).all()


def test_precision_recall_and_f1_at_each_threshold(judged):
    _, of = judged
    found = tradeoff(of)
    for at in (0, 20, 77, 150, 200):
        kept = of.above(found.thresholds[at])
        for label in range(3):
            right, n = kept.hits[kept.labels == label].sum(), (kept.labels == label).sum()
            objects = (of.object_labels == label).sum()
            assert found.precision[label, at] == pytest.approx(right / n if n else 1)
            assert found.recall[label, at] == pytest.approx(right / objects)
            assert found.f1[label, at] == pytest.approx(2 * right / (n + objects))


def test_best_thresholds(judged):
    _, of = judged
    curves = tradeoff(of)
    found = best_thresholds(curves, of)
    assert [one.name for one in found] == ['a', 'b', 'c']
    for label, one in enumerate(found):
        assert one.f1 == curves.f1[label].max() > 0.2
        assert one.objects == (of.object_labels == label).sum()
        assert one.f1 == pytest.approx(2 * one.precision * one.recall /
                                       (one.precision + one.recall))


def test_means(judged):
    _, of = judged
    curves = tradeoff(of)
    other = curves._replace(recall=curves.recall + 0.2)
    mean = mean_tradeoff([curves, other])
    np.testing.assert_allclose(mean.recall, curves.recall + 0.1)
    np.testing.assert_array_equal(mean.thresholds, curves.thresholds)
    np.testing.assert_allclose(mean_over_classes(curves.recall), curves.recall[:3].mean(axis=0))
    assert np.isnan(mean_over_classes(np.full((2, 3), np.nan))).all()
