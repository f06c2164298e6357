import numpy as np
import pytest

from mmskd.evaluation.detection import DetectionRule
from mmskd.evaluation.pose import PoseRule
from mmskd.evaluation.report import pictures
from mmskd.evaluation.report.charts import chart as charts
from mmskd.evaluation.report.judging import judge
from mmskd.evaluation.report.mistakes import picture_of, surest_mistakes
from mmskd.evaluation.report.predictions import Predictions
from tests.support.report_runs import detections, poses

IMAGE = np.full((128, 160, 3), 90, np.uint8)


def test_disagreements_are_the_images_on_which_runs_differ():
    first, second = (judge(detections(0, skill), DetectionRule()).above(.3) for skill in (.4, .9))
    found, differ = pictures.disagreements([first, second], 4, 3)
    expected = (first.found > -np.inf) != (second.found > -np.inf)
    np.testing.assert_array_equal(differ, expected)
    alarms = abs(first.false_alarms(4) - second.false_alarms(4))
    objects = np.bincount(first.object_images[expected], minlength=4)
    assert [one.objects + one.alarms for one in found] == sorted(objects + alarms)[::-1][:3]
    assert pictures.disagreements([first, first], 4, 3)[0] == []


def test_counts_in_words():
    judged = judge(detections(0, .9), DetectionRule()).above(.3)
    mine = judged.object_images == 0
    right = (judged.found[mine] > -np.inf).sum()
    wrong = ((judged.images == 0) & ~judged.hits).sum()
    assert pictures.counts(judged, 0,
                           'detection') == f'{right} of {mine.sum()} found, {wrong} false'


def label_boxes(figure):
    """Where the labels of a picture are, in pixels."""
    figure.canvas.draw()
    return [text.get_window_extent() for text in figure.axes[0].texts]


def test_labels_hide_no_other_label_and_stay_inside():
    predictions = detections(images=1, objects=25)
    figure = pictures.picture(IMAGE, pictures.Scene(predictions, None, 0))
    boxes = label_boxes(figure)
    assert 8 < len(boxes) <= 25, 'where there is no room there is no label'
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_equal_boxes_have_labels_side_by_side():
    predictions = detections(images=1, objects=25)
    predictions.arrays['gt_boxes'] = np.tile([[40., 40, 90, 90]], (25, 1))
    boxes = label_boxes(pictures.picture(IMAGE, pictures.Scene(predictions, None, 0)))
    assert 2 <= len(boxes) < 25
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def scene_of(boxes, labels, gt_boxes, gt_labels, scores=(.9, .8, .7)):
    n, m = len(boxes), len(gt_boxes)
    return Predictions('detection', ['cat', 'dog'], dict(
        image_ids=np.arange(1), image_paths=np.array(['x.png']), boxes=np.array(boxes, float),
        scores=np.array(scores[:n]), labels=np.array(labels), images=np.zeros(n, int),
        gt_boxes=np.array(gt_boxes, float), gt_labels=np.array(gt_labels),
        gt_images=np.zeros(m, int), gt_ignored=np.zeros(m, bool), gt_crowds=np.zeros(m, bool),
        gt_areas=np.ones(m)))


@pytest.mark.parametrize('box, label, why, about', [
    ([10, 10, 50, 50], 1, 'it is cat (IoU 1.00)', [0]),
    ([11, 11, 51, 51], 0, 'a second box on the same object (IoU 0.91)', [0]),
    ([10, 10, 92, 50], 0, 'badly placed (IoU 0.49)', [0]),
    ([100, 90, 150, 120], 0, 'there is nothing', [])])
def test_what_is_wrong_with_a_box(box, label, why, about):
    gt = [[10, 10, 50, 50], [60, 60, 80, 80]]
    first = [10, 10, 50, 50] if 'second' in why else [60, 60, 80, 80]
    predictions = scene_of([first, box], [0, label], gt, [0, 0])
    rule = DetectionRule()
    found, = surest_mistakes(predictions, judge(predictions, rule), rule, 5)
    assert (found.why, found.objects, found.what) == (why, about, ['cat', 'dog'][label])
    assert found.row == 1 and found.score == .8
    image = charts.to_array(picture_of(predictions, found, IMAGE))
    assert image.std() > 5


def test_the_surest_come_first():
    predictions, rule = detections(objects=60), DetectionRule()
    judged = judge(predictions, rule)
    found = surest_mistakes(predictions, judged, rule, 7)
    assert [one.score for one in found] == sorted(judged.scores[~judged.hits])[:-8:-1]
    assert surest_mistakes(predictions, judged._replace(hits=np.ones_like(judged.hits)), rule,
                           7) == []


def test_what_is_wrong_with_a_keypoint():
    predictions, rule = poses(people=2, keypoints=4), PoseRule()
    points = predictions.gt_keypoints.copy()
    points[0, 1], points[1, 2] = points[0, 3], points[1, 2] + 30
    predictions.arrays.update(keypoints=points, gt_visible=np.ones((2, 4), bool),
                              scores=np.array([[.5, .9, .5, .5], [.5, .5, .8, .5]]))
    first, second = surest_mistakes(predictions, judge(predictions, rule), rule, 5)
    assert first.what == 'keypoint_1' and first.why == 'it is on keypoint_3' and first.row == 1
    assert second.what == 'keypoint_2' and second.why == '42 pixels away' and second.image == 1
    for one in (first, second):
        assert charts.to_array(picture_of(predictions, one, IMAGE)).std() > 5
