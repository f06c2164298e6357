"""Images with what was predicted in them, right, wrong and missed."""
import io
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.fileio import get
from PIL import Image

from .charts.chart import short
from .judging import Judged
from .predictions import Predictions

# Okabe-Ito, with dashes that say the same; a dark rim makes them visible on any image
RIGHT, WRONG, MISSED, TRUTH = (dict(color='#56b4e9', ls='-'), dict(color='#e69f00', ls=(0, (4, 2))),
                               dict(color='#f0e442', ls=(0, (1, 1.5))), dict(color='#ffffff',
                                                                            ls='-'))
WIDTH = 3.6  # of a drawn image, in inches
FONT_SIZE = 6.5  # of a label, in points
LETTER = 0.62  # width of a letter, and of what is around a label, in font sizes
LINE = 1.45  # height of a label in font sizes


class Disagreement(NamedTuple):
    """An image on which runs disagree.

    Attributes:
        image (int): Index into the predictions' image_ids.
        objects (int): Objects that some of the runs found and some did not.
        alarms (int): Largest minus smallest number of false alarms.
    """
    image: int
    objects: int
    alarms: int


def disagreements(judged: Sequence[Judged], n_images: int, limit: int,
                  count_alarms: bool = True) -> Tuple[List[Disagreement], np.ndarray]:
    """The images on which the runs disagree most, the worst first.

    Args:
        judged (sequence[Judged]): What of each run is looked at, of the same images and M objects.
        n_images (int): Number of images.
        limit (int): How many images at most.
        count_alarms (bool): Whether false alarms count; a keypoint that is wrong was missed, and
            would count twice. Defaults to True.

    Returns:
        tuple[list[Disagreement], ndarray]: The images, and which objects some of the runs found and
        some did not, shape (M,), bool.
    """
    found = np.stack([one.found > -np.inf for one in judged])
    differ = found.any(axis=0) & ~found.all(axis=0)
    objects = np.bincount(judged[0].object_images[differ], minlength=n_images)
    alarms = np.stack([one.false_alarms(n_images) for one in judged])
    alarms = np.ptp(alarms, axis=0) if count_alarms else np.zeros(n_images, int)
    order = np.argsort(-(objects + alarms), kind='stable')[:limit]
    return [Disagreement(int(i), int(objects[i]), int(alarms[i])) for i in order
            if objects[i] + alarms[i]], differ


def load_image(path: str) -> Optional[np.ndarray]:
    """An image as (H, W, 3) of uint8, RGB; None if it cannot be read."""
    try:
        return np.asarray(Image.open(io.BytesIO(get(path))).convert('RGB'))
    except Exception:
        return None


class Scene(NamedTuple):
    """What is drawn into an image.

    Attributes:
        predictions (Predictions): Those of a run.
        judged (Judged, optional): What of them is drawn; None draws the ground truth.
        index (int): Which of the predictions' images this is.
        stress (ndarray, optional): Objects to stress, shape (M,), bool: what is right or missed of
            the others is drawn thin. None stresses all.
    """
    predictions: Predictions
    judged: Optional[Judged]
    index: int  # type: ignore[assignment]  # not tuple.index, which nothing calls
    stress: Optional[np.ndarray] = None


def picture(image: np.ndarray, scene: Scene) -> Figure:
    """An image, (H, W, 3), and nothing around it."""
    figure, axes = canvas(image)
    draw_scene(axes, image, scene)
    return figure


def canvas(image: np.ndarray) -> Tuple[Figure, Axes]:
    """A figure in the shape of an image."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(WIDTH, WIDTH * height / width))
    return figure, figure.add_axes((0, 0, 1, 1))


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """An image and nothing on it."""
    height, width = image.shape[:2]
    axes.imshow(image, interpolation='bilinear')
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.axis('off')


def draw_scene(axes: Axes, image: np.ndarray, scene: Scene) -> None:
    """Draw an image, (H, W, 3) of uint8, with what was predicted in it."""
    draw_image(axes, image)
    draw = _draw_poses if scene.predictions.task == 'pose' else _draw_detections
    draw(axes, scene, Labels(image))


def counts(judged: Judged, index: int, task: str) -> str:
    """How many objects of an image were found, in words."""
    mine = judged.object_images == index
    right = int((judged.found[mine] > -np.inf).sum())
    if task == 'pose':
        return f'{right} of {mine.sum()} keypoints right'
    wrong = ((judged.images == index) & ~judged.hits).sum()
    return f'{right} of {mine.sum()} found, {wrong} false'


class Labels:
    """Puts labels beside boxes where they hide no other label, or leaves them out.

    Args:
        image (ndarray): What they are written on, (H, W, 3).
    """

    def __init__(self, image: np.ndarray) -> None:
        self.height, self.width = image.shape[:2]
        self.size = FONT_SIZE * self.width / (WIDTH * 72)  # of the font, in pixels of the image
        self.taken: List[Tuple[float, float, float, float]] = []

    def add(self, axes: Axes, box: np.ndarray, text: str, colour: str) -> None:
        """Write a text at one of the corners of a box (x1, y1, x2, y2)."""
        x1, y1, x2, y2 = (float(value) for value in box)
        width, height = (len(text) + 1) * LETTER * self.size, LINE * self.size
        for x, y in ((x1, y1 - height), (x1, y1), (x1, y2), (x2 - width, y1 - height),
                     (x2 - width, y2), (x1, y2 - height), (x2 - width, y1)):
            x = min(max(x, 0), self.width - width)
            area = x, y, x + width, y + height
            if y < 0 or area[3] > self.height or x < 0 or any(_meet(area, other)
                                                              for other in self.taken):
                continue
            self.taken.append(area)
            axes.add_patch(Rectangle((x, y), width, height, color=colour, alpha=0.85, lw=0,
                                     zorder=3))
            axes.text(x + LETTER * self.size / 2, y + height / 2, text, fontsize=FONT_SIZE,
                      color='black', va='center_baseline', clip_on=True, parse_math=False,
                      zorder=3.1)
            return


def _meet(a: Tuple[float, ...], b: Tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _rim(width: float) -> list:
    return [patheffects.Stroke(linewidth=width + 1.4, foreground='black', alpha=0.65),
            patheffects.Normal()]


def draw_box(axes: Axes, box: np.ndarray, style: dict, stressed: bool = True) -> None:
    """The outline of a box, x1, y1, x2, y2."""
    (x1, y1, x2, y2), width = box, 1.8 if stressed else 0.9
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, lw=width,
                             path_effects=_rim(width) if stressed else None, **style))


def _draw_detections(axes: Axes, scene: Scene, labels: Labels) -> None:
    predictions, judged, names = scene.predictions, scene.judged, scene.predictions.names
    if judged is None:
        for row in np.flatnonzero((predictions.gt_images == scene.index) &
                                  ~predictions.gt_ignored):
            draw_box(axes, predictions.gt_boxes[row], TRUTH)
            labels.add(axes, predictions.gt_boxes[row],
                       short(names[predictions.gt_labels[row]], 18), TRUTH['color'])
        return
    for i in np.flatnonzero(judged.object_images == scene.index):
        if judged.found[i] == -np.inf:
            draw_box(axes, predictions.gt_boxes[judged.object_rows[i]], MISSED,
                     _is_stressed(scene, i))
    mine = np.flatnonzero(judged.images == scene.index)
    mine = mine[np.argsort(judged.scores[mine], kind='stable')]  # the surest on top
    stressed = [not judged.hits[i] or _is_stressed(scene, judged.objects[i]) for i in mine]
    styles = [RIGHT if judged.hits[i] else WRONG for i in mine]
    for i, style, stress in zip(mine, styles, stressed):
        draw_box(axes, predictions.boxes[judged.rows[i]], style, stress)
    for i, style, stress in reversed(list(zip(mine, styles, stressed))):
        if stress:
            labels.add(axes, predictions.boxes[judged.rows[i]],
                       f'{short(names[judged.labels[i]], 18)} {judged.scores[i]:.2f}',
                       style['color'])


def _is_stressed(scene: Scene, i: int) -> bool:
    return scene.stress is None or bool(scene.stress[i])


def draw_skeleton(axes: Axes, predictions: Predictions, points: np.ndarray, person: int) -> None:
    """The links between the annotated keypoints of a body, drawn between points, (P, K, 2)."""
    visible = predictions.gt_visible[person]
    for a, b in predictions.links:
        if visible[a] and visible[b]:
            axes.plot(*points[person, [a, b]].T, color='#ffffff', lw=1.2, alpha=0.8,
                      path_effects=_rim(1.2))


def _draw_poses(axes: Axes, scene: Scene, labels: Labels) -> None:
    predictions, judged = scene.predictions, scene.judged
    points = predictions.gt_keypoints if judged is None else predictions.keypoints
    for person in np.flatnonzero(predictions.images == scene.index):
        draw_skeleton(axes, predictions, points, person)
        if judged is None:
            for point in points[person, predictions.gt_visible[person]]:
                draw_keypoint(axes, point, TRUTH, 'o')
    if judged is None:
        return
    for i in np.flatnonzero(judged.images == scene.index):
        person, k = divmod(judged.rows[i], len(predictions.names))
        point, stressed = points[person, k], _is_stressed(scene, i)
        draw_keypoint(axes, point, RIGHT if judged.hits[i] else WRONG,
                      'o' if judged.hits[i] else 'X', stressed)
        if not judged.hits[i]:
            draw_way(axes, point, predictions.gt_keypoints[person, k])


def draw_way(axes: Axes, point: np.ndarray, goal: np.ndarray) -> None:
    """A dotted line from a keypoint to where it should be."""
    axes.plot(*np.stack([point, goal]).T, lw=1.3, **MISSED)


def draw_keypoint(axes: Axes, point: np.ndarray, style: dict, marker: str,
                  stressed: bool = True) -> None:
    """A marker at x, y."""
    axes.plot(*point, marker=marker, color=style['color'], markersize=7 if stressed else 4,
              markeredgecolor='black', markeredgewidth=0.7)


def montage(rows: Sequence[Tuple[np.ndarray, Sequence[Tuple[str, Scene]]]]) -> Figure:
    """Several views of each image side by side, with titles.

    Args:
        rows (sequence[tuple]): Images, (H, W, 3), and the (title, scene) to draw of each; as many
            of each image.
    """
    columns = len(rows[0][1])
    heights = [WIDTH * image.shape[0] / image.shape[1] + 0.3 for image, _ in rows]
    figure = Figure(figsize=(WIDTH * columns, sum(heights)), dpi=140, layout='constrained',
                    facecolor='white')
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, (image, scenes) in zip(axes, rows):
        for axis, (title, scene) in zip(row, scenes):
            draw_scene(axis, image, scene)
            axis.set_title(short(title, 40), fontsize=10, parse_math=False)
    return figure
