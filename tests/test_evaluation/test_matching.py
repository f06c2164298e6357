"""Matches against COCOeval's own, and the cases COCOeval leaves open."""
import contextlib
import io

import numpy as np
import pytest

from mmskd.evaluation.detection import SIZES
from mmskd.evaluation.matching import Detections, Objects, match, overlaps
from tests.support.boxes import random_scene


def on_one_image(dets, objs=(), **fields):
    """Detections (box, score) and objects (box) of class 0 on image 0; boxes x, y, width, height.
    """

    def corners(boxes):
        boxes = np.array(boxes, np.float64).reshape(-1, 4)
        return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])

    zeros = np.zeros(len(dets), int)
    return (Detections.of(corners([box for box, _ in dets]), [score for _, score in dets], zeros,
                          zeros),
            Objects.of(corners(objs), np.zeros(len(objs), int), np.zeros(len(objs), int), **fields))


def cocoeval(detections, objects, iou_thr, max_dets, area_range):
    """Which detections count, and which object each took (-1 for none), as COCOeval has it."""
    pytest.importorskip('pycocotools')
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class WithIgnored(COCOeval):

        def _prepare(self):
            super()._prepare()
            for ann in self.cocoGt.anns.values():
                ann['ignore'] = ann['ignored']

    def coco(these, **fields):
        sides = these.boxes[:, 2:] - these.boxes[:, :2]
        coco = COCO()
        coco.dataset = dict(
            images=[dict(id=int(i)) for i in range(100)], categories=[dict(id=c) for c in range(5)],
            annotations=[dict(
                id=i + 1, image_id=int(these.images[i]), category_id=int(these.labels[i]),
                bbox=[*these.boxes[i, :2], *sides[i]], area=sides[i].prod(), iscrowd=0,
                **{key: of[i] for key, of in fields.items()}) for i in range(len(these.labels))])
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco(objects, ignored=objects.ignored.astype(int))
        for i, crowd in enumerate(objects.crowds):
            truth.anns[i + 1]['iscrowd'] = int(crowd)
        evaluation = WithIgnored(truth, coco(detections, score=detections.scores), 'bbox')
        evaluation.params.iouThrs, evaluation.params.maxDets = np.array([iou_thr]), [max_dets]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [area_range], ['']
        evaluation.evaluate()
    counts, taken = np.zeros(len(detections.scores), bool), np.full(len(detections.scores), -1)
    for entry in filter(None, evaluation.evalImgs):
        index = np.array(entry['dtIds'], int) - 1
        counts[index] = ~entry['dtIgnore'][0].astype(bool)
        taken[index] = entry['dtMatches'][0].astype(int) - 1
    return counts, taken


@pytest.mark.parametrize('iou_thr', [1e-12, .1, .5, .75])
@pytest.mark.parametrize('max_dets', [2, 100])
@pytest.mark.parametrize('size', [None, *SIZES])
def test_matches_are_those_of_cocoeval(iou_thr, max_dets, size):
    detections, objects = random_scene(seed=1, ignored=.1, crowds=.1, digits=1)
    area_range = SIZES.get(size, (0., 1e10))
    counts, taken = cocoeval(detections, objects, iou_thr, max_dets, area_range)
    matched = match(detections, objects, iou_thr, max_dets, area_range)
    np.testing.assert_array_equal(matched.counts, counts)
    np.testing.assert_array_equal(matched.hits, counts & (taken >= 0))
    np.testing.assert_array_equal(matched.objects, np.where(matched.hits, taken, -1))
    if size is None:
        assert counts.any() and not counts.all() and matched.hits.any()
        assert (matched.ious[matched.hits] >= iou_thr).all() and not matched.ious[
            ~matched.hits].any()
        assert matched.n_objects == (~objects.ignored).sum()


def test_overlaps_once_for_several_ious():
    detections, objects = random_scene(ignored=.1, crowds=.1)
    found = overlaps(detections, objects)
    for iou_thr in (0, .5, .9):
        for a, b in zip(match(detections, objects, iou_thr, found=found),
                        match(detections, objects, iou_thr)):
            np.testing.assert_array_equal(a, b)


def test_what_is_done_in_parts_is_the_same(monkeypatch):
    scene = random_scene(ignored=.1, crowds=.1)
    whole = overlaps(*scene)
    monkeypatch.setattr('mmskd.evaluation.matching.PAIRS_AT_ONCE', 3)
    for a, b in zip(overlaps(*scene), whole):
        np.testing.assert_array_equal(a, b)


def test_iou_and_greed_by_hand():
    matched = match(*on_one_image(
        # an IoU of 80 / 120, then an exact box that comes too late, then one of nothing
        [([2, 0, 10, 10], .9), ([0, 0, 10, 10], .8), ([50, 50, 5, 5], .7)],
        [[0, 0, 10, 10], [100, 0, 10, 10]]))
    assert matched.hits.tolist() == [True, False, False]
    assert matched.objects.tolist() == [0, -1, -1]
    np.testing.assert_allclose(matched.ious, [80 / 120, 0, 0])
    assert matched.n_objects == 2


def test_at_zero_any_overlap_matches_and_nothing_less():
    """Taken literally, an IoU of at least 0 gives the object to the box that does not touch it."""
    matched = match(*on_one_image([([300, 0, 10, 10], .9), ([9, 9, 10, 10], .8)],
                                  [[0, 0, 10, 10]]), iou_thr=0)
    assert matched.hits.tolist() == [False, True]


@pytest.mark.parametrize('flag', ['crowds', 'ignored'])
def test_a_detection_on_an_ignored_object_does_not_count(flag):
    scene = on_one_image([([50, 50, 10, 10], .9), ([1, 0, 10, 10], .8), ([90, 90, 5, 5], .7)],
                         [[50, 50, 10, 10], [0, 0, 10, 10]], **{flag: [True, False]})
    matched = match(*scene)
    assert matched.counts.tolist() == [False, True, True]
    assert matched.counted().hits.tolist() == [True, False]
    assert matched.n_objects == 1


def test_a_crowd_takes_many_and_an_ignored_object_one():
    dets = [([0, 0, 10, 10], .9), ([0, 0, 10, 10], .8)]
    assert match(*on_one_image(dets, [[0, 0, 10, 10]], crowds=[1])).counts.tolist() == [0, 0]
    assert match(*on_one_image(dets, [[0, 0, 10, 10]], ignored=[1])).counts.tolist() == [0, 1]
    # By the share of the detection that is inside, not by IoU
    assert match(*on_one_image(dets, [[0, 0, 100, 100]], crowds=[1])).counts.tolist() == [0, 0]
    assert match(*on_one_image(dets, [[0, 0, 100, 100]], ignored=[1])).counts.tolist() == [1, 1]


def test_max_dets_keeps_the_highest_scores_per_class_and_image():
    n = 12
    detections = Detections.of(np.tile([0, 0, 5, 5], (n, 1)), np.arange(n) / n, np.arange(n) % 2,
                               np.arange(n) // 6)
    matched = match(detections, on_one_image([])[1], max_dets=2)
    assert np.flatnonzero(matched.counts).tolist() == [2, 3, 4, 5, 8, 9, 10, 11]


def test_a_threshold_after_matching_is_one_before():
    detections, objects = random_scene(ignored=.1, digits=1)
    before = match(detections.select(detections.scores >= .5), objects).counted()
    for a, b in zip(match(detections, objects).above(.5), before):
        np.testing.assert_array_equal(a, b)


def test_a_threshold_for_each_class():
    detections, objects = random_scene()
    kept = match(detections, objects).above([.3, np.nan, .7])
    assert set(kept.labels) == {0, 2}
    assert kept.scores[kept.labels == 0].min() >= .3 and kept.scores[kept.labels == 2].min() >= .7


def test_one_class():
    detections, objects = random_scene()
    matched = match(detections, objects)
    one = matched.of_class(0)
    alone = match(detections.select(detections.labels == 0), objects.select(objects.labels == 0))
    np.testing.assert_array_equal(one.hits, alone.hits)
    np.testing.assert_array_equal(one.ious, alone.ious)
    assert one.n_objects == alone.n_objects == matched.objects_per_class(3)[0]


def test_a_hit_and_its_object_are_alike():
    detections, objects = random_scene()
    matched = match(detections, objects)
    rows = np.flatnonzero(matched.hits)
    for key in ('images', 'labels'):
        np.testing.assert_array_equal(getattr(detections, key)[rows],
                                      getattr(objects, key)[matched.objects[rows]])
    assert len(set(matched.objects[rows])) == len(rows) > 10


@pytest.mark.parametrize('n_dets, n_objs', [(0, 0), (0, 1), (1, 0)])
def test_empty_cases(n_dets, n_objs):
    matched = match(*on_one_image([([0, 0, 9, 9], .5)] * n_dets, [[0, 0, 9, 9]] * n_objs))
    assert len(matched.scores) == n_dets and not matched.hits.any() and matched.counts.all()
    assert matched.n_objects == n_objs


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_no_number_is_refused(value):
    good = [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r'a box of the detections is not finite.*on image 7 \(1 '):
        Detections.of([good, [0, 0, value, 1]], [.5, .5], [0, 0], [3, 7])
    with pytest.raises(ValueError, match='the score of a detection is not finite.* on image 3'):
        Detections.of([good, good], [value, .5], [0, 0], [3, 7])
    with pytest.raises(ValueError, match='a box of the objects is not finite'):
        Objects.of([good, [0, 0, value, 1]], [0, 0], [3, 7])


def test_lengths_and_labels_are_checked():
    with pytest.raises(ValueError, match='1 boxes of detections'):
        Detections.of([[0, 0, 1, 1]], [.5], [0, 1], [0])
    with pytest.raises(ValueError, match=r'1 detections have \(2,\) scores'):
        Detections.of([[0, 0, 1, 1]], [.5, .5], [0], [0])
    with pytest.raises(ValueError, match='labels of objects count from 0, but one is -1'):
        Objects.of([[0, 0, 1, 1]], [-1], [0])
    with pytest.raises(ValueError, match='flags for ignored'):
        Objects.of([[0, 0, 1, 1]], [0], [0], ignored=[True, False])
