import numpy as np
import pytest
from mmengine.config import Config

from mmskd.errors import UsageError
from mmskd.evaluation.calibration import aurc, ece
from mmskd.evaluation.detection import DetectionRule
from mmskd.evaluation.matching import match
from mmskd.evaluation.pose import PoseRule
from mmskd.evaluation.report.judging import best_threshold, judge, verdicts
from mmskd.evaluation.report.predictions import Predictions
from mmskd.evaluation.report.rules import common_rule, rule_of
from mmskd.evaluation.report.runs import Run
from tests.support.report_runs import write_run

NAMES = ['a', 'b', 'c']
POSE = dict(default_scope='mmpose')


def detections(n_images=8, seed=0):
    """Objects, some of them crowds or ignored, and detections near and far."""
    rng = np.random.default_rng(seed)
    n_objects, n_found = 40, 90
    corner = rng.uniform(0, 200, (n_objects, 2))
    gt_boxes = np.concatenate([corner, corner + rng.uniform(20, 80, (n_objects, 2))], 1)
    gt_images, gt_labels = np.sort(rng.integers(0, n_images, n_objects)), rng.integers(0, 2, 40)
    of = np.sort(rng.integers(0, n_objects, n_found))
    crowds = rng.random(n_objects) < .1
    return Predictions('detection', NAMES, dict(
        image_ids=np.array([f'image {i}' for i in range(n_images)]),
        image_paths=np.array(['x.png'] * n_images),
        boxes=(gt_boxes[of] + rng.normal(0, 6, (n_found, 4))).astype(np.float32),
        scores=rng.random(n_found).astype(np.float32), images=gt_images[of],
        labels=np.where(rng.random(n_found) < .8, gt_labels[of], 2),
        gt_boxes=gt_boxes, gt_labels=gt_labels, gt_images=gt_images, gt_crowds=crowds,
        gt_ignored=crowds | (rng.random(n_objects) < .1),
        gt_areas=np.prod(gt_boxes[:, 2:] - gt_boxes[:, :2], axis=1)))


def poses(n=6, seed=0, keypoints=3):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 100, (n, keypoints, 2)).astype(np.float32)
    sides = rng.uniform(30, 120, (n, 2))
    sides[0] = 0  # a box without extent
    return Predictions('pose', [f'k{i}' for i in range(keypoints)], dict(
        image_ids=np.arange(n - 1), image_paths=np.array(['x.png'] * (n - 1)),
        images=np.array([0, 0, *range(1, n - 1)]), gt_keypoints=truth,
        keypoints=truth + rng.normal(0, 8, truth.shape).astype(np.float32),
        scores=rng.uniform(0, 1.2, (n, keypoints)).astype(np.float32),
        gt_visible=rng.random((n, keypoints)) < .7,
        gt_boxes=np.concatenate([np.zeros((n, 2)), sides], 1).astype(np.float32),
        gt_areas=np.array([500., *[np.nan] * (n - 1)]),
        gt_head_sizes=np.linspace(5, 30, n)), links=[[0, 1]], sigmas=[.05] * keypoints)


class TestDetections:

    def test_they_are_judged_as_they_are_measured(self):
        predictions, rule = detections(), DetectionRule(iou_thr=.6, score_thr=.2, n_bins=10)
        found = verdicts(predictions, rule)
        expected = match(predictions.detections, predictions.objects, .6)
        assert len(found.judged.scores) == expected.counts.sum() < len(expected.counts)
        np.testing.assert_array_equal(found.judged.hits, expected.hits[expected.counts])
        measured = found.measured
        assert 5 < measured.hits.sum() < len(measured.hits) - 5 and measured.scores.min() >= .2
        # What the diagram shows is what the table says
        assert found.values['ECE'] == pytest.approx(ece(measured.scores, measured.hits, 10))
        assert found.values['AURC'] == pytest.approx(aurc(measured.scores, measured.hits))
        assert found.by_name['ECE'].shape == found.by_name['AP'].shape == (3, )
        assert found.values['mAP'] == pytest.approx(np.nanmean(found.by_name['AP']))

    def test_ignored_objects_are_neither_right_nor_wrong(self):
        """In the diagram as in the table."""
        predictions = detections()
        arrays = dict(predictions.arrays, boxes=predictions.gt_boxes, labels=predictions.gt_labels,
                      images=predictions.gt_images, scores=np.linspace(.1, 1, 40))
        found = verdicts(Predictions('detection', NAMES, arrays), DetectionRule())
        assert 0 < predictions.gt_ignored.sum() == 40 - len(found.measured.hits)
        assert found.measured.hits.all() and found.values['LRP_FP_own_thr'] == 0
        np.testing.assert_allclose(found.by_name['AP'], [1, 1, np.nan])
        assert found.confusion[-1].sum() == 0, 'no false alarms'

    def test_a_hit_and_its_object_are_near_and_alike(self):
        import torch
        from torchvision.ops import box_iou
        predictions = detections()
        judged = judge(predictions, DetectionRule())
        assert len(judged.found) == (~predictions.gt_ignored).sum()
        rows, objects = judged.rows[judged.hits], judged.object_rows[judged.objects[judged.hits]]
        ious = box_iou(torch.from_numpy(predictions.boxes[rows]).double(),
                       torch.from_numpy(predictions.gt_boxes[objects])).diagonal()
        assert (ious >= .5).all()
        for key in ('images', 'labels'):
            np.testing.assert_array_equal(getattr(predictions, key)[rows],
                                          getattr(predictions, f'gt_{key}')[objects])
        assert len(set(judged.objects[judged.hits])) == judged.hits.sum()
        np.testing.assert_array_equal(judged.found[judged.objects[judged.hits]],
                                      judged.scores[judged.hits])
        assert (judged.found == -np.inf).sum() == len(judged.found) - judged.hits.sum()
        assert (judged.objects[~judged.hits] == -1).all()

    def test_false_alarms_are_counted_by_image(self):
        judged = judge(detections(), DetectionRule()).above(.5)
        alarms = judged.false_alarms(8)
        for i in range(8):
            assert alarms[i] == (~judged.hits[judged.images == i]).sum()
        assert alarms.sum() > 0 and judged.scores.min() >= .5
        assert ((judged.found >= .5) | (judged.found == -np.inf)).all()

    def test_confusion_adds_up(self):
        predictions = detections()
        found = verdicts(predictions, DetectionRule())
        objects = np.bincount(predictions.gt_labels[~predictions.gt_ignored], minlength=4)
        np.testing.assert_array_equal(found.confusion[:-1].sum(axis=1), objects[:-1])
        kept = found.judged.above(found.threshold)
        assert found.confusion[:, :-1].sum() <= len(kept.scores) + predictions.gt_ignored.sum()
        assert found.confusion[0, 0] > found.confusion[0, 1]

    def test_a_detection_has_the_size_of_its_object(self):
        predictions = detections()
        predictions.arrays['gt_areas'] = np.linspace(100, 20000, 40)  # not those of the boxes
        found = verdicts(predictions, DetectionRule())
        assert set(found.by_size) == {'small', 'medium', 'large'}
        assert sum(len(scores) for scores, _, _ in found.by_size.values()) == \
            len(found.measured.scores)
        for scores, hits, error in found.by_size.values():
            assert error == pytest.approx(ece(scores, hits, 25))

    def test_thresholds_of_other_images(self):
        found = verdicts(detections(), DetectionRule(), detections(seed=1))
        assert 'LaECE_0' in found.values and 'LaECE_0_own_thr' not in found.values


class TestPoses:

    def test_hits_are_those_of_pck(self):
        evaluation = pytest.importorskip('mmpose.evaluation.functional')
        predictions = poses()
        found = verdicts(predictions, PoseRule(thr=.1))
        size = np.repeat(predictions.gt_boxes[:, 2:].max(1)[:, None], 2, 1)
        expected, mean, _ = evaluation.keypoint_pck_accuracy(
            predictions.keypoints, predictions.gt_keypoints, predictions.gt_visible, .1, size)
        np.testing.assert_allclose(found.by_name['PCK'], expected)
        assert found.values['PCK'] == pytest.approx(mean) and 0 < mean < 1

    @pytest.mark.parametrize('options, name', [
        (dict(norm_item='bbox', thr=.1), 'PCK'), (dict(norm_item='head', thr=.5), 'PCKh'),
        (dict(norm_item='torso', thr=.2), 'tPCK'), (dict(hit='oks', thr=.5), 'OKS hits')])
    def test_all_rules_are_those_of_the_metric(self, options, name):
        """The diagram and PoseCalibrationMetric judge the same keypoints."""
        pytest.importorskip('mmpose')
        from mmskd.evaluation.metrics import PoseCalibrationMetric
        predictions = poses(keypoints=6)
        metric = PoseCalibrationMetric(**options)
        metric.dataset_meta = dict(sigmas=predictions.sigmas)
        for i in range(6):
            metric.process({}, [dict(
                img_id=int(predictions.images[i]), img_path=f'{predictions.images[i]}.png',
                pred_instances=dict(keypoints=predictions.keypoints[i:i + 1],
                                    keypoint_scores=predictions.scores[i:i + 1]),
                gt_instances=dict(keypoints=predictions.gt_keypoints[i:i + 1],
                                  keypoints_visible=predictions.gt_visible[i:i + 1],
                                  bboxes=predictions.gt_boxes[i:i + 1],
                                  head_size=predictions.gt_head_sizes[i:i + 1]),
                raw_ann_info=dict(area=500.) if i == 0 else {})])
        expected = metric.compute_metrics(metric.results)
        found = verdicts(predictions, PoseRule(**options)).values
        assert 0 < found[name] < 1
        shared = set(found) & set(expected)
        assert {'ECE', 'NLL', 'AURC', 'clipped'} <= shared
        for key in shared:
            assert found[key] == pytest.approx(expected[key]), key

    def test_only_visible_keypoints_of_real_boxes_count(self):
        predictions = poses()
        judged = judge(predictions, PoseRule())
        assert len(judged.scores) == predictions.gt_visible[1:].sum() == len(judged.found)
        assert not (judged.rows < 3).any(), 'the first box has no extent'
        assert judged.scores.max() > 1 == judged.probabilities.max() and 0 < judged.clipped < 1
        np.testing.assert_array_equal(
            judged.images, predictions.images[judged.rows // 3])

    def test_a_keypoint_on_the_place_of_another_is_confused_with_it(self):
        predictions = poses()
        points = predictions.gt_keypoints.copy()
        points[3, 0] = points[3, 1]
        points[4, 2] += 1000
        predictions.arrays.update(keypoints=points, gt_visible=np.ones((6, 3), bool))
        confusion = verdicts(predictions, PoseRule()).confusion
        assert confusion.tolist() == [[4, 1, 0, 0], [0, 5, 0, 0], [0, 0, 4, 1], [0, 0, 0, 0]]

    @pytest.mark.parametrize('options, arrays, message', [
        (dict(norm_item='head'), dict(gt_head_sizes=np.full(6, np.nan)), 'no head sizes'),
        (dict(norm_item='torso'), {}, "JHMDB's keypoints")])
    def test_what_the_data_lacks(self, options, arrays, message):
        predictions = poses()
        predictions.arrays.update(arrays)
        with pytest.raises(UsageError, match=message):
            judge(predictions, PoseRule(**options))
        predictions.sigmas = []
        with pytest.raises(UsageError, match='no sigmas'):
            judge(predictions, PoseRule(hit='oks', thr=.5))


@pytest.mark.parametrize('config, expected', [
    (dict(val_evaluator=dict(type='mmskd.DetCalibrationMetric', iou_thr=.75, n_bins=10,
                             ann_file='x')), DetectionRule(iou_thr=.75, n_bins=10)),
    (dict(val_evaluator=None), DetectionRule()),
    (dict(POSE, val_evaluator=[dict(type='CocoMetric'), dict(type='mmpose.PCKAccuracy', thr=.2)]),
     PoseRule(thr=.2)),
    (dict(POSE, val_evaluator=dict(type='mmskd.PoseCalibrationMetric', thr=.1, n_bins=9)),
     PoseRule(thr=.1, n_bins=9)),
    (dict(POSE, val_evaluator=dict(type='mmskd.PoseCalibrationMetric', hit='oks')),
     PoseRule('oks', .5)),
    (dict(POSE, val_evaluator=dict(metrics=[dict(type='PCKAccuracy', norm_item=['bbox'])])),
     PoseRule()),
    (dict(POSE, val_evaluator=dict(type='PCKAccuracy', thr=.5, norm_item='torso')),
     PoseRule(thr=.5, norm_item='torso')),
    (dict(POSE, val_evaluator=dict(type='MpiiPCKAccuracy')), PoseRule(thr=.5, norm_item='head')),
    (dict(POSE, val_evaluator=[dict(type='PCKAccuracy', thr=.3), dict(
        type='mmskd.PoseCalibrationMetric')]), PoseRule()),
    (dict(POSE, val_evaluator=None), PoseRule()),
])
def test_the_rule_is_that_of_the_evaluators(config, expected):
    assert rule_of(Config(config)) == expected


@pytest.mark.parametrize('scope, options, message',
                         [('mmdet', dict(n_bins=0), 'n_bins .* at least 1, got 0'),
                          ('mmdet', dict(score_thr=2), r'score_thr .* in \[0, 1\], got 2'),
                          ('mmdet', dict(iou_thr=1), 'iou_thr'),
                          ('mmdet', dict(max_dets=0), 'max_dets'),
                          ('mmpose', dict(thr=0), 'val_evaluator: thr must be .* above 0'),
                          ('mmpose', dict(hit='oks', thr=2), 'thr must be .* at most 1, got 2'),
                          ('mmpose', dict(hit='near'), "'pck' or 'oks'"),
                          ('mmpose', dict(norm_item='arm'), 'norm_item')])
def test_rules_out_of_range(scope, options, message):
    kind = 'mmskd.DetCalibrationMetric' if scope == 'mmdet' else 'mmskd.PoseCalibrationMetric'
    with pytest.raises(UsageError, match=message):
        rule_of(Config(dict(default_scope=scope, val_evaluator=dict(type=kind, **options))))


def test_one_rule_for_all_runs(tmp_path):
    runs = [Run(write_run(tmp_path / str(iou_thr), lr=iou_thr, evaluator=[
        dict(type='mmskd.DetCalibrationMetric', iou_thr=iou_thr)])) for iou_thr in (.5, .75)]
    assert common_rule(runs, 'val') == (DetectionRule(), 'iou_thr (0.5, 0.75)')
    assert common_rule(runs[1:], 'val') == (DetectionRule(iou_thr=.75), '')


def test_best_threshold():
    predictions = detections()
    judged = judge(predictions, DetectionRule())
    scores = np.unique(judged.scores)

    def f1(threshold):
        kept = judged.above(threshold)
        return 2 * kept.hits.sum() / (len(kept.hits) + len(kept.found))

    found = best_threshold(judged)
    assert f1(found) == max(map(f1, scores)) > 0.2
    assert best_threshold(judged.above(2)) == 0
