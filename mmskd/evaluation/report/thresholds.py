"""What a score threshold costs and gives: precision, recall and F1 of each class or keypoint."""
from typing import List, NamedTuple, Sequence

import numpy as np

from ..average_precision import RECALLS
from .judging import Judged

STEPS = 200  # score thresholds of a curve


class Tradeoff(NamedTuple):
    """Of C classes or keypoints, nan where there are no objects.

    Attributes:
        precision_at_recall (ndarray): Highest precision at each of 101 recalls from 0 to 1 or more,
            shape (C, 101).
        thresholds (ndarray): S score thresholds, from 0.
        precision (ndarray): At each threshold, shape (C, S); 1 where nothing is left.
        recall (ndarray): At each threshold, shape (C, S).
    """
    precision_at_recall: np.ndarray
    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """ndarray: Harmonic mean of precision and recall at each threshold, shape (C, S)."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total),
                         where=total != 0)


class Best(NamedTuple):
    """The threshold with the highest F1 of a class or keypoint, the lowest of equal ones.

    Attributes:
        name (str): Whose.
        objects (int): How many there are.
        threshold (float): The score threshold.
        f1 (float): F1 there.
        precision (float): Precision there.
        recall (float): Recall there.
    """
    name: str
    objects: int
    threshold: float
    f1: float
    precision: float
    recall: float


def tradeoff(judged: Judged, highest: float = 1.) -> Tradeoff:
    """The curves of one run.

    Args:
        judged (Judged): Every prediction that counts.
        highest (float): Where the thresholds end. Defaults to 1.
    """
    thresholds = np.linspace(0, highest, STEPS + 1)
    n_classes = len(judged.names)
    at_recall = np.full((n_classes, len(RECALLS)), np.nan)
    precision, recall = (np.full((n_classes, len(thresholds)), np.nan) for _ in range(2))
    order = np.lexsort((-judged.scores, judged.labels))
    ends = np.searchsorted(judged.labels[order], np.arange(n_classes + 1))
    n_objects = np.bincount(judged.object_labels, minlength=n_classes)
    for label in np.flatnonzero(n_objects):
        mine = order[ends[label]:ends[label + 1]]
        right = np.cumsum(judged.hits[mine])
        each = right / np.arange(1, len(mine) + 1)
        best = np.append(np.maximum.accumulate(each[::-1])[::-1], 0)
        at_recall[label] = best[np.searchsorted(right / n_objects[label], RECALLS, side='left')]
        kept = np.searchsorted(-judged.scores[mine], -thresholds, side='right')
        precision[label] = np.append(1., each)[kept]
        recall[label] = np.append(0, right)[kept] / n_objects[label]
    return Tradeoff(at_recall, thresholds, precision, recall)


def mean_tradeoff(tradeoffs: Sequence[Tradeoff]) -> Tradeoff:
    """The mean of the curves of several runs of the same data."""
    first = tradeoffs[0]
    return Tradeoff(*(np.mean(arrays, axis=0) if name != 'thresholds' else first.thresholds
                      for name, arrays in zip(Tradeoff._fields, zip(*tradeoffs))))


def best_thresholds(curves: Tradeoff, judged: Judged) -> List[Best]:
    """The best threshold of each class or keypoint that has objects.

    Args:
        curves (Tradeoff): Of a run, or the mean of several.
        judged (Judged): Of one of them.
    """
    n_objects = np.bincount(judged.object_labels, minlength=len(judged.names))
    f1 = curves.f1
    found = []
    for label in np.flatnonzero(n_objects):
        at = int(np.argmax(f1[label]))
        found.append(Best(judged.names[label], int(n_objects[label]),
                          float(curves.thresholds[at]), float(f1[label, at]),
                          float(curves.precision[label, at]), float(curves.recall[label, at])))
    return found


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """The mean of the rows that are defined, shape (N,) of (C, N)."""
    known = ~np.isnan(values).all(axis=1)
    return values[known].mean(axis=0) if known.any() else np.full(values.shape[1], np.nan)
