"""Images with what was predicted in them, right, wrong and missed."""
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.fileio import get
from PIL import Image

from .judging import Judged, by_image
from .predictions import Predictions

# Okabe-Ito, with dashes that say the same; a dark rim makes them visible on any image
RIGHT, WRONG, MISSED, TRUTH = (dict(color='#56b4e9', ls='-'), dict(color='#e69f00', ls=(0, (4, 2))),
                               dict(color='#f0e442', ls=(0, (1, 1.5))), dict(color='#ffffff',
                                                                            ls='-'))
WIDTH = 480  # of a drawn image, in pixels


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
                  count_alarms: bool = True) -> List[Disagreement]:
    """The images on which the runs disagree most, the worst first.

    Args:
        judged (sequence[Judged]): One for each run, of the same images and objects.
        n_images (int): Number of images.
        score_thr (float): Predictions below it are not looked at.
        limit (int): How many images at most.
        count_alarms (bool): Whether false alarms count; a keypoint that is wrong was missed, and
            would count twice. Defaults to True.
    """
    found = np.stack([one.found > 0 if not count_alarms else one.found >= score_thr
                      for one in judged])
    differ = found.any(axis=0) & ~found.all(axis=0)
    objects = np.bincount(judged[0].object_images[differ], minlength=n_images)
    alarms = np.stack([one.false_alarms(score_thr, n_images) for one in judged])
    alarms = np.ptp(alarms, axis=0) if count_alarms else np.zeros(n_images, int)
    order = np.argsort(-(objects + alarms), kind='stable')[:limit]
    return [Disagreement(int(i), int(objects[i]), int(alarms[i])) for i in order
            if objects[i] + alarms[i]]


def load_image(path: str) -> Optional[np.ndarray]:
    """An image as (H, W, 3) of uint8, RGB; None if it cannot be read."""
    import io
    try:
        return np.asarray(Image.open(io.BytesIO(get(path))).convert('RGB'))
    except Exception:
        return None


def picture(image: np.ndarray, predictions: Predictions, judged: Optional[Judged], index: int,
            score_thr: float) -> Figure:
    """One image with the predictions of one run, or with the ground truth.

    Args:
        image (ndarray): Pixels, (H, W, 3).
        predictions (Predictions): Those of the run.
        judged (Judged, optional): The same, judged; None draws the ground truth.
        index (int): Which of the predictions' images this is.
        score_thr (float): Predictions below it are not drawn.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(WIDTH / 100, WIDTH / 100 * height / width), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_scene(axes, image, predictions, judged, index, score_thr)
    return figure


def draw_scene(axes: Axes, image: np.ndarray, predictions: Predictions, judged: Optional[Judged],
               index: int, score_thr: float) -> None:
    """As :func:`picture`, on given axes."""
    height, width = image.shape[:2]
    axes.imshow(image, interpolation='bilinear')
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.axis('off')
    draw = _draw_poses if predictions.task == 'pose' else _draw_detections
    draw(axes, predictions, judged, index, score_thr)


def counts(judged: Judged, index: int, score_thr: float, task: str) -> str:
    """How many objects of an image were found, in words."""
    mine = judged.object_images == index
    if task == 'pose':
        return f'{int((judged.found[mine] > 0).sum())} of {mine.sum()} keypoints right'
    wrong = ((judged.images == index) & ~judged.hits & (judged.scores >= score_thr)).sum()
    return f'{int((judged.found[mine] >= score_thr).sum())} of {mine.sum()} found, {wrong} false'


def _rim(width: float) -> list:
    return [patheffects.Stroke(linewidth=width + 1.4, foreground='black', alpha=0.65),
            patheffects.Normal()]


def _box(axes: Axes, box: np.ndarray, style: dict, width: float = 1.5) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, lw=width, path_effects=_rim(
        width), **style))


def _label(axes: Axes, box: np.ndarray, text: str, colour: str) -> None:
    axes.text(box[0], box[1], text, fontsize=6.5, color='black', va='top', clip_on=True,
              bbox=dict(facecolor=colour, edgecolor='none', pad=0.6, alpha=0.85))


def _draw_detections(axes: Axes, predictions: Predictions, judged: Optional[Judged], index: int,
                     score_thr: float) -> None:
    real = np.flatnonzero((predictions.gt_images == index) & ~predictions.gt_ignored)
    if judged is None:
        for row in real:
            _box(axes, predictions.gt_boxes[row], TRUTH)
            _label(axes, predictions.gt_boxes[row],
                   predictions.names[predictions.gt_labels[row]], TRUTH['color'])
        return
    missed = judged.found[judged.object_images == index] < score_thr
    for row in real[missed]:
        _box(axes, predictions.gt_boxes[row], MISSED, 2)
    mine = np.flatnonzero((judged.images == index) & (judged.scores >= score_thr))
    for i in mine[np.argsort(judged.scores[mine], kind='stable')]:  # the surest on top
        style = RIGHT if judged.hits[i] else WRONG
        box = predictions.boxes[judged.rows[i]]
        _box(axes, box, style)
        name = predictions.names[judged.labels[i]]
        _label(axes, box, f'{name} {judged.scores[i]:.2f}', style['color'])


def _draw_poses(axes: Axes, predictions: Predictions, judged: Optional[Judged], index: int,
                score_thr: float) -> None:
    points = predictions.gt_keypoints if judged is None else predictions.keypoints
    n_keypoints = len(predictions.names)
    hits = np.zeros(predictions.gt_visible.size, bool)
    if judged is not None:
        hits[judged.rows] = judged.hits
    for person in np.flatnonzero(predictions.images == index):
        visible = predictions.gt_visible[person]
        for a, b in predictions.links:
            if visible[a] and visible[b]:
                axes.plot(*points[person, [a, b]].T, color='#ffffff', lw=1.2, alpha=0.8,
                          path_effects=_rim(1.2))
        for k in np.flatnonzero(visible):
            hit = hits[person * n_keypoints + k]
            style = TRUTH if judged is None else RIGHT if hit else WRONG
            axes.plot(*points[person, k], marker='o' if judged is None or hit else 'X',
                      color=style['color'], markersize=5.5, markeredgecolor='black',
                      markeredgewidth=0.7)
            if judged is not None and not hit:  # where it should be
                axes.plot(*np.stack([points[person, k], predictions.gt_keypoints[person, k]]).T,
                          color=MISSED['color'], ls=MISSED['ls'], lw=1.3)


def montage(image: np.ndarray, columns: Sequence[Tuple[str, Predictions, Optional[Judged]]],
            index: int, score_thr: float) -> Figure:
    """The ground truth and all runs side by side, with titles."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(3.6 * len(columns), 3.6 * height / width + 0.3), dpi=140,
                    layout='constrained', facecolor='white')
    for axes, (title, predictions, judged) in zip(
            np.atleast_1d(figure.subplots(1, len(columns))), columns):
        draw_scene(axes, image, predictions, judged, index, score_thr)
        axes.set_title(title, fontsize=10)
    return figure
