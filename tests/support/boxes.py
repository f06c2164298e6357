"""Random objects and detections, as arrays."""
from typing import Tuple

import numpy as np

from mmskd.evaluation.matching import Detections, Objects


def random_boxes(rng: np.random.Generator, n: int, low: float = 10,
                 high: float = 150) -> np.ndarray:
    corners = rng.uniform(0, 400, (n, 2))
    return np.hstack([corners, corners + rng.uniform(low, high, (n, 2))])


def random_scene(n_images: int = 20, n_classes: int = 3, seed: int = 0, ignored: float = 0.,
                 crowds: float = 0., digits: int = 2) -> Tuple[Detections, Objects]:
    """Objects and detections near and far, of the right class and of others, with equal scores.

    Args:
        n_images (int): Images; some are empty.
        n_classes (int): Classes; the last has no objects, the one before no detections.
        seed (int): Of the random numbers.
        ignored (float): Share of the objects that are ignored, and no crowds.
        crowds (float): Share that are crowds.
        digits (int): Decimal digits of the scores: the fewer, the more ties.
    """
    rng = np.random.default_rng(seed)
    n_objects = rng.poisson(4, n_images)
    images = np.repeat(np.arange(n_images), n_objects)
    boxes, total = random_boxes(rng, len(images)), len(images)
    labels = rng.integers(0, n_classes - 1, total)
    kind = rng.random(total)
    objects = Objects.of(boxes, labels, images, ignored=kind < ignored,
                         crowds=(kind >= ignored) & (kind < ignored + crowds))
    near = np.repeat(np.arange(total), rng.integers(0, 4, total))
    far_images = np.repeat(np.arange(n_images), rng.poisson(4, n_images))
    found = np.vstack([boxes[near] + rng.normal(0, 7, (len(near), 4)),
                       random_boxes(rng, len(far_images))])
    named = np.where(rng.random(len(found)) < .85, np.append(labels[near], np.zeros(
        len(far_images), int)), rng.integers(0, n_classes, len(found)))
    keep = named != n_classes - 2
    detections = Detections.of(found, np.round(rng.random(len(found)), digits), named,
                               np.append(images[near], far_images)).select(keep)
    return detections, objects


def joined(*scenes) -> Tuple[Detections, Objects]:
    """Scenes one after the other, as one data set."""
    parts, start = [], 0
    for detections, objects in scenes:
        parts.append((detections._replace(images=detections.images + start),
                      objects._replace(images=objects.images + start)))
        start += 1 + max(detections.images.max(initial=-1), objects.images.max(initial=-1))
    return tuple(type(of[0])(*map(np.concatenate, zip(*of))) for of in zip(*parts))
