"""Matches against COCOeval's own, and the cases COCOeval leaves open."""
import copy

import numpy as np
import pytest

pytest.importorskip('pycocotools')
from pycocotools.cocoeval import COCOeval  # noqa: E402

from mmskd.evaluation.calibration import laece, olrp  # noqa: E402
from mmskd.evaluation.matching import (assign_detections, coco_from_annotations,  # noqa: E402
                                       match_detections)

CAT_IDS = [7, 3, 5]  # neither sorted nor from 0


def ann(bbox, category_id=3, image_id=1, **fields):
    fields = {'iscrowd': 0, **fields}
    return dict(image_id=image_id, category_id=category_id, bbox=list(bbox),
                area=bbox[2] * bbox[3], **fields)


def det(bbox, score, category_id=3, image_id=1):
    return dict(image_id=image_id, category_id=category_id, bbox=list(bbox), score=score)


def ground_truth(anns, n_images=1, first_id=1):
    anns = [dict(a, id=i) for i, a in enumerate(anns, first_id)]
    return coco_from_annotations([dict(id=i) for i in range(1, n_images + 1)], anns,
                                 [dict(id=i, name=f'class {i}') for i in CAT_IDS])


def match_one(anns, dets, **kwargs):
    """Matches of class 3 in one image."""
    return match_detections(ground_truth(anns), dets, [1], [3], **kwargs)[0]


def scene(n_images=12, crowds=True, seed=0):
    """Random objects, some of them crowds, and detections near and far, with ties in the scores."""
    rng = np.random.default_rng(seed)
    anns, dets = [], []
    for image_id in range(1, n_images + 1):
        for _ in range(rng.integers(0, 12)):
            box = np.r_[rng.uniform(0, 200, 2), rng.uniform(20, 80, 2)]
            cat = int(rng.choice(CAT_IDS))
            crowd = int(crowds and rng.random() < .2)
            anns.append(ann(box.tolist(), cat, image_id, iscrowd=crowd))
            for _ in range(rng.integers(0, 4)):
                moved = box + rng.normal(0, 6, 4)
                dets.append(det(moved.tolist(), round(rng.random(), 1), cat, image_id))
        for _ in range(rng.integers(0, 5)):
            box = np.r_[rng.uniform(0, 200, 2), rng.uniform(20, 80, 2)]
            cat = int(rng.choice(CAT_IDS))
            dets.append(det(box.tolist(), round(rng.random(), 1), cat, image_id))
    return ground_truth(anns, n_images), dets, list(range(1, n_images + 1))


@pytest.mark.parametrize('iou_thr', [.5, .75])
@pytest.mark.parametrize('max_dets', [2, 100])
def test_matches_are_those_of_cocoeval(iou_thr, max_dets):
    coco, dets, img_ids = scene()
    matches = match_detections(coco, dets, img_ids, CAT_IDS, iou_thr, max_dets)

    theirs = COCOeval(coco, coco.loadRes(copy.deepcopy(dets)), 'bbox')
    theirs.params.iouThrs, theirs.params.maxDets = np.array([iou_thr]), [max_dets]
    theirs.evaluate()
    n_ignored = 0
    for cat_id, ours in zip(CAT_IDS, matches):
        images = [e for e in theirs.evalImgs if e is not None and e['category_id'] == cat_id
                  and e['aRng'] == theirs.params.areaRng[0]]
        ignored = np.concatenate([e['dtIgnore'][0] for e in images]).astype(bool)
        n_ignored += ignored.sum()
        scores = np.concatenate([e['dtScores'] for e in images])
        matched = np.concatenate([e['dtMatches'][0] for e in images])
        np.testing.assert_array_equal(ours.scores, scores[~ignored])
        np.testing.assert_array_equal(ours.hits, matched[~ignored] > 0)
        assert ours.n_objects == sum((e['gtIgnore'] == 0).sum() for e in images)
        assert ours.hits.any() and not ours.hits.all()
        assert (ours.ious[ours.hits] >= iou_thr).all() and not ours.ious[~ours.hits].any()
    assert n_ignored  # the scene has detections on crowds


def test_iou_and_greed_by_hand():
    matches = match_one(
        [ann([0, 0, 10, 10]), ann([100, 0, 10, 10])],
        # an IoU of 80 / 120, then an exact box that comes too late, then one of nothing
        [det([2, 0, 10, 10], .9), det([0, 0, 10, 10], .8), det([50, 50, 5, 5], .7)])
    assert matches.scores.tolist() == [.9, .8, .7]
    assert matches.hits.tolist() == [True, False, False]
    np.testing.assert_allclose(matches.ious, [80 / 120, 0, 0])
    assert matches.n_objects == 2


@pytest.mark.parametrize('flag', ['iscrowd', 'ignore'])
def test_a_detection_on_an_ignored_object_does_not_count(flag):
    anns = [ann([50, 50, 10, 10], **{flag: 1}), ann([0, 0, 10, 10])]
    dets = [det([50, 50, 10, 10], .9), det([1, 0, 10, 10], .8), det([90, 90, 5, 5], .7)]
    gt = ground_truth(anns)
    for _ in range(2):  # COCOeval writes into the annotations: a second run must see the same
        matches = match_detections(gt, dets, [1], [3])[0]
        assert matches.scores.tolist() == [.8, .7]
        assert matches.hits.tolist() == [True, False]
        np.testing.assert_allclose(matches.ious, [90 / 110, 0])
        assert matches.n_objects == 1


def test_a_crowd_takes_many_and_an_ignored_object_one():
    dets = [det([0, 0, 10, 10], .9), det([0, 0, 10, 10], .8)]
    assert len(match_one([ann([0, 0, 10, 10], iscrowd=1)], dets).scores) == 0
    assert match_one([ann([0, 0, 10, 10], ignore=1)], dets).scores.tolist() == [.8]


def test_annotations_numbered_from_zero_can_be_hit():
    gt = ground_truth([ann([0, 0, 10, 10])], first_id=0)
    assert match_detections(gt, [det([0, 0, 10, 10], .9)], [1], [3])[0].hits.tolist() == [True]


def test_max_dets_keeps_the_highest_scores_per_class_and_image():
    dets = [det([0, 0, 5, 5], s, c) for s in (.1, .3, .2) for c in (3, 5)]
    for matches in match_detections(ground_truth([]), dets, [1], [3, 5], max_dets=2):
        assert matches.scores.tolist() == [.3, .2]


def test_a_threshold_after_matching_is_one_before():
    coco, dets, img_ids = scene()
    after = [m.above(.5) for m in match_detections(coco, dets, img_ids, CAT_IDS)]
    before = match_detections(coco, [d for d in dets if d['score'] >= .5], img_ids, CAT_IDS)
    for a, b in zip(after, before):
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)


def test_only_the_given_images_count():
    gt = ground_truth([ann([0, 0, 10, 10], image_id=i) for i in (1, 2)], n_images=2)
    assert match_detections(gt, [], [2], [3])[0].n_objects == 1


@pytest.mark.parametrize('anns, dets, n_objects, n_dets', [
    ([], [], 0, 0),
    ([ann([0, 0, 9, 9])], [], 1, 0),
    ([], [det([0, 0, 9, 9], .5)], 0, 1),
    ([ann([0, 0, 9, 9], category_id=5)], [det([0, 0, 9, 9], .5)], 0, 1),
])
def test_empty_cases(anns, dets, n_objects, n_dets):
    matches = match_one(anns, dets)
    assert matches.n_objects == n_objects
    assert len(matches.scores) == n_dets and not matches.hits.any()


def test_no_images_and_no_classes():
    assert match_detections(ground_truth([]), [], [], [3])[0].n_objects == 0
    assert match_detections(ground_truth([]), [], [1], []) == []


def test_nothing_is_printed(capsys):
    match_one([ann([0, 0, 9, 9])], [det([0, 0, 9, 9], .5)])
    assert capsys.readouterr() == ('', '')


def test_laece_and_lrp_are_those_of_uq_detr():
    uq_detr = pytest.importorskip('uq_detr')
    coco, dets, img_ids = scene(crowds=False)
    rng = np.random.default_rng(1)
    for d, score in zip(dets, rng.permutation(len(dets)) / (len(dets) - 1)):
        d['score'] = score  # no ties, which it breaks at random
    # Its bins reach from the lowest to the highest score, ours from 0 to 1: a far box at each end.
    dets += [det([900, 900, 9, 9], s, c) for s in (0., 1.) for c in CAT_IDS]

    def xyxy(boxes):
        boxes = np.array(boxes, np.float64).reshape(-1, 4)
        return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])

    def theirs(cat_ids, score_thr):
        predictions, truths = [], []
        for i in img_ids:
            ds = [d for d in dets if d['image_id'] == i and d['category_id'] in cat_ids
                  and d['score'] >= score_thr]
            gs = [g for g in coco.imgToAnns[i] if g['category_id'] in cat_ids]
            predictions.append(uq_detr.Detections(
                xyxy([d['bbox'] for d in ds]), scores=[d['score'] for d in ds],
                labels=[d['category_id'] for d in ds]))
            truths.append(uq_detr.GroundTruth(
                xyxy([g['bbox'] for g in gs]), labels=[g['category_id'] for g in gs]))
        return predictions, truths

    matches = match_detections(coco, dets, img_ids, CAT_IDS)
    ours = np.mean([laece(m.scores, m.hits, m.ious) for m in matches])
    assert ours == pytest.approx(
        uq_detr.laece(*theirs(CAT_IDS, 0), tp_criterion='greedy').score, abs=1e-12)
    for cat_id, m in zip(CAT_IDS, matches):
        lrps = [uq_detr.lrp(*theirs([cat_id], s)).score for s in m.scores]
        assert olrp(*m, iou_thr=.5) == pytest.approx(min(lrps), abs=1e-12)


@pytest.mark.parametrize('first_id', [0, 1])
def test_assignment_names_the_objects(first_id):
    box, far, crowd = [0, 0, 10, 10], [100, 100, 10, 10], [50, 50, 10, 10]
    coco = ground_truth([ann(far), ann(box), ann(crowd, iscrowd=1)], first_id=first_id)
    dets = [det(box, .3), det(box, .9), det(crowd, .5), det(box, .99, category_id=5), det(far, .1)]
    assigned = assign_detections(coco, dets, [1], CAT_IDS)
    near = first_id + 1
    assert assigned.objects[[0, 1, 3, 4]].tolist() == [-1, near, -1, first_id]
    assert assigned.counts.tolist() == [True, True, False, True, True]
    # The one that scores least is not looked at
    assert not assign_detections(coco, dets, [1], CAT_IDS, max_dets=3).counts[4]


def test_assignment_agrees_with_the_matches():
    coco, dets, img_ids = scene()
    assigned = assign_detections(coco, dets, img_ids, CAT_IDS)
    for cat_id, matches in zip(CAT_IDS, match_detections(coco, dets, img_ids, CAT_IDS)):
        mine = [(d['score'], obj >= 0) for d, obj, counts in
                zip(dets, assigned.objects, assigned.counts)
                if counts and d['category_id'] == cat_id]
        assert sorted(mine) == sorted(zip(matches.scores, matches.hits))
