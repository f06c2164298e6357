"""Says of predictions which are right, in one form for detections and keypoints."""
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from .predictions import Predictions
from .rules import Rule


class Judged(NamedTuple):
    """Predictions that count, and the objects that they should have found.

    N predictions, M objects (for poses: visible keypoints, as many as predictions).

    Attributes:
        names (list[str]): Classes or keypoints.
        scores (ndarray): As the model gives them, shape (N,), float64. Keypoints may score above 1.
        hits (ndarray): Whether right, shape (N,), bool.
        labels (ndarray): Index into names, shape (N,).
        images (ndarray): Index into the predictions' image_ids, shape (N,).
        rows (ndarray): Which of the predictions' this is, shape (N,); of poses, the position in the
            flattened (P, K).
        objects (ndarray): Index of the object that was found, -1 for none, shape (N,).
        found (ndarray): Score of the prediction that found the object, -inf if none did, (M,).
        object_labels (ndarray): As ``labels``, shape (M,).
        object_images (ndarray): As ``images``, shape (M,).
        object_rows (ndarray): Which of the predictions' objects this is, shape (M,); of poses as
            ``rows``.
    """
    names: List[str]
    scores: np.ndarray
    hits: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    objects: np.ndarray
    found: np.ndarray
    object_labels: np.ndarray
    object_images: np.ndarray
    object_rows: np.ndarray

    def above(self, score_thr: float) -> 'Judged':
        """Only the predictions with at least this score; what scores less found nothing."""
        keep = self.scores >= score_thr
        return self._replace(
            **{key: getattr(self, key)[keep] for key in
               ('scores', 'hits', 'labels', 'images', 'rows', 'objects')},
            found=np.where(self.found >= score_thr, self.found, -np.inf))

    @property
    def probabilities(self) -> np.ndarray:
        """ndarray: The scores, clipped to [0, 1]; shape (N,)."""
        return np.clip(self.scores, 0, 1)

    @property
    def clipped(self) -> float:
        """float: Share of the scores that are outside [0, 1]."""
        return float(np.mean(self.scores != self.probabilities)) if len(self.scores) else 0.

    def false_alarms(self, n_images: int) -> np.ndarray:
        """Number of wrong predictions in each image, (n_images,)."""
        return np.bincount(self.images[~self.hits], minlength=n_images)


class Verdicts(NamedTuple):
    """All that a report says of one run's predictions.

    Attributes:
        judged (Judged): Every prediction that counts.
        measured (Judged): Those of them that the calibration error of the table is of.
        threshold (float): The score with the best F1, below which pictures show nothing.
        values (dict[str, float]): Every measure by its name, nan where undefined.
        by_name (dict[str, ndarray]): Measures of each class or keypoint, shape (len(names),) each.
        confusion (ndarray): What objects are taken for, see :func:`.charts.confusion.confusion`.
        by_size (dict[str, tuple]): Of detections, for each size of objects that there is, scores
            (N,), hits (N,) and calibration error of what is measured.
        intervals (dict[str, tuple[float, float]]): Of some measures, how far they would reach with
            other images; empty where that was not asked for.
    """
    judged: Judged
    measured: Judged
    threshold: float
    values: Dict[str, float]
    by_name: Dict[str, np.ndarray]
    confusion: np.ndarray
    by_size: Dict[str, tuple]
    intervals: Dict[str, Tuple[float, float]]


def judge(predictions: Predictions, rule: Rule) -> Judged:
    """Judge the predictions of a detector or a pose estimator.

    Args:
        predictions (Predictions): What to judge.
        rule (DetectionRule or PoseRule): When a prediction is right.

    Raises:
        UsageError: If the data has not what the rule needs.
    """
    return _module(predictions).judge(predictions, rule)


def verdicts(predictions: Predictions, rule: Rule, others: Optional[Predictions] = None,
             draws: int = 0) -> Verdicts:
    """All measures of the predictions.

    Args:
        predictions (Predictions): What to judge.
        rule (DetectionRule or PoseRule): When a prediction is right.
        others (Predictions, optional): The same detector's on other images, to find the score
            thresholds of the classes on. Defaults to None: they are found on the same images.
        draws (int): How often images are drawn for the intervals. Defaults to 0, no intervals.
    """
    return _module(predictions).verdicts(predictions, rule, others, draws)


def _module(predictions: Predictions):
    from . import detections, poses
    return poses if predictions.task == 'pose' else detections


def best_threshold(judged: Judged) -> float:
    """The score threshold with the highest F1 over all classes together; the highest of equal ones.

    Args:
        judged (Judged): Predictions.
    """
    order = np.argsort(-judged.scores, kind='stable')
    if not len(order):
        return 0.
    last = np.append(np.diff(judged.scores[order]) != 0, True)  # equal scores stay together
    right = np.cumsum(judged.hits[order])[last]
    f1 = 2 * right / (np.flatnonzero(last) + 1 + len(judged.found))
    return float(judged.scores[order][last][np.argmax(f1)])

