"""Generated detection data: five shapes that shade into one another.

Every shape is a point in a plane: how round the corners of a square are (0: square, 1: circle), and
how much it is squeezed along a diagonal (1: not at all). Look-alike classes are neighbours there. A
share of the objects lies on the line between two neighbours, and its label was drawn with the odds
of its place on that line: such a label is a coin toss, and the best prediction is a soft one.
"""
from typing import List, Tuple

import numpy as np

from mmskd.optional import HAS_MMDET

from . import drawing

# name: (roundness, squeeze) of the class
CLASSES = dict(
    circle=(1.0, 1.0),
    ellipse=(1.0, 0.5),
    square=(0.0, 1.0),
    rounded_square=(0.4, 1.0),
    rhombus=(0.0, 0.5))
LOOK_ALIKES = dict(
    circle=('ellipse', 'rounded_square'),
    ellipse=('circle', ),
    square=('rounded_square', 'rhombus'),
    rounded_square=('circle', 'square'),
    rhombus=('square', ))
CATEGORIES = [dict(id=i, name=name, supercategory='shape') for i, name in enumerate(CLASSES, 1)]
# Okabe and Ito's colours, which can be told apart with any colour vision
PALETTE = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0)]

EMPTY_SHARE = 0.08  # images without objects
IN_BETWEEN_SHARE = 0.25  # objects between two look-alikes
MAX_OBJECTS = 6
RADII = (10.0, 22.0)  # of the disc of the same area, in pixels
MAX_TILT = np.radians(20)  # of a square from upright
MIN_VISIBLE = 0.5  # share of an object that later ones must leave in sight


def contour(roundness: float, squeeze: float) -> np.ndarray:
    """The outline of a shape around the origin, with the area of the unit disc.

    Args:
        roundness (float): Radius of the corners, 0 (square) to 1 (circle).
        squeeze (float): Ratio of the diagonals, in (0, 1]; 1 is not squeezed.

    Returns:
        np.ndarray: (28, 2) corners in order.
    """
    quarters = np.arange(4)[:, None] * np.pi / 2
    angles = quarters + np.linspace(0, np.pi / 2, 7)
    arcs = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    middles = quarters + np.pi / 4
    centres = np.sqrt(2) * np.stack([np.cos(middles), np.sin(middles)], axis=-1)
    points = (roundness * arcs + (1 - roundness) * centres).reshape(-1, 2)
    points = points @ drawing.rotation(np.pi / 4) * [1, squeeze]
    return points * np.sqrt(np.pi / polygon_area(points))


def polygon_area(points: np.ndarray) -> float:
    """Area of a simple polygon of shape (K, 2)."""
    x, y = points.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def sample_geometry(rng: np.random.Generator, name: str) -> Tuple[float, float]:
    """A (roundness, squeeze) that is labelled with the class ``name``.

    A clear sample lies next to its class. One in between lies a fraction t of the way to a
    look-alike, with density 2 (1 - t): seen from both ends, the odds of the label at t are 1 - t.
    """
    here = np.array(CLASSES[name])
    if rng.random() < IN_BETWEEN_SHARE:
        there = np.array(CLASSES[str(rng.choice(LOOK_ALIKES[name]))])
        t = 1 - np.sqrt(rng.random())
        return tuple(here + t * (there - here))
    return tuple(np.clip(here + rng.uniform(-0.06, 0.06, size=2), 0, 1))


def sample_polygon(rng: np.random.Generator, name: str) -> np.ndarray:
    """A shape of the class ``name`` somewhere inside the image, (28, 2) in pixels.

    Rounded to 1/100 pixel, so that the image and the written annotation are of the same shape.
    """
    angle = rng.integers(4) * np.pi / 2 + np.pi / 4 + rng.uniform(-MAX_TILT, MAX_TILT)
    shape = rng.uniform(*RADII) * contour(*sample_geometry(rng, name)) @ drawing.rotation(angle)
    room = [drawing.WIDTH, drawing.HEIGHT] - np.ptp(shape, axis=0)
    return np.round(shape - shape.min(axis=0) + rng.random(2) * room, 2)


def sample_objects(rng: np.random.Generator) -> List[Tuple[str, np.ndarray]]:
    """The objects of one image from back to front, as (class, polygon).

    An object that would cover an earlier one too much is left out.
    """
    objects: list = []
    visible: list = []
    areas: list = []
    if rng.random() < EMPTY_SHARE:
        return objects
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        name = str(rng.choice(list(CLASSES)))
        polygon = sample_polygon(rng, name)
        mask = drawing.polygon_mask(polygon)
        left = [other & ~mask for other in visible]
        if all(now.sum() >= MIN_VISIBLE * area for now, area in zip(left, areas)):
            objects.append((name, polygon))
            visible, areas = left + [mask], areas + [mask.sum()]
    return objects


def annotation(name: str, polygon: np.ndarray) -> dict:
    """The COCO annotation of one object; box and polygon are of the whole shape, hidden or not."""
    (x1, y1), (x2, y2) = polygon.min(axis=0), polygon.max(axis=0)
    return dict(
        category_id=list(CLASSES).index(name) + 1,
        bbox=np.round([x1, y1, x2 - x1, y2 - y1], 2).tolist(),
        area=round(polygon_area(polygon), 2),
        iscrowd=0,
        segmentation=[polygon.ravel().tolist()])


def draw_shapes(rng: np.random.Generator) -> Tuple[np.ndarray, List[dict]]:
    """Draw one image.

    Args:
        rng (np.random.Generator): Source of everything in it.

    Returns:
        tuple: The image, (128, 160, 3) of uint8 RGB, and its COCO annotations without ids.
    """
    canvas, mean_colour = drawing.background(rng)
    drawing.add_clutter(canvas, rng)
    objects = sample_objects(rng)
    for _, polygon in objects:
        drawing.draw_polygon(canvas, polygon, drawing.colour_against(rng, mean_colour))
    annotations = [annotation(name, polygon) for name, polygon in objects]
    return drawing.develop(canvas, rng), annotations


if HAS_MMDET:
    from mmdet.datasets import CocoDataset

    from mmskd.registry import DATASETS

    @DATASETS.register_module()
    class ShapesDataset(CocoDataset):
        """The shapes that ``tools/make_demo_data.py OUT_DIR --kind shapes`` writes.

        The arguments are those of mmdet's ``CocoDataset``.
        """

        METAINFO = dict(classes=tuple(CLASSES), palette=PALETTE)
