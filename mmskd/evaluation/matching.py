"""Which detections hit an object, decided once, by COCO's rules, for a whole data set at a time.

Arrays only: boxes are x1, y1, x2, y2 in pixels, labels count from 0, and ``images`` names the image
that a box is on by its position in the data set.
"""
from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np

ANY_SIZE = (0., np.inf)
PAIRS_AT_ONCE = 2_000_000  # bounds the memory, some 200 MB


class Detections(NamedTuple):
    """N detections; :meth:`of` makes them of anything array-like, and checks it.

    Attributes:
        boxes (ndarray): Shape (N, 4), float64.
        scores (ndarray): Shape (N,), float64.
        labels (ndarray): Shape (N,), int64.
        images (ndarray): Shape (N,), int64.
    """
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, boxes, scores, labels, images) -> 'Detections':
        """Checked arrays.

        Raises:
            ValueError: If lengths differ, a label is no whole number from 0, or a box or score is
                not finite.
        """
        boxes, labels, images = _checked(boxes, labels, images, 'detections')
        scores = np.asarray(scores, np.float64)
        if scores.shape != labels.shape:
            raise ValueError(f'{len(labels)} detections have {scores.shape} scores')
        _check_finite(scores, images, 'the score of a detection')
        return cls(boxes, scores, labels, images)

    def select(self, keep) -> 'Detections':
        """Those that a mask or an index names."""
        return Detections(*(values[keep] for values in self))


class Objects(NamedTuple):
    """M annotated objects; :meth:`of` makes them of anything array-like, and checks it.

    Attributes:
        boxes (ndarray): Shape (M, 4), float64.
        labels (ndarray): Shape (M,), int64.
        images (ndarray): Shape (M,), int64.
        ignored (ndarray): Need not be found, and what finds it is neither right nor wrong. All
            crowds are. Shape (M,), bool.
        crowds (ndarray): Stands for many: takes any number of detections, each by the share of the
            detection that lies inside. (An ignored object that is none takes one, by IoU.) Shape
            (M,), bool.
        areas (ndarray): Square pixels; of the mask, if the annotation has one. Shape (M,), float64.
    """
    boxes: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    ignored: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(cls, boxes, labels, images, ignored=None, crowds=None, areas=None) -> 'Objects':
        """Checked arrays.

        Without flags nothing is ignored, without areas they are those of the boxes.

        Raises:
            ValueError: If lengths differ, a label is no whole number from 0, or a box or area is
                not finite.
        """
        boxes, labels, images = _checked(boxes, labels, images, 'objects')
        nothing = np.zeros(len(labels), bool)
        crowds = nothing if crowds is None else np.asarray(crowds, bool)
        ignored = crowds if ignored is None else np.asarray(ignored, bool) | crowds
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        areas = width * height if areas is None else np.asarray(areas, np.float64)
        if not ignored.shape == crowds.shape == areas.shape == labels.shape:
            raise ValueError(f'{len(labels)} objects have {ignored.shape} flags for ignored, '
                             f'{crowds.shape} for crowds, and {areas.shape} areas')
        _check_finite(areas, images, 'the area of an object')
        return cls(boxes, labels, images, ignored, crowds, areas)

    def select(self, keep) -> 'Objects':
        """Those that a mask or an index names."""
        return Objects(*(values[keep] for values in self))


class Overlaps(NamedTuple):
    """The P pairs of a detection and an object of the same image and class that overlap.

    Attributes:
        detections (ndarray): Index of the detection, shape (P,), int64.
        objects (ndarray): Index of the object, shape (P,), int64.
        ious (ndarray): IoU, above 0; with a crowd the share of the detection inside. Shape (P,).
        ranks (ndarray): How many detections of its image and class score higher; of all N
            detections, shape (N,), int64.
    """
    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    ranks: np.ndarray


class Matched(NamedTuple):
    """What became of N detections and M objects, in the order in which they were given.

    Attributes:
        scores (ndarray): As given, shape (N,).
        labels (ndarray): As given, shape (N,).
        images (ndarray): As given, shape (N,).
        counts (ndarray): False where a detection is neither right nor wrong: on an ignored object,
            beyond the number to look at, or of another size. Shape (N,), bool.
        hits (ndarray): Whether it counts and took an object, shape (N,), bool.
        ious (ndarray): IoU with that object, 0 where it took none, shape (N,).
        objects (ndarray): Index of that object, -1 where it took none, shape (N,), int64.
        object_labels (ndarray): As given, shape (M,).
        object_images (ndarray): As given, shape (M,).
        object_counts (ndarray): False for an ignored object, shape (M,), bool.
    """
    scores: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    counts: np.ndarray
    hits: np.ndarray
    ious: np.ndarray
    objects: np.ndarray
    object_labels: np.ndarray
    object_images: np.ndarray
    object_counts: np.ndarray

    @property
    def n_objects(self) -> int:
        """int: Objects that are not ignored."""
        return int(self.object_counts.sum())

    def objects_per_class(self, n_classes: int, weights: Optional[np.ndarray] = None) -> np.ndarray:
        """Objects that are not ignored, shape (n_classes,); ``weights`` of the images, (I,)."""
        counted = self.object_counts
        if weights is not None:
            weights = weights[self.object_images[counted]]
        return np.bincount(self.object_labels[counted], weights, n_classes)

    def select(self, keep: np.ndarray) -> 'Matched':
        """Only the detections of a mask, and all objects.

        Leaving out what scores less is the same as not having matched it: objects go to detections
        from the highest score down, so none can take anything from one that scores higher.
        """
        return Matched._make([*(values[keep] for values in self[:7]), *self[7:]])

    def counted(self) -> 'Matched':
        """Only the detections that count."""
        return self.select(self.counts)

    def above(self, thresholds) -> 'Matched':
        """Only the detections that count and score at least so much.

        Args:
            thresholds (float or array): One, or one for each class; nan keeps none of a class.
        """
        thresholds = np.asarray(thresholds, np.float64)
        least = thresholds[self.labels] if thresholds.ndim else thresholds
        return self.select(self.counts & (self.scores >= least))

    def of_class(self, label: int) -> 'Matched':
        """Only the detections and objects of one class; ``objects`` still counts among all."""
        kept = self.select(self.labels == label)
        return kept._replace(object_counts=kept.object_counts & (kept.object_labels == label))


def match(detections: Detections,
          objects: Objects,
          iou_thr: float = 0.5,
          max_dets: int = 100,
          area_range: Tuple[float, float] = ANY_SIZE,
          found: Optional[Overlaps] = None) -> Matched:
    """Match detections to objects, image by image and class by class, as pycocotools does.

    Detections choose from the highest score down; each takes the free object with the highest IoU,
    if that is at least ``iou_thr``, and an ignored one only where there is no other. Equal scores
    choose in the order given. Unlike COCOeval, which overwrites the ``ignore`` flag of an
    annotation by its ``iscrowd`` flag, this honours both.

    Args:
        detections (Detections): What was found.
        objects (Objects): What there is.
        iou_thr (float): IoU from which on a detection may match. At 0 any overlap will do. (Taken
            literally, as COCOeval takes it, 0 would hand an object to a detection on the other side
            of the image.) Defaults to 0.5.
        max_dets (int): Detections per image and class to look at, the highest scores first.
            Defaults to 100.
        area_range (tuple[float, float]): Look only at objects of these areas, in square pixels:
            others are ignored, and so are detections of other sizes that took nothing. Defaults to
            any size (which a box that is inside out does not have: it never counts).
        found (Overlaps, optional): What :func:`overlaps` says of the same detections and objects,
            to match them at several thresholds. Defaults to None.

    Returns:
        Matched: What became of each.
    """
    found = found or overlaps(detections, objects)
    ignored = objects.ignored | _outside(objects.areas, area_range)
    looked_at = found.ranks < max_dets
    # pycocotools' bound: an IoU that is 1 but for rounding is 1
    near = (found.ious >= min(iou_thr, 1 - 1e-10)) & looked_at[found.detections]
    close = Overlaps._make([*(values[near] for values in found[:3]), found.ranks])
    taken = _take_turns(close, ignored, objects.crowds, len(detections.scores))
    took = taken >= 0
    counts = looked_at & ~np.append(ignored, False)[taken]  # -1, for none, is the last
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    counts &= took | ~_outside(sides[:, 0] * sides[:, 1], area_range)
    hits = took & counts
    ious = np.zeros(len(taken))
    pair = near.nonzero()[0][found.objects[near] == taken[found.detections[near]]]
    ious[found.detections[pair]] = found.ious[pair]
    return Matched(
        detections.scores, detections.labels, detections.images, counts, hits,
        np.where(hits, ious, 0.), np.where(hits, taken, -1), objects.labels, objects.images,
        ~ignored)


def overlaps(detections: Detections, objects: Objects, across_classes: bool = False) -> Overlaps:
    """All pairs of a detection and an object of the same image and class that overlap.

    Args:
        detections (Detections): What was found.
        objects (Objects): What there is.
        across_classes (bool): Pairs of different classes as well. Defaults to False.

    Returns:
        Overlaps: The pairs, and the rank of each detection.
    """
    keys, object_keys = _keys(detections, objects, across_classes)
    order = np.argsort(object_keys, kind='stable')
    first = np.searchsorted(object_keys[order], keys, 'left')
    number = np.searchsorted(object_keys[order], keys, 'right') - first
    parts = [_overlapping(detections, objects, order, first, number, rows)
             for rows in _chunks(number)]
    empty = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    return Overlaps._make([
        *map(np.concatenate, zip(empty, *parts)), _ranks(keys, detections.scores)])


def _keys(detections: Detections, objects: Objects, across_classes: bool):
    """A number for each image and class (image, across classes): of detections and of objects."""
    if across_classes:
        return detections.images, objects.images
    n_classes = 1 + max(detections.labels.max(initial=0), objects.labels.max(initial=0))
    return (detections.images * n_classes + detections.labels,
            objects.images * n_classes + objects.labels)


def _ranks(keys: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many of the same key score higher, or as high and come earlier."""
    order = np.lexsort((-scores, keys))  # stable
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(keys)))
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(starts, sizes)
    return ranks


def _chunks(number: np.ndarray) -> Iterator[slice]:
    """Slices of the detections with at most so many pairs at once (more where one has more)."""
    total = np.cumsum(number)
    start = 0
    while start < len(number):
        before = total[start - 1] if start else 0
        stop = max(np.searchsorted(total, before + PAIRS_AT_ONCE, 'right'), start + 1)
        yield slice(start, stop)
        start = stop


def _overlapping(detections: Detections, objects: Objects, order, first, number, rows: slice):
    """The overlapping pairs of some detections; ``order[first:first + number]`` are candidates."""
    number, first = number[rows], first[rows]
    which = np.repeat(np.arange(rows.start, rows.stop), number)
    within = np.arange(len(which)) - np.repeat(np.cumsum(number) - number, number)
    other = order[np.repeat(first, number) + within]
    ious = _ious(detections.boxes[which], objects.boxes[other], objects.crowds[other])
    keep = ious > 0
    return which[keep], other[keep], ious[keep]


def _ious(boxes: np.ndarray, others: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """IoU of each box with the other, (P,); with a crowd the intersection over the box.

    In the order in which pycocotools computes, from x, y, width and height, so that not even the
    last digit differs.
    """
    sides, other_sides = boxes[:, 2:] - boxes[:, :2], others[:, 2:] - others[:, :2]
    both = np.minimum(boxes[:, :2] + sides, others[:, :2] + other_sides) \
        - np.maximum(boxes[:, :2], others[:, :2])
    inside = np.where((both > 0).all(1), both[:, 0] * both[:, 1], 0.)
    area = sides[:, 0] * sides[:, 1]
    union = np.where(crowds, area, area + other_sides[:, 0] * other_sides[:, 1] - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def _take_turns(near: Overlaps, ignored: np.ndarray, crowds: np.ndarray, n: int) -> np.ndarray:
    """The object that each of n detections takes, -1 for none.

    All images and classes take turns together: in turn r the detection with rank r of each chooses,
    and no two of them want the same object.
    """
    ranks = near.ranks[near.detections]
    # Of the pairs of a detection the best comes first; among equals pycocotools takes the last
    order = np.lexsort((-near.objects, -near.ious, ignored[near.objects], near.detections, ranks))
    detections, objects, ranks = near.detections[order], near.objects[order], ranks[order]
    taken = np.full(n, -1)
    free = np.ones(len(ignored), bool)
    turns = np.flatnonzero(np.diff(ranks, prepend=-1, append=-1))
    for start, stop in zip(turns[:-1], turns[1:]):
        available = start + np.flatnonzero(free[objects[start:stop]])
        best = available[np.flatnonzero(np.diff(detections[available], prepend=-1))]
        taken[detections[best]] = objects[best]
        free[objects[best]] = crowds[objects[best]]
    return taken


def _outside(areas: np.ndarray, area_range: Tuple[float, float]) -> np.ndarray:
    return (areas < area_range[0]) | (areas > area_range[1])


def _checked(boxes, labels, images, what: str) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if (np.asarray(labels) % 1 != 0).any():
        raise ValueError(f'labels of {what} must be whole numbers')
    labels, images = np.asarray(labels, np.int64), np.asarray(images, np.int64)
    if not len(boxes) == len(labels) == len(images) or labels.ndim != 1 or images.ndim != 1:
        raise ValueError(f'{len(boxes)} boxes of {what} have {labels.shape} labels and are on '
                         f'{images.shape} images')
    if labels.size and labels.min() < 0:
        raise ValueError(f'labels of {what} count from 0, but one is {labels.min()}')
    _check_finite(boxes, images, f'a box of the {what}')
    return boxes, labels, images


def _check_finite(values: np.ndarray, images: np.ndarray, what: str) -> None:
    wrong = ~np.isfinite(values.sum(tuple(range(1, values.ndim))))
    if wrong.any():
        raise ValueError(f'{what} is not finite: {values[wrong][0]} on image {images[wrong][0]} '
                         f'({wrong.sum()} of {len(wrong)} are not)')
