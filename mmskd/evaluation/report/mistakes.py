"""The mistakes of which a run is surest, with what they are and where."""
from typing import Any, Callable, List, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ..matching import Detections, Objects, overlaps
from . import pictures
from .charts.chart import short
from .judging import Judged
from .poses import other_keypoints, reference_sizes
from .predictions import Predictions
from .rules import Rule

NEAR = 0.1  # IoU from which on a wrong box is badly placed, and not in a place of its own
AROUND = 1.5  # how far around a mistake its picture reaches, in sizes of the box or body


class Mistake(NamedTuple):
    """A wrong prediction.

    Attributes:
        image (int): Index into the predictions' image_ids.
        row (int): Which of the predictions' this is, see :class:`~.judging.Judged`.
        score (float): How sure the model was.
        what (str): What was predicted.
        why (str): Why it is wrong, in a few words.
        objects (list[int]): The predictions' objects that it has to do with; of poses, empty.
    """
    image: int
    row: int
    score: float
    what: str
    why: str
    objects: List[int]


def surest_mistakes(predictions: Predictions, judged: Judged, rule: Rule,
                    limit: int) -> List[Mistake]:
    """The wrong predictions with the highest scores, the surest first.

    Args:
        predictions (Predictions): Those of a run.
        judged (Judged): The same, judged.
        rule (Rule): By which they were judged.
        limit (int): How many at most.
    """
    wrong = np.flatnonzero(~judged.hits)
    wrong = wrong[np.argsort(-judged.scores[wrong], kind='stable')[:limit]]
    explain: Callable = _explain_keypoint if predictions.task == 'pose' else _explain_box
    return [explain(predictions, judged, rule, i) for i in wrong]


def _explain_box(predictions: Predictions, judged: Judged, rule: Rule, i: int) -> Mistake:
    row, label, image = judged.rows[i], judged.labels[i], judged.images[i]
    there = np.flatnonzero((predictions.gt_images == image) & ~predictions.gt_ignored)
    objects = predictions.objects.select(there)
    alone = predictions.detections.select([row])
    ious = _ious(alone, objects)
    mine = objects.labels == label
    others = np.where(mine, 0, ious)
    same = np.where(mine, ious, 0)
    best, best_same = int(np.argmax(others)) if len(there) else -1, same.max(initial=0)
    why, about = 'there is nothing', []
    if best_same >= rule.iou_thr:
        about = [int(there[np.argmax(same)])]
        why = f'a second box on the same object (IoU {best_same:.2f})'
    elif len(there) and others[best] >= rule.iou_thr:
        about = [int(there[best])]
        why = (f'it is {predictions.names[objects.labels[best]]} (IoU {others[best]:.2f})')
    elif best_same >= NEAR:
        about = [int(there[np.argmax(same)])]
        why = f'badly placed (IoU {best_same:.2f})'
    return Mistake(int(image), int(row), float(judged.scores[i]), predictions.names[label], why,
                   about)


def _ious(alone: Detections, objects: Objects) -> np.ndarray:
    """IoU of one detection with each object of its image."""
    found = overlaps(alone, objects, across_classes=True)
    ious = np.zeros(len(objects.labels))
    ious[found.objects] = found.ious
    return ious


def _explain_keypoint(predictions: Predictions, judged: Judged, rule: Any,
                      i: int) -> Mistake:
    person, k = divmod(int(judged.rows[i]), len(predictions.names))
    size = float(reference_sizes(predictions, rule)[person])
    other = other_keypoints(predictions, rule, person, size)[k]
    if other < len(predictions.names):
        why = f'it is on {predictions.names[other]}'
    else:
        away = np.linalg.norm(predictions.keypoints[person, k] -
                              predictions.gt_keypoints[person, k])
        why = f'{away:.0f} pixels away'
    return Mistake(int(judged.images[i]), int(judged.rows[i]), float(judged.scores[i]),
                   predictions.names[k], why, [])


def picture_of(predictions: Predictions, mistake: Mistake, image: np.ndarray) -> Figure:
    """A mistake and what is around it.

    Args:
        predictions (Predictions): Those of the run.
        mistake (Mistake): One of :func:`surest_mistakes`.
        image (ndarray): The whole image, (H, W, 3) of uint8.
    """
    draw = _draw_keypoint if predictions.task == 'pose' else _draw_box
    return draw(predictions, mistake, image)


def _draw_box(predictions: Predictions, mistake: Mistake, image: np.ndarray) -> Figure:
    box = predictions.boxes[mistake.row].astype(float)
    about = predictions.gt_boxes[mistake.objects].astype(float)
    boxes = np.concatenate([box[None], about])
    part, corner = _around(image, np.append(boxes[:, :2].min(0), boxes[:, 2:].max(0)))
    figure, axes = pictures.canvas(part)
    pictures.draw_image(axes, part)
    labels = pictures.Labels(part)
    shift = np.tile(corner, 2)
    pictures.draw_box(axes, box - shift, pictures.WRONG)
    labels.add(axes, box - shift, f'{short(mistake.what, 18)} {mistake.score:.2f}',
               str(pictures.WRONG['color']))
    for row in mistake.objects:
        pictures.draw_box(axes, predictions.gt_boxes[row] - shift, pictures.TRUTH)
        labels.add(axes, predictions.gt_boxes[row] - shift,
                   short(predictions.names[predictions.gt_labels[row]], 18),
                   pictures.TRUTH['color'])
    return figure


def _draw_keypoint(predictions: Predictions, mistake: Mistake, image: np.ndarray) -> Figure:
    person, k = divmod(mistake.row, len(predictions.names))
    point, goal = predictions.keypoints[person, k], predictions.gt_keypoints[person, k]
    box = predictions.gt_boxes[person]
    low, high = np.minimum(box[:2], np.minimum(point, goal)), np.maximum(
        box[2:], np.maximum(point, goal))
    part, corner = _around(image, np.append(low, high), 0.15)
    figure, axes = pictures.canvas(part)
    pictures.draw_image(axes, part)
    pictures.draw_skeleton(axes, predictions, predictions.gt_keypoints - corner, person)
    pictures.draw_way(axes, point - corner, goal - corner)
    pictures.draw_keypoint(axes, goal - corner, pictures.TRUTH, 'o', False)
    pictures.draw_keypoint(axes, point - corner, pictures.WRONG, 'X')
    return figure


def _around(image: np.ndarray, box: np.ndarray, reach: float = AROUND):
    """The part of an image around a box, and its upper left corner."""
    height, width = image.shape[:2]
    centre = np.clip((box[:2] + box[2:]) / 2, 0, (width, height))
    half = np.maximum((0.5 + reach) * (box[2:] - box[:2]).max(), 24)
    low = np.clip(np.floor(centre - half), 0, (width - 1, height - 1)).astype(int)
    high = np.clip(np.ceil(centre + half), low + 1, (width, height)).astype(int)
    return image[low[1]:high[1], low[0]:high[0]], low
