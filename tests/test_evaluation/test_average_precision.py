"""The average precision on arrays against pycocotools' own."""
import contextlib
import io

import numpy as np
import pytest

from mmskd.evaluation.average_precision import average_precision, precision_at_recalls
from mmskd.evaluation.matching import Detections, Objects, match


def scene(seed, n_images=6, n_labels=4, n_objects=60, n_dets=300):
    """Crowded images, with equal scores and crowds; the last class has no objects."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 80, (n_objects, 2)).astype(float)
    gt_boxes = np.concatenate([corner, corner + rng.integers(10, 60, (n_objects, 2))], axis=1)
    of, gt_images = rng.integers(0, n_objects, n_dets), rng.integers(0, n_images, n_objects)
    gt_labels = rng.integers(0, n_labels - 1, n_objects)
    by_image = np.argsort(gt_images[of], kind='stable')
    of = of[by_image]
    labels = np.where(rng.random(n_dets) < .8, gt_labels[of], rng.integers(0, n_labels, n_dets))
    detections = Detections.of(gt_boxes[of] + rng.integers(-4, 5, (n_dets, 4)),
                               np.round(rng.random(n_dets), 1), labels, gt_images[of])
    return detections, Objects.of(gt_boxes, gt_labels, gt_images,
                                  crowds=rng.random(n_objects) < .1)


def with_pycocotools(detections, objects, n_labels=4, max_dets=100):
    coco_module = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval

    def coco(boxes, labels, images, **more):
        result = coco_module.COCO()
        result.dataset = dict(
            images=[dict(id=i) for i in range(6)],
            categories=[dict(id=i) for i in range(n_labels)],
            annotations=[
                dict(id=n, image_id=int(images[n - 1]), category_id=int(labels[n - 1]),
                     bbox=[*box[:2], *(box[2:] - box[:2])], area=1,
                     **{key: values[n - 1] for key, values in more.items()})
                for n, box in enumerate(boxes, 1)])
        result.createIndex()
        return result

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            coco(objects.boxes, objects.labels, objects.images, iscrowd=objects.crowds),
            coco(detections.boxes, detections.labels, detections.images, score=detections.scores),
            'bbox')
        evaluation.params.maxDets = [max_dets]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0, 0]  # (IoU, recall, class); -1: no objects
    return np.where(precision < 0, np.nan, precision)


@pytest.mark.parametrize('seed, max_dets', [(0, 100), (1, 100), (2, 3)])
def test_it_is_pycocotools(seed, max_dets):
    detections, objects = scene(seed)
    expected = with_pycocotools(detections, objects, max_dets=max_dets)
    found = average_precision(detections, objects, 4, max_dets=max_dets)
    np.testing.assert_allclose(found, expected.mean(axis=1), rtol=1e-12)
    assert np.isnan(found[:, 3]).all() and 0.1 < np.nanmean(found) < 0.9
    curve = precision_at_recalls(match(detections, objects, 0.5, max_dets), 4)
    np.testing.assert_allclose(curve, expected[0].T, rtol=1e-12)


def test_nothing_found_and_nothing_there():
    detections, objects = scene(0)
    none = np.zeros(len(detections.scores), bool)
    assert (average_precision(detections.select(none), objects, 3) == 0).all()
    nothing = objects.select(np.zeros(len(objects.labels), bool))
    assert np.isnan(average_precision(detections, nothing, 4)).all()
