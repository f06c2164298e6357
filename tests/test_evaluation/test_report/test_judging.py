import numpy as np
import pytest
from mmengine.config import Config

from mmskd.evaluation.calibration import ece
from mmskd.evaluation.report.judging import (Rule, by_image, calibration_metrics, judge,
                                             metrics_by_name)
from mmskd.evaluation.report.predictions import Predictions

NAMES = ['a', 'b', 'c']


def detections(n_images=8, seed=0):
    """Objects, some of them crowds, and detections near and far, in no order of the images."""
    rng = np.random.default_rng(seed)
    n_objects, n_found = 40, 90
    corner = rng.uniform(0, 200, (n_objects, 2))
    gt_boxes = np.concatenate([corner, corner + rng.uniform(20, 80, (n_objects, 2))], 1)
    gt_images, gt_labels = rng.integers(0, n_images, n_objects), rng.integers(0, 2, n_objects)
    of = rng.integers(0, n_objects, n_found)
    return Predictions('detection', NAMES, [], dict(
        image_ids=np.array([f'image {i}' for i in range(n_images)]),
        image_paths=np.array(['x.png'] * n_images),
        boxes=(gt_boxes[of] + rng.normal(0, 6, (n_found, 4))).astype(np.float32),
        scores=rng.random(n_found).astype(np.float32), images=gt_images[of],
        labels=np.where(rng.random(n_found) < .8, gt_labels[of], 2),
        gt_boxes=gt_boxes.astype(np.float32), gt_labels=gt_labels, gt_images=gt_images,
        gt_ignored=rng.random(n_objects) < .15))


def poses(n=6, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 100, (n, 3, 2)).astype(np.float32)
    sides = rng.uniform(30, 120, (n, 2))
    sides[0] = 0  # a box without extent
    return Predictions('pose', NAMES, [[0, 1]], dict(
        image_ids=np.arange(n - 1), image_paths=np.array(['x.png'] * (n - 1)),
        images=np.array([0, 0, *range(1, n - 1)]), gt_keypoints=truth,
        keypoints=truth + rng.normal(0, 8, truth.shape).astype(np.float32),
        scores=rng.uniform(0, 1.2, (n, 3)).astype(np.float32),
        gt_visible=rng.random((n, 3)) < .7,
        gt_boxes=np.concatenate([np.zeros((n, 2)), sides], 1).astype(np.float32)))


class TestDetections:

    pytestmark = pytest.mark.usefixtures('pycocotools')

    @pytest.fixture
    def pycocotools(self):
        pytest.importorskip('mmdet')

    def test_they_are_judged_as_the_metric_does(self):
        from mmskd.evaluation.matching import match_detections
        from mmskd.evaluation.metrics.det_calibration import _coco_from_instances, _to_coco
        from mmskd.evaluation.report.judging import _metric_results
        predictions, rule = detections(), Rule(iou_thr=.6, score_thr=.2, n_bins=10)
        judged = judge(predictions, rule)
        results = _metric_results(predictions)
        coco = _coco_from_instances(results, NAMES)
        matches = match_detections(coco, _to_coco(results, [0, 1, 2]), list(coco.imgs),
                                   [0, 1, 2], .6)
        for label, match in enumerate(matches):
            expected = match.above(.2)
            mine = judged.labels == label
            assert sorted(zip(judged.scores[mine], judged.hits[mine])) == \
                sorted(zip(expected.scores, expected.hits))
        assert 5 < judged.hits.sum() < len(judged.hits) - 5
        metrics = calibration_metrics(predictions, judged, rule)
        assert metrics['calibration/ECE'] == pytest.approx(ece(judged.scores, judged.hits, 10))

    def test_a_hit_and_its_object_are_near_and_alike(self):
        from torchvision.ops import box_iou
        import torch
        predictions = detections()
        judged = judge(predictions, Rule(score_thr=0.))
        real = np.argsort(predictions.gt_images, kind='stable')
        real = real[~predictions.gt_ignored[real]]
        assert len(judged.found) == len(real)
        rows, objects = judged.rows[judged.hits], real[judged.objects[judged.hits]]
        ious = box_iou(torch.from_numpy(predictions.boxes[rows]),
                       torch.from_numpy(predictions.gt_boxes[objects])).diagonal()
        assert (ious >= .5).all()
        for key in ('images', 'labels'):
            np.testing.assert_array_equal(getattr(predictions, key)[rows],
                                          getattr(predictions, f'gt_{key}')[objects])
        assert len(set(judged.objects[judged.hits])) == judged.hits.sum()
        np.testing.assert_array_equal(judged.found[judged.objects[judged.hits]],
                                      judged.scores[judged.hits])
        assert (judged.found < 0).sum() == len(real) - judged.hits.sum()
        assert (judged.objects[~judged.hits] == -1).all()

    def test_false_alarms_are_counted_by_image(self):
        predictions = detections()
        judged = judge(predictions)
        alarms = judged.false_alarms(.5, 8)
        for i in range(8):
            mine = (judged.images == i) & (judged.scores >= .5)
            assert alarms[i] == (~judged.hits[mine]).sum()
        assert alarms.sum() > 0

    def test_the_truth_has_an_average_precision_of_one(self):
        predictions = detections()
        arrays = dict(predictions.arrays, gt_ignored=np.zeros(40, bool))
        for key in ('boxes', 'labels', 'images'):
            arrays[key] = arrays[f'gt_{key}']
        arrays['scores'] = np.linspace(.1, 1, 40, dtype=np.float32)
        perfect = Predictions('detection', NAMES, [], arrays)
        by_name = metrics_by_name(perfect, judge(perfect))
        np.testing.assert_allclose(by_name['AP'], [1, 1, np.nan])
        assert (metrics_by_name(predictions, judge(predictions))['AP'][:2] < 1).all()


class TestPoses:

    def test_hits_are_those_of_pck(self):
        evaluation = pytest.importorskip('mmpose.evaluation.functional')
        predictions = poses()
        judged = judge(predictions, Rule(pck_thr=.1))
        size = np.repeat(predictions.gt_boxes[:, 2:].max(1)[:, None], 2, 1)
        expected, mean, _ = evaluation.keypoint_pck_accuracy(
            predictions.keypoints, predictions.gt_keypoints, predictions.gt_visible, .1, size)
        by_name = metrics_by_name(predictions, judged)
        np.testing.assert_allclose(by_name['PCK'], expected)
        assert 0 < mean < 1

    def test_only_visible_keypoints_of_real_boxes_count(self):
        predictions = poses()
        judged = judge(predictions)
        assert len(judged.scores) == predictions.gt_visible[1:].sum() == len(judged.found)
        assert not (judged.rows < 3).any(), 'the first box has no extent'
        assert judged.scores.max() == 1, 'scores above 1 count as 1'
        np.testing.assert_array_equal(
            judged.images, predictions.images[judged.rows // 3])
        metrics = calibration_metrics(predictions, judged)
        assert metrics['calibration/ECE'] == ece(judged.scores, judged.hits)


@pytest.mark.parametrize('evaluator, expected', [
    (dict(type='mmskd.DetCalibrationMetric', iou_thr=.75, n_bins=10, ann_file='x'),
     Rule(iou_thr=.75, n_bins=10)),
    ([dict(type='CocoMetric'), dict(type='mmpose.PCKAccuracy', thr=.2)], Rule(pck_thr=.2)),
    (dict(type='mmskd.PoseCalibrationMetric', thr=.1, n_bins=9), Rule(pck_thr=.1, n_bins=9)),
    (dict(type='mmskd.PoseCalibrationMetric', hit='oks', thr=.5), Rule()),
    (dict(metrics=[dict(type='PCKAccuracy', norm_item=['bbox'])]), Rule()),
    (dict(type='PCKAccuracy', thr=.5, norm_item='torso'), Rule()),
    (None, Rule()),
])
def test_the_rule_is_that_of_the_evaluators(evaluator, expected):
    assert Rule.of(Config(dict(val_evaluator=evaluator))) == expected


def test_by_image():
    rows = by_image(np.array([2, 0, 2, 3]), 5)
    assert [row.tolist() for row in rows] == [[1], [], [0, 2], [3], []]
    assert [row.tolist() for row in by_image(np.zeros(0, int), 2)] == [[], []]
