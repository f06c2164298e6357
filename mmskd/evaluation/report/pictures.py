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

from .judging import Judged
from .predictions import Predictions

# Okabe-Ito, with dashes that say the same; a dark rim makes them visible on any image
RIGHT, WRONG, MISSED, TRUTH = (dict(color='#56b4e9', ls='-'), dict(color='#e69f00', ls=(0, (4, 2))),
                               dict(color='#f0e442', ls=(0, (1, 1.5))), dict(color='#ffffff',
                                                                            ls='-'))
WIDTH = 3.6  # of a drawn image, in inches


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


def disagreements(judged: Sequence[Judged], n_images: int, score_thr: float, limit: int,
                  count_alarms: bool = True) -> Tuple[List[Disagreement], np.ndarray]:
    """The images on which the runs disagree most, the worst first.

    Args:
        judged (sequence[Judged]): One for each run, of the same images and M objects.
        n_images (int): Number of images.
        score_thr (float): Predictions below it are not looked at.
        limit (int): How many images at most.
        count_alarms (bool): Whether false alarms count; a keypoint that is wrong was missed, and
            would count twice. Defaults to True.

    Returns:
        tuple[list[Disagreement], ndarray]: The images, and which objects some of the runs found and
        some did not, shape (M,), bool.
    """
    found = np.stack([one.found >= score_thr for one in judged])
    differ = found.any(axis=0) & ~found.all(axis=0)
    objects = np.bincount(judged[0].object_images[differ], minlength=n_images)
    alarms = np.stack([one.false_alarms(score_thr, n_images) for one in judged])
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
        judged (Judged, optional): The same, judged; None draws the ground truth.
        index (int): Which of the predictions' images this is.
        score_thr (float): Predictions below it are not drawn.
        stress (ndarray, optional): Objects to stress, shape (M,), bool: what is right or missed of
            the others is drawn thin. None stresses all.
    """
    predictions: Predictions
    judged: Optional[Judged]
    index: int
    score_thr: float
    stress: Optional[np.ndarray] = None


def picture(image: np.ndarray, scene: Scene) -> Figure:
    """An image, (H, W, 3), and nothing around it."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(WIDTH, WIDTH * height / width))
    draw_scene(figure.add_axes((0, 0, 1, 1)), image, scene)
    return figure


def draw_scene(axes: Axes, image: np.ndarray, scene: Scene) -> None:
    """Draw an image, (H, W, 3) of uint8, with what was predicted in it."""
    height, width = image.shape[:2]
    axes.imshow(image, interpolation='bilinear')
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.axis('off')
    draw = _draw_poses if scene.predictions.task == 'pose' else _draw_detections
    draw(axes, scene)


def counts(judged: Judged, index: int, score_thr: float, task: str) -> str:
    """How many objects of an image were found, in words."""
    mine = judged.object_images == index
    if task == 'pose':
        return f'{int((judged.found[mine] >= 0).sum())} of {mine.sum()} keypoints right'
    wrong = ((judged.images == index) & ~judged.hits & (judged.scores >= score_thr)).sum()
    return f'{int((judged.found[mine] >= score_thr).sum())} of {mine.sum()} found, {wrong} false'


def _rim(width: float) -> list:
    return [patheffects.Stroke(linewidth=width + 1.4, foreground='black', alpha=0.65),
            patheffects.Normal()]


def _box(axes: Axes, box: np.ndarray, style: dict, stressed: bool = True, text: str = '') -> None:
    (x1, y1, x2, y2), width = box, 1.8 if stressed else 0.9
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, lw=width,
                             path_effects=_rim(width) if stressed else None, **style))
    if text:
        axes.text(x1, y1, text, fontsize=6.5, color='black', va='top', clip_on=True,
                  parse_math=False,
                  bbox=dict(facecolor=style['color'], edgecolor='none', pad=0.6, alpha=0.85))


def _draw_detections(axes: Axes, scene: Scene) -> None:
    predictions, judged, names = scene.predictions, scene.judged, scene.predictions.names
    real = np.flatnonzero((predictions.gt_images == scene.index) & ~predictions.gt_ignored)
    if judged is None:
        for row in real:
            _box(axes, predictions.gt_boxes[row], TRUTH, text=names[predictions.gt_labels[row]])
        return
    objects = np.flatnonzero(judged.object_images == scene.index)  # in the order of `real`
    for row, i in zip(real, objects):
        if judged.found[i] < scene.score_thr:
            _box(axes, predictions.gt_boxes[row], MISSED, _is_stressed(scene, i))
    mine = np.flatnonzero((judged.images == scene.index) & (judged.scores >= scene.score_thr))
    for i in mine[np.argsort(judged.scores[mine], kind='stable')]:  # the surest on top
        stressed = not judged.hits[i] or _is_stressed(scene, judged.objects[i])
        text = f'{names[judged.labels[i]]} {judged.scores[i]:.2f}' if stressed else ''
        _box(axes, predictions.boxes[judged.rows[i]], RIGHT if judged.hits[i] else WRONG, stressed,
             text)


def _is_stressed(scene: Scene, i: int) -> bool:
    return scene.stress is None or bool(scene.stress[i])


def _draw_poses(axes: Axes, scene: Scene) -> None:
    predictions, judged = scene.predictions, scene.judged
    points = predictions.gt_keypoints if judged is None else predictions.keypoints
    for person in np.flatnonzero(predictions.images == scene.index):
        visible = predictions.gt_visible[person]
        for a, b in predictions.links:
            if visible[a] and visible[b]:
                axes.plot(*points[person, [a, b]].T, color='#ffffff', lw=1.2, alpha=0.8,
                          path_effects=_rim(1.2))
        if judged is None:
            for point in points[person, visible]:
                _keypoint(axes, point, TRUTH, 'o')
    if judged is None:
        return
    for i in np.flatnonzero(judged.images == scene.index):
        person, k = divmod(judged.rows[i], len(predictions.names))
        point, stressed = points[person, k], _is_stressed(scene, i)
        _keypoint(axes, point, RIGHT if judged.hits[i] else WRONG, 'o' if judged.hits[i] else 'X',
                  stressed)
        if not judged.hits[i]:  # where it should be
            axes.plot(*np.stack([point, predictions.gt_keypoints[person, k]]).T, lw=1.3, **MISSED)


def _keypoint(axes: Axes, point: np.ndarray, style: dict, marker: str,
              stressed: bool = True) -> None:
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
            axis.set_title(title, fontsize=10, parse_math=False)
    return figure
