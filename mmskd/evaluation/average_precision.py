"""COCO's average precision, on arrays."""
from typing import Optional, Sequence

import numpy as np

from .matching import Detections, Matched, Objects, Overlaps, match, overlaps

IOU_THRS = np.linspace(.5, .95, 10)
RECALLS = np.linspace(0, 1, 101)


def average_precision(detections: Detections, objects: Objects, n_classes: int,
                      iou_thrs: Sequence[float] = IOU_THRS, max_dets: int = 100,
                      found: Optional[Overlaps] = None) -> np.ndarray:
    """Average precision of each class at each IoU.

    As ``COCOeval`` has it: the mean, over 101 recalls from 0 to 1, of the highest precision at that
    recall or more. COCO's AP is the mean over the IoUs 0.5 to 0.95 and all classes.

    Args:
        detections (Detections): Those of an image together.
        objects (Objects): What there is.
        n_classes (int): C.
        iou_thrs (sequence[float]): T IoUs from which on a detection is right. Defaults to COCO's.
        max_dets (int): Detections per image and class. Defaults to 100.
        found (Overlaps, optional): What :func:`~.matching.overlaps` says of them. Defaults to None.

    Returns:
        ndarray: Shape (T, C), nan for a class without objects.
    """
    found = found or overlaps(detections, objects)
    order = _order(detections.labels, detections.scores)
    return np.array([
        precision_at_recalls(match(detections, objects, iou_thr, max_dets, found=found), n_classes,
                             order=order).mean(axis=1) for iou_thr in iou_thrs])


def precision_at_recalls(matched: Matched, n_classes: int, recalls: Sequence[float] = RECALLS,
                         order: Optional[np.ndarray] = None) -> np.ndarray:
    """The highest precision of each class at recalls of at least so much.

    Args:
        matched (Matched): Detections, those of an image together, and objects.
        n_classes (int): C.
        recalls (sequence[float]): R of them. Defaults to COCO's 101.
        order (array, optional): The detections by class and falling score, shape (N,). Defaults to
            None: they are sorted.

    Returns:
        ndarray: Shape (C, R), 0 beyond the highest recall, nan for a class without objects.
    """
    order = _order(matched.labels, matched.scores) if order is None else order
    order = order[matched.counts[order]]
    hits = matched.hits[order]
    ends = np.searchsorted(matched.labels[order], np.arange(n_classes + 1))
    precision = np.full((n_classes, len(recalls)), np.nan)
    for label, n_objects in enumerate(matched.objects_per_class(n_classes)):
        if n_objects:
            right = np.cumsum(hits[ends[label]:ends[label + 1]])
            # The last term as in COCOeval, which keeps 0 / 0 away
            each = right / (np.arange(1, len(right) + 1) + np.spacing(1))
            best = np.append(np.maximum.accumulate(each[::-1])[::-1], 0)
            precision[label] = best[np.searchsorted(right / n_objects, recalls, side='left')]
    return precision


def _order(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.lexsort((-scores, labels))  # stable, as COCOeval's
