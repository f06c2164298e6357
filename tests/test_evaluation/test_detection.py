"""All measures of a detector on arrays: by hand, against references, and what must not change them.
"""
import numpy as np
import pytest

from mmskd.evaluation import detection_calibration
from mmskd.evaluation.calibration import laace, laece, lrp, overconfidence
from mmskd.evaluation.calibrators import fit_calibrator
from mmskd.evaluation.detection import (
    DetectionCalibration,
    DetectionRule,
    lrp_optimal_thresholds,
    object_errors,
)
from mmskd.evaluation.matching import Detections, Objects, match
from mmskd.evaluation.measures import MEASURES, OWN_THR
from tests.support.boxes import joined, random_boxes, random_scene

N, C = 30, 4
COUNTS = ('detections', 'objects', 'emitted')


def scene(seed=0, **kwargs):
    return random_scene(N, C, seed, ignored=.05, crowds=.05, **kwargs)


def calibration(detections, objects, n_images=N, **kwargs):
    return DetectionCalibration(detections, objects, C, n_images, **kwargs)


def without_counts(values):
    return {key: value for key, value in values.items()
            if key.replace(OWN_THR, '') not in COUNTS}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-9, atol=1e-12, err_msg=key)


def test_values_by_hand():
    far, box, other = [50, 50, 60, 60], [0, 0, 10, 10], [80, 0, 90, 10]
    targets = [dict(boxes=[box, other], labels=[0, 0]), dict(boxes=[box], labels=[1])]
    found = detection_calibration(
        # Class 0: an IoU of .8, a miss, and one below the threshold; class 1: exact, and a miss
        [[[0, 0, 10, 8], far, other], [box, far]], [[.9, .6, .2], [.75, .7]], [[0, 0, 0], [1, 1]],
        targets, thresholds=[.5, .5])
    values = found.values
    class_0, class_1 = (.1 + .6) / 2, (.25 + .7) / 2  # every detection in a bin of its own
    for key, expected in dict(
            LaECE_0=(class_0 + class_1) / 2, LaACE_0=(class_0 + class_1) / 2,
            overconfidence=((.1 + .6) / 2 + (-.25 + .7) / 2) / 2,
            LRP=((.2 + 1 + 1) / 3 + (0 + 1) / 2) / 2, LRP_loc=(.2 + 0) / 2, LRP_FP=1 / 2,
            LRP_FN=(1 / 2 + 0) / 2, detections=4, objects=3,
            # Found at both IoUs; not found; found at both
            OCE=(.1**2 + 1 + .25**2) / 3, emitted=5).items():
        assert values[key] == pytest.approx(expected), key
    by_class = found.by_class()
    assert by_class['LaECE_0'] == pytest.approx([class_0, class_1])
    assert by_class['OCE'] == pytest.approx([(.1**2 + 1) / 2, .25**2])
    assert by_class['LRP_FN'] == pytest.approx([.5, 0])


def test_the_classes_are_measured_one_by_one():
    detections, objects = scene()
    found = calibration(detections, objects)
    matched = match(detections, objects, 0.)
    for label in range(C):
        mine = matched.of_class(label)
        kept = mine.above(found.thresholds[label])
        by_class = {key: value[label] for key, value in found.by_class().items()}
        error = lrp(kept.hits, kept.ious, mine.n_objects, 0.)
        for key, expected in dict(
                LaECE_0=laece(kept.scores, kept.hits, kept.ious),
                LaACE_0=laace(kept.scores, kept.hits, kept.ious), LRP=error.total,
                overconfidence=overconfidence(kept.scores, kept.hits * kept.ious),
                LRP_loc=error.localisation, LRP_FP=error.false_positives,
                LRP_FN=error.false_negatives, detections=len(kept.scores)).items():
            np.testing.assert_allclose(by_class[key + OWN_THR], expected, err_msg=key)
    # A class without objects is no part of a mean over classes, one without detections is
    error = found.by_class()[f'LRP{OWN_THR}']
    assert np.isnan(error[C - 1]) and error[C - 2] == 1
    assert found.values[f'LRP{OWN_THR}'] == pytest.approx(np.nanmean(error))


def test_every_value_is_in_the_table_of_measures():
    found = calibration(*scene())
    names = {key.replace(OWN_THR, '') for key in found.values}
    assert names == set(MEASURES['detection'])
    marked = {key for key in found.values if key.endswith(OWN_THR)}
    held_out = calibration(*scene(1), thresholds=found.thresholds)
    assert not any(key.endswith(OWN_THR) for key in held_out.values)
    assert {key.replace(OWN_THR, '') for key in marked} <= held_out.values.keys()
    known = calibration(*scene(), thresholds=found.thresholds, held_out=False)
    assert_same(known.values, found.values)


# ------------------------------------------------------------------ what must not change a value


def permuted(detections, objects, seed=0):
    """The images in another order; those of detections and objects as well."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(N)
    return (detections._replace(images=order[detections.images]).select(
                np.argsort(order[detections.images], kind='stable')),
            objects._replace(images=order[objects.images]).select(
                np.argsort(order[objects.images], kind='stable')))


def test_the_order_of_the_images_changes_nothing():
    one = scene(digits=1)
    assert_same(calibration(*permuted(*one)).values, calibration(*one).values)
    assert_same(calibration(*permuted(*one)).by_class(), calibration(*one).by_class())


def test_a_data_set_twice_changes_nothing_but_the_counts():
    one = scene(digits=1)
    twice, once = calibration(*joined(one, one), 2 * N), calibration(*one)
    assert_same(without_counts(twice.values), without_counts(once.values))
    np.testing.assert_array_equal(twice.thresholds, once.thresholds)
    assert twice.values['emitted'] == 2 * once.values['emitted']


def test_images_of_several_ranks_are_the_whole():
    detections, objects = scene()
    parts = [(detections.select(detections.images % 3 == rank),
              objects.select(objects.images % 3 == rank)) for rank in (2, 0, 1)]
    together = [type(of[0])(*map(np.concatenate, zip(*of))) for of in zip(*parts)]
    assert_same(calibration(*together).values, calibration(detections, objects).values)


def test_equal_scores_are_kept_or_left_together():
    detections, objects = scene(digits=1)
    found = calibration(detections, objects)
    for label in range(C):
        thr = found.thresholds[label]
        at = match(detections, objects, 0.).of_class(label).counted().scores == thr
        assert np.sum(found.kept.scores[found.kept.labels == label] == thr) == at.sum()


def test_what_is_emitted_below_the_thresholds_changes_nothing_that_compares_models():
    """The fault of an average over what is emitted: rubbish with low scores makes it better."""
    detections, objects = scene()
    rng = np.random.default_rng(5)
    rubbish = Detections.of(random_boxes(rng, 300) + 1000, rng.uniform(.05, .06, 300),
                            rng.integers(0, 3, 300), rng.integers(0, N, 300))
    thresholds = [.3, .4, .5, .6]
    plain = calibration(detections, objects, thresholds=thresholds).values
    more = calibration(joined_detections(detections, rubbish), objects,
                       thresholds=thresholds).values
    for name, measure in MEASURES['detection'].items():
        if measure.comparable:
            assert more[name] == pytest.approx(plain[name]), name
    for name in ('NLL', 'ECE', 'Brier', 'LaECE'):
        assert more[name] < plain[name], name


def joined_detections(*parts):
    return Detections(*map(np.concatenate, zip(*parts)))


# ------------------------------------------------------------------ OCE


@pytest.mark.parametrize('digits', [1, 8])
def test_oce_is_that_of_uq_detr(digits):
    uq_detr = pytest.importorskip('uq_detr')
    detections, objects = random_scene(N, C, digits=digits)
    for threshold in (0., .3, .6):
        kept = detections.select(detections.scores >= threshold)
        found, truth = [], []
        for image in range(N):
            mine, real = kept.images == image, objects.images == image
            found.append(uq_detr.Detections(
                kept.boxes[mine], kept.scores[mine, None] * np.eye(C)[kept.labels[mine]]))
            truth.append(uq_detr.GroundTruth(objects.boxes[real], objects.labels[real]))
        theirs = uq_detr.oce(found, truth)
        np.testing.assert_allclose(object_errors(kept, objects), theirs.per_element, atol=1e-12)
        measured = DetectionCalibration(kept, objects, C, N, thresholds=np.zeros(C))
        assert measured.values['OCE'] == pytest.approx(theirs.score, abs=1e-12)


@pytest.mark.parametrize('seed', range(5))
def test_staying_silent_never_improves_oce(seed):
    """Of objects that are found under their name, at whatever scores and however often."""
    rng = np.random.default_rng(seed)
    _, objects = random_scene(N, C, seed)
    objects = objects._replace(images=np.arange(len(objects.labels)))  # far from one another
    of = rng.integers(0, len(objects.labels), 300)
    detections = Detections.of(objects.boxes[of] + rng.normal(0, 3, (300, 4)), rng.random(300)**3,
                               objects.labels[of], objects.images[of])
    everything = object_errors(detections, objects)
    assert (everything <= 1).all() and everything.mean() < .95
    assert (object_errors(detections.select(detections.scores < 0), objects) == 1).all()
    for share in (.2, .5, .8):  # about some of the objects
        silent = rng.random(len(objects.labels)) < share
        left = object_errors(detections.select(~silent[of]), objects)
        assert (left >= everything).all() and left.mean() > everything.mean()
    # One detection an object: a threshold leaves out what scores less, and never for the better
    single = detections.select(np.unique(of, return_index=True)[1])
    errors = [object_errors(single.select(single.scores >= thr), objects).mean()
              for thr in np.linspace(0, 1.01, 30)]
    assert (np.diff(errors) >= 0).all() and errors[-1] == 1
    # while an average over what is emitted is made perfect by it
    few, every = (DetectionCalibration(some, objects, C, len(objects.labels)).values for some in (
        single.select(single.scores >= np.sort(single.scores)[-3]), single))
    assert few['Brier'] < every['Brier'] and few['NLL'] < every['NLL']


# ------------------------------------------------------------------ size and intervals


def test_sizes_follow_coco():
    detections, objects = scene()
    found = calibration(detections, objects, thresholds=[.1] * C, held_out=False)
    by_size = found.by_size()
    sizes = np.digitize(objects.areas, [32**2, 96**2])
    for i, (size, values) in enumerate(by_size.items()):
        assert values.keys() == found.values.keys()
        assert values[f'objects{OWN_THR}'] == np.sum((sizes == i) & ~objects.ignored)
        one = found.of_size(size)
        np.testing.assert_array_equal(one.thresholds, found.thresholds)
        taken = one.kept.objects[one.kept.hits]
        assert (sizes[taken] == i).all()
    assert all(values[f'detections{OWN_THR}'] > 5 for values in by_size.values())
    # A hit is of one size, a miss of at most one (a box that is inside out is of none)
    total = sum(one[f'detections{OWN_THR}'] for one in by_size.values())
    assert total <= found.values[f'detections{OWN_THR}']


def test_intervals_hold_the_value_and_narrow_with_more_images():
    widths = []
    for n_images in (40, 640):
        detections, objects = random_scene(n_images, C)
        found = DetectionCalibration(detections, objects, C, n_images)
        ends = found.intervals(200)
        for key, (low, high) in ends.items():
            assert low <= found.values[key] <= high, key
        widths.append([high - low for key, (low, high) in ends.items() if key in (
                f'{name}{OWN_THR}' for name in ('LaECE_0', 'LaACE_0', 'LRP', 'OCE'))])
        assert found.intervals(200) == ends, 'seeded'
        assert found.intervals(200, seed=1) != ends
    assert (np.array(widths[0]) > 2 * np.array(widths[1])).all()


def test_intervals_cover_the_value_of_more_images():
    """About 95 of 100 intervals of small samples hold what a large data set says."""
    thresholds = [.5] * C
    truth = DetectionCalibration(*random_scene(1500, C, seed=99), C, 1500, thresholds).values
    held = 0
    for seed in range(20):
        small = DetectionCalibration(*random_scene(60, C, seed), C, 60, thresholds)
        low, high = small.intervals(100)['OCE']
        held += low <= truth['OCE'] <= high
    assert held >= 16


# ------------------------------------------------------------------ calibrators


def large_set(n=20_000, seed=0, noise=False):
    """Detections whose IoU a sure but overconfident score tells; each on an image of its own."""
    rng = np.random.default_rng(seed)
    fit = rng.beta(2, 2, n) * .98 + .01  # IoU to be
    labels = rng.integers(0, 3, n)
    score = np.clip(fit + rng.normal(0, .05, n), .01, .99)**(.3 + .2 * labels)
    boxes = np.tile([0., 0., 100., 100.], (n, 1))
    found = boxes.copy()
    found[:, 3] *= fit
    found[rng.random(n) < .1] += 500  # misses
    scores = rng.uniform(.3, .9, n) if noise else score
    return (Detections.of(found, scores, labels, np.arange(n)),
            Objects.of(boxes, labels, np.arange(n)))


@pytest.mark.parametrize('kind, limit', [('isotonic', .02), ('platt', .06)])
def test_a_calibrator_brings_the_error_near_zero(kind, limit):
    detections, objects = large_set()
    found = DetectionCalibration(detections, objects, 3, 20_000)
    kept = found.kept
    assert found.values[f'LaECE_0{OWN_THR}'] > .15
    calibrator = fit_calibrator(kind, kept.scores, kept.ious, kept.labels, list('abc'), True, 'iou')
    assert not calibrator.notes
    others = large_set(seed=1)
    options = dict(n_classes=3, n_images=20_000, thresholds=found.thresholds)
    before = DetectionCalibration(*others, **options).values
    after = DetectionCalibration(*others, **options, calibrator=calibrator).values
    assert before['LaECE_0'] > .15 and after['LaECE_0'] < limit
    assert after['LaACE_0'] < before['LaACE_0']
    for key in ('LRP', 'oLRP', 'detections'):
        assert after[key] == pytest.approx(before[key])


@pytest.mark.parametrize('kind', ['temperature', 'platt', 'isotonic'])
def test_a_calibrator_of_noise_is_called_one(kind):
    detections, objects = large_set(2000, noise=True)
    matched = match(detections, objects, 0.)
    for classwise, number in ((False, 1), (True, 3)):
        calibrator = fit_calibrator(kind, matched.scores, matched.ious, matched.labels, list('abc'),
                                    classwise, 'iou')
        said = [note for note in calibrator.notes if 'may say nothing' in note]
        assert len(said) == number


# ------------------------------------------------------------------ edges


def test_nothing_at_all():
    empty = Detections.of([], [], [], []), Objects.of([], [], [])
    for n_classes, n_images in ((0, 0), (2, 0), (2, 3)):
        found = DetectionCalibration(*empty, n_classes, n_images)
        assert all(np.isnan(value) for value in without_counts(found.values).values())
        assert found.intervals(10).keys() <= found.values.keys()
        assert all(len(value) == n_classes for value in found.by_class().values())
    assert detection_calibration([], [], [], []).values['emitted'] == 0


def test_wrong_arguments_are_named():
    detections, objects = scene()
    with pytest.raises(ValueError, match='a label is 3, but there are 2 classes'):
        DetectionCalibration(detections, objects, 2, N)
    with pytest.raises(ValueError, match=r'4 classes, but the thresholds have the shape \(2,\)'):
        calibration(detections, objects, thresholds=[.5, .5])
    with pytest.raises(ValueError, match='n_bins'):
        assert calibration(detections, objects, rule=DetectionRule(n_bins=0)).values
    for rule in (dict(n_bins=0), dict(score_thr=2), dict(iou_thr=float('nan')), dict(max_dets=0)):
        with pytest.raises(ValueError, match=f'DetectionRule: {min(rule)} must be'):
            calibration(detections, objects, rule=DetectionRule(**rule))
    with pytest.raises(ValueError, match='thresholds are scores'):
        calibration(detections, objects, thresholds=[.5, .5, np.nan, 7])
    with pytest.raises(ValueError, match='target 0 has no boxes: it has .*bboxes'):
        detection_calibration([[]], [[]], [[]], [dict(bboxes=[], labels=[])])
    for boxes, truth in (([[20, 30, 5, 5]], [[0, 0, 1, 1]]), ([[0, 0, 1, 1]], [[20, 30, 5, 5]])):
        with pytest.raises(ValueError,
                           match=r'must be x1, y1, x2, y2.*\[20. 30.  5.  5.\] on image 0'):
            detection_calibration([boxes], [[.5]], [[0]], [dict(boxes=truth, labels=[0])])
    for label in (.5, np.nan):
        with pytest.raises(ValueError, match='labels of detections must be whole numbers'):
            detection_calibration([[[0, 0, 1, 1]]], [[.5]], [[label]], [dict(boxes=[], labels=[])])
    with pytest.raises(ValueError, match='1 entries of boxes, 2 of scores'):
        detection_calibration([[]], [[], []], [[]], [dict(boxes=[], labels=[])])
    with pytest.raises(ValueError, match='target 1 has no ignored, and others have'):
        box = dict(boxes=[[0, 0, 1, 1]], labels=[0])
        detection_calibration([[], []], [[], []], [[], []], [dict(box, ignored=[True]), box])


def test_ignored_objects_of_targets():
    box = [0, 0, 10, 10]
    targets = [dict(boxes=[box, [50, 50, 60, 60]], labels=[0, 0], ignored=[True, False])]
    found = detection_calibration([[box]], [[.9]], [[0]], targets, thresholds=[.5])
    assert found.values['detections'] == 0 and found.values['objects'] == 1


def test_thresholds_of_another_iou():
    detections, objects = scene()
    matched = match(detections, objects, .5)
    thresholds = lrp_optimal_thresholds(matched, C, .5)
    assert calibration(detections, objects, thresholds=thresholds).values['oLRP'] == pytest.approx(
        np.nanmean([lrp(kept.hits, kept.ious, kept.n_objects, .5).total for kept in (
            matched.of_class(c).above(np.nan_to_num(thresholds[c], nan=2)) for c in range(C))]))
