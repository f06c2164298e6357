"""Each measure against the reference implementations, on the same detections.

The detections are drawn at random: six classes, one without objects and one without detections,
many equal scores, and images without anything. What is not installed of uq-detr, netcal,
torchmetrics and scikit-learn is left out; pycocotools comes with MMDetection.

    python tools/analysis/calibration_reference.py --out results/calibration_reference.json
"""
import argparse
import contextlib
import importlib
import io
import json
import shlex
import sys
from importlib.metadata import version
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmskd.evaluation.calibration import (
    brier,
    ece,
    laace,
    laece_by_class,
    lrp,
    mean_of_defined,
    nll,
    olrp,
)
from mmskd.evaluation.calibrators import fit_calibrator
from mmskd.evaluation.detection import object_errors
from mmskd.evaluation.matching import Detections, Matched, Objects, match

TAUS = (0., 0.1, 0.5)
THRESHOLDS = (0.05, 0.3, 0.5)
N_IMAGES, N_CLASSES, N_BINS = 150, 6, 25
NO_OBJECTS, NO_DETECTIONS = 4, 5  # classes that have none
TINY = 1e-12  # what the reference implementations take instead of 0, for "any overlap"


class Row(NamedTuple):
    """One comparison.

    Attributes:
        measure (str): What is compared.
        tau (float or None): IoU from which on a detection hits.
        threshold (float or None): Score from which on detections are kept.
        reference (str): Implementation that it is compared with.
        expected (float): Its value.
        value (float): Ours.
    """
    measure: str
    tau: float
    threshold: float
    reference: str
    expected: float
    value: float


def draw_data(seed: int = 0) -> Tuple[Detections, Objects]:
    """Objects, and detections near and far.

    Scores are hundredths, different within an image: there is no rule for which of two equal ones
    chooses first, but all must treat them alike after that.
    """
    rng = np.random.default_rng(seed)
    boxes, labels, images, gt_boxes, gt_labels, gt_images = [], [], [], [], [], []
    for image in range(N_IMAGES):
        n_objects = rng.poisson(5)
        corner = rng.uniform(0, 400, (n_objects, 2))
        mine = np.hstack([corner, corner + rng.uniform(15, 150, (n_objects, 2))])
        classes = rng.choice([0, 1, 2, 3, NO_DETECTIONS], n_objects)
        gt_boxes.append(mine)
        gt_labels.append(classes)
        gt_images.append(np.full(n_objects, image))
        near = np.repeat(np.arange(n_objects), rng.integers(0, 4, n_objects))
        corner = rng.uniform(0, 400, (rng.poisson(6), 2))
        far = np.hstack([corner, corner + rng.uniform(15, 150, corner.shape)])
        found = np.vstack([mine[near] + rng.normal(0, 8, (len(near), 4)), far])
        named = np.append(np.where(rng.random(len(near)) < .9, classes[near], NO_OBJECTS),
                          rng.integers(0, NO_DETECTIONS, len(far)))
        keep = np.flatnonzero(named != NO_DETECTIONS)[:90]
        boxes.append(found[keep])
        labels.append(named[keep])
        images.append(np.full(len(keep), image))
    scores = np.concatenate([rng.permutation(np.arange(2, 101))[:len(one)] / 100 for one in images])
    objects = Objects.of(np.vstack(gt_boxes), np.concatenate(gt_labels), np.concatenate(gt_images))
    return Detections.of(np.vstack(boxes), scores, np.concatenate(labels),
                         np.concatenate(images)), objects


def with_ends(detections: Detections) -> Detections:
    """With a far box that scores 0 and one that scores 1 in each class that has detections.

    The range from the lowest to the highest score of a class is what uq-detr divides, the papers
    divide 0 to 1.
    """
    labels = np.repeat(np.unique(detections.labels), 2)
    ends = Detections.of(
        np.tile([5000., 5000., 5010., 5010.], (len(labels), 1)),
        np.tile([0., 1.], len(labels) // 2), labels,
        np.full(len(labels), N_IMAGES))  # an image of their own
    return Detections(*map(np.concatenate, zip(detections, ends)))


# ------------------------------------------------------------------ in the references' forms


def of_uq_detr(detections: Detections, objects: Objects, distributions: bool = False):
    """Lists of uq-detr's Detections and GroundTruth, of the images in order."""
    import uq_detr
    found, truth = [], []
    for image in range(N_IMAGES + 1):
        mine, real = detections.images == image, objects.images == image
        scores, labels = detections.scores[mine], detections.labels[mine]
        if distributions:
            scores = scores[:, None] * np.eye(N_CLASSES)[labels]
        found.append(uq_detr.Detections(detections.boxes[mine], scores, labels))
        truth.append(uq_detr.GroundTruth(objects.boxes[real], objects.labels[real]))
    return found, truth


def of_cocoeval(detections: Detections, objects: Objects, iou_thr: float):
    """What COCOeval matched: scores, IoUs of the hits (0 for a miss) and labels of detections."""

    def annotations(these, **fields):
        return [dict(id=i + 1, image_id=int(these.images[i]), category_id=int(these.labels[i]),
                     bbox=[*box[:2], *(box[2:] - box[:2])], area=np.prod(box[2:] - box[:2]),
                     iscrowd=0, **{key: float(of[i]) for key, of in fields.items()})
                for i, box in enumerate(these.boxes)]

    images = range(N_IMAGES + 1)
    sides = []
    for anns in (annotations(objects), annotations(detections, score=detections.scores)):
        coco = COCO()
        coco.dataset = dict(images=[dict(id=int(i)) for i in images], annotations=anns,
                            categories=[dict(id=c) for c in range(N_CLASSES)])
        sides.append(coco)
    with contextlib.redirect_stdout(io.StringIO()):
        for coco in sides:
            coco.createIndex()
        evaluation = COCOeval(*sides, 'bbox')
        evaluation.params.iouThrs = np.array([iou_thr])
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    scores, ious, labels = [], [], []
    for entry in filter(None, evaluation.evalImgs):
        overlap = evaluation.ious[entry['image_id'], entry['category_id']]
        column = {ann['id']: k for k, ann in enumerate(
            evaluation._gts[entry['image_id'], entry['category_id']])}
        for k, taken in enumerate(entry['dtMatches'][0]):
            ious.append(overlap[k][column[int(taken)]] if taken else 0.)
        scores += entry['dtScores']
        labels += [entry['category_id']] * len(entry['dtScores'])
    return np.array(scores), np.array(ious), np.array(labels)


def available(package: str) -> bool:
    """Whether a reference implementation can be imported."""
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


# ------------------------------------------------------------------ the comparisons


def mean_over_classes(matched: Matched, measure: Callable[[Matched], float],
                      with_objects: bool) -> float:
    """Mean over the classes that have objects, or over those that have detections."""
    classes = np.unique(matched.object_labels if with_objects else matched.labels)
    return mean_of_defined([measure(matched.of_class(label)) for label in classes])


def compare_detections(detections: Detections, objects: Objects) -> Iterator[Row]:
    """The measures of detections, at every IoU and score threshold."""
    for tau in TAUS:
        for threshold in THRESHOLDS:
            kept = detections.select(detections.scores >= threshold)
            yield from compare_kept(kept, objects, tau, threshold)
    for threshold in THRESHOLDS:
        kept = detections.select(detections.scores >= threshold)
        if available('uq_detr'):
            import uq_detr
            yield Row('OCE', None, threshold, 'uq-detr, whole distributions',
                      uq_detr.oce(*of_uq_detr(kept, objects, True)).score,
                      object_errors(kept, objects).mean())


def compare_kept(kept: Detections, objects: Objects, tau: float, threshold: float) -> Iterator[Row]:
    """The measures of the detections that are kept."""
    matched, bounded = match(kept, objects, tau), match(with_ends(kept), objects, tau)
    scores, ious, labels = of_cocoeval(kept, objects, tau or TINY)
    order = np.argsort(scores, kind='stable')
    mine = np.argsort(matched.scores, kind='stable')
    yield Row('mean IoU of what COCO matched', tau, threshold, 'pycocotools', ious[order].mean(),
              matched.ious[mine].mean())
    laace_of = [mean_absolute_error(scores[labels == c], ious[labels == c])
                for c in np.unique(labels)]
    yield Row('LaACE', tau, threshold, 'mean absolute error of what pycocotools matched',
              np.mean(laace_of), mean_over_classes(
                  matched, lambda m: laace(m.scores, m.hits, m.ious), False))
    if available('uq_detr'):
        import uq_detr
        options = dict(iou_threshold=tau or TINY, n_bins=N_BINS, tp_criterion='greedy')
        found = of_uq_detr(with_ends(kept), objects)
        yield Row('LaECE', tau, threshold, 'uq-detr', uq_detr.laece(*found, **options).score,
                  mean_of_defined(laece_by_class(
                      bounded.scores, bounded.hits, bounded.ious, bounded.labels, N_CLASSES,
                      N_BINS)))
        of_class = [(kept.select(kept.labels == c), objects.select(objects.labels == c))
                    for c in range(N_CLASSES)]
        reference = [uq_detr.lrp(*of_uq_detr(*one), iou_threshold=tau or TINY).score
                     for one in of_class if len(one[1].labels)]
        yield Row('LRP', tau, threshold, 'uq-detr', np.mean(reference), mean_over_classes(
            matched, lambda m: lrp(m.hits, m.ious, m.n_objects, tau).total, True))
    hits = matched.hits
    if available('netcal.metrics'):
        from netcal.metrics import ECE
        expected = ECE(bins=N_BINS, detection=True).measure(matched.scores[:, None],
                                                            hits.astype(int))
        yield Row('ECE', tau, threshold, 'netcal', float(expected), ece(matched.scores, hits))
    if available('torchmetrics'):
        import torch
        from torchmetrics.functional.classification import binary_calibration_error
        below = matched.scores < 1  # torchmetrics gives 1 a bin of its own
        expected = binary_calibration_error(
            torch.from_numpy(matched.scores[below]), torch.from_numpy(hits[below]).long(),
            n_bins=N_BINS, norm='l1')
        yield Row('ECE, scores below 1', tau, threshold, 'torchmetrics', expected.item(),
                  ece(matched.scores[below], hits[below]))
    if available('sklearn'):
        from sklearn.metrics import brier_score_loss, log_loss
        yield Row('Brier', tau, threshold, 'scikit-learn',
                  brier_score_loss(hits, matched.scores), brier(matched.scores, hits))
        eps = np.finfo(np.float32).eps
        yield Row('NLL', tau, threshold, 'scikit-learn',
                  log_loss(hits, matched.scores.clip(eps, 1 - eps)), nll(matched.scores, hits))


def mean_absolute_error(scores: np.ndarray, ious: np.ndarray) -> float:
    if available('sklearn'):
        from sklearn import metrics
        return metrics.mean_absolute_error(ious, scores)
    return float(np.abs(scores - ious).mean())


def compare_curves(detections: Detections, objects: Objects) -> Iterator[Row]:
    """oLRP, whose threshold is sought, against the lowest of uq-detr's LRP at every score."""
    if not available('uq_detr'):
        return
    import uq_detr
    for tau in TAUS:
        matched = match(detections, objects, tau)
        for label in (0, 3):  # two will do: it takes long
            one, real = detections.select(detections.labels == label), objects.select(
                objects.labels == label)
            lowest = min(uq_detr.lrp(*of_uq_detr(one.select(one.scores >= thr), real),
                                     iou_threshold=tau or TINY).score
                         for thr in np.unique(one.scores))
            mine = matched.of_class(label)
            yield Row(f'oLRP of class {label}', tau, None, 'uq-detr, lowest of all thresholds',
                      lowest, olrp(mine.scores, mine.hits, mine.ious, mine.n_objects, tau))


def compare_calibrators(detections: Detections, objects: Objects) -> Iterator[Row]:
    """The fits, at three scores each."""
    if not available('sklearn'):
        return
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression
    matched = match(detections, objects, 0.5).above(0.05)
    scores, hits, labels = matched.scores, matched.hits, np.zeros(len(matched.scores), int)
    logits = np.log(scores / (1 - scores).clip(np.finfo(np.float32).eps))[:, None]
    inside = scores < 1
    platt = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(logits[inside],
                                                                         hits[inside])
    isotonic = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip')
    isotonic.fit(scores, matched.ious)
    ours = dict(
        platt=fit_calibrator('platt', scores[inside], hits[inside], labels[inside], ['all']),
        isotonic=fit_calibrator('isotonic', scores, matched.ious, labels, ['all']))
    for at in (.1, .4, .8):
        yield Row(f'Platt fitted to hits, at {at}', 0.5, 0.05, 'scikit-learn LogisticRegression',
                  platt.predict_proba([[np.log(at / (1 - at))]])[0, 1], ours['platt']([at])[0])
        yield Row(f'isotonic fitted to the IoU, at {at}, but for its tilt of 1e-4', 0.5, 0.05,
                  'scikit-learn IsotonicRegression', isotonic.predict([at])[0],
                  ours['isotonic']([at])[0])


def compare_literal_zero(detections: Detections, objects: Objects) -> Iterator[Row]:
    """Not equal, and why: an IoU of at least 0 is no overlap at all."""
    for threshold in THRESHOLDS:
        kept = detections.select(detections.scores >= threshold)
        scores, ious, labels = of_cocoeval(kept, objects, 0.)
        matched = match(kept, objects, 0.)
        values = [mean_of_defined(laece_by_class(*of, N_CLASSES, N_BINS)[:NO_OBJECTS]) for of in (
            (scores, ious > 0, ious, labels),
            (matched.scores, matched.hits, matched.ious, matched.labels))]
        yield Row('LaECE where boxes that do not touch may match (not ours: see docs)', 0.,
                  threshold, 'pycocotools, IoU of at least 0', *values)


def compare() -> List[Row]:
    """All rows."""
    detections, objects = draw_data()
    return [*compare_detections(detections, objects), *compare_curves(detections, objects),
            *compare_calibrators(detections, objects), *compare_literal_zero(detections, objects)]


def versions() -> Dict[str, str]:
    """What was compared with."""
    packages = {'uq_detr': 'uq-detr', 'netcal': 'netcal', 'torchmetrics': 'torchmetrics',
                'sklearn': 'scikit-learn', 'pycocotools': 'pycocotools', 'numpy': 'numpy'}
    return {name: version(name) for module, name in packages.items() if available(module)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', help='json file for the table')
    args = parser.parse_args()
    rows = compare()
    print(f'{"measure":75} {"tau":>4} {"thr":>5} {"reference":>12} {"ours":>12}')
    for row in rows:
        tau, threshold = ('' if of is None else of for of in (row.tau, row.threshold))
        print(f'{row.measure:75} {tau:>4} {threshold:>5} {row.expected:12.8f} {row.value:12.8f}  '
              f'{row.reference}')
    if args.out:
        table = dict(command=shlex.join(['python', *sys.argv]), versions=versions(),
                     rows=[row._asdict() for row in rows])
        with open(args.out, 'w') as file:
            json.dump(table, file, indent=1, default=float)


if __name__ == '__main__':
    main()
