"""Says of predictions which are right, in one form for detections and keypoints."""
import contextlib
import io
from typing import Dict, List, NamedTuple

import numpy as np
from mmengine.config import Config

from mmskd.optional import HAS_MMDET

from ..calibration import aurc, brier, eaurc, ece, nll
from .predictions import Predictions

if HAS_MMDET:  # pycocotools comes with it
    from pycocotools.cocoeval import COCOeval

    from ..matching import assign_detections, coco_from_annotations
    from ..metrics.det_calibration import (DetCalibrationMetric, _coco_from_instances,
                                           _to_coco)


class Rule(NamedTuple):
    """When a prediction is right, and which count.

    Attributes:
        iou_thr (float): IoU from which on a detection hits. Defaults to 0.5.
        score_thr (float): Detections below it do not count. Defaults to 0.05.
        max_dets (int): Detections per image and class. Defaults to 100.
        pck_thr (float): A keypoint hits below this distance, as a share of the longer side of the
            annotated box. Defaults to 0.05.
        n_bins (int): Score bins of the calibration error. Defaults to 25.
    """
    iou_thr: float = 0.5
    score_thr: float = 0.05
    max_dets: int = 100
    pck_thr: float = 0.05
    n_bins: int = 25

    @classmethod
    def of(cls, cfg: Config, split: str = 'val') -> 'Rule':
        """As the evaluators of a config have it: DetCalibrationMetric; PoseCalibrationMetric and
        PCKAccuracy, if they measure distances by the box. Else the defaults."""
        evaluators = cfg.get(f'{split}_evaluator') or []
        if isinstance(evaluators, dict):
            evaluators = evaluators.get('metrics', evaluators)
        values = {}
        for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
            kind = metric.get('type', '')
            kind = kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
            if kind in ('DetCalibrationMetric', 'PoseCalibrationMetric'):
                values.update({key: metric[key] for key in cls._fields if key in metric})
            if kind in ('PoseCalibrationMetric', 'PCKAccuracy') and metric.get('thr') and \
                    metric.get('hit', 'pck') == 'pck' and \
                    metric.get('norm_item', 'bbox') in ('bbox', ['bbox']):
                values['pck_thr'] = metric['thr']
        return cls(**values)


class Judged(NamedTuple):
    """Predictions that count, and the objects that they should have found.

    N predictions, M objects (for poses: visible keypoints, as many as predictions).

    Attributes:
        names (list[str]): Classes or keypoints.
        scores (ndarray): In [0, 1], shape (N,).
        hits (ndarray): Whether right, shape (N,), bool.
        labels (ndarray): Index into names, shape (N,).
        images (ndarray): Index into the predictions' image_ids, shape (N,).
        rows (ndarray): Which of the predictions' this is, shape (N,); of poses, the position in the
            flattened (P, K).
        objects (ndarray): Index of the object that was found, -1 for none, shape (N,).
        found (ndarray): Score of the prediction that found the object, -1 if none did, shape (M,).
        object_images (ndarray): As ``images``, shape (M,).
    """
    names: List[str]
    scores: np.ndarray
    hits: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    objects: np.ndarray
    found: np.ndarray
    object_images: np.ndarray

    def false_alarms(self, score_thr: float, n_images: int) -> np.ndarray:
        """Number of wrong predictions with at least this score in each image, (n_images,)."""
        wrong = ~self.hits & (self.scores >= score_thr)
        return np.bincount(self.images[wrong], minlength=n_images)


def judge(predictions: Predictions, rule: Rule = Rule()) -> Judged:
    """Judge the predictions of a detector or a pose estimator.

    Args:
        predictions (Predictions): What to judge.
        rule (Rule): When a prediction is right. Defaults to the defaults of :class:`Rule`.
    """
    return (_judge_poses if predictions.task == 'pose' else _judge_detections)(predictions, rule)


def calibration_metrics(predictions: Predictions, judged: Judged,
                        rule: Rule = Rule()) -> Dict[str, float]:
    """What ``DetCalibrationMetric`` reports; of poses, those of its values that they have."""
    if predictions.task == 'pose':
        scores, hits = judged.scores, judged.hits
        values = dict(NLL=nll(scores, hits), ECE=ece(scores, hits, rule.n_bins),
                      Brier=brier(scores, hits), AURC=aurc(scores, hits),
                      EAURC=eaurc(scores, hits))
    else:
        metric = DetCalibrationMetric(iou_thr=rule.iou_thr, score_thr=rule.score_thr,
                                      n_bins=rule.n_bins, max_dets=rule.max_dets)
        metric.dataset_meta = dict(classes=predictions.names)
        values = metric.compute_metrics(_metric_results(predictions))
    return {f'calibration/{key}': value for key, value in values.items()}


def metrics_by_name(predictions: Predictions, judged: Judged,
                    rule: Rule = Rule()) -> Dict[str, np.ndarray]:
    """Quality (``'AP'`` of detections, ``'PCK'`` of keypoints) and ``'ECE'`` of each class or
    keypoint, shape (len(names),) each; nan where undefined."""
    apart = [(judged.scores[judged.labels == i], judged.hits[judged.labels == i])
             for i in range(len(judged.names))]
    if predictions.task == 'pose':
        quality = dict(PCK=np.array([hits.mean() if len(hits) else np.nan for _, hits in apart]))
    else:
        quality = dict(AP=_average_precision(predictions, rule.max_dets))
    return dict(quality, ECE=np.array([ece(*one, rule.n_bins) for one in apart]))


def _judge_detections(predictions: Predictions, rule: Rule) -> Judged:
    results = _metric_results(predictions)
    coco = _coco_from_instances(results, predictions.names)
    detections = _to_coco(results, coco.getCatIds())
    assigned = assign_detections(coco, detections, list(coco.imgs), coco.getCatIds(), rule.iou_thr,
                                 rule.max_dets)
    order = np.argsort(predictions.images, kind='stable')  # the order of `detections`
    scores = predictions.scores[order].astype(np.float64)
    hits = assigned.counts & (assigned.objects >= 0)
    real = np.argsort(predictions.gt_images, kind='stable')  # annotations' order, numbered from 1
    counted = ~predictions.gt_ignored[real]
    position = np.append(-1, np.where(counted, np.cumsum(counted) - 1, -1))
    objects = np.where(hits, position[np.where(hits, assigned.objects, 0)], -1)
    found = np.full(counted.sum(), -1.)
    found[objects[hits]] = scores[hits]
    keep = assigned.counts & (scores >= rule.score_thr)
    return Judged(
        predictions.names, scores[keep], hits[keep], predictions.labels[order][keep],
        predictions.images[order][keep], order[keep], objects[keep], found,
        predictions.gt_images[real][counted])


def _metric_results(predictions: Predictions) -> List[dict]:
    """What ``DetCalibrationMetric.process`` keeps, image by image."""
    results = []
    ids = predictions.image_ids.tolist()
    rows = by_image(predictions.images, len(ids)), by_image(predictions.gt_images, len(ids))
    for image_id, mine, real in zip(ids, *rows):
        objects = zip(predictions.gt_boxes[real].tolist(), predictions.gt_labels[real].tolist(),
                      predictions.gt_ignored[real].tolist())
        results.append(dict(
            img_id=image_id, bboxes=predictions.boxes[mine], scores=predictions.scores[mine],
            labels=predictions.labels[mine],
            instances=[dict(bbox=box, label=label, ignore=int(ignored))
                       for box, label, ignored in objects]))
    return results


def by_image(images: np.ndarray, n_images: int) -> List[np.ndarray]:
    """Positions of each image's entries in an array of image indices."""
    order = np.argsort(images, kind='stable')
    return np.split(order, np.searchsorted(images[order], np.arange(1, n_images)))


def _average_precision(predictions: Predictions, max_dets: int) -> np.ndarray:
    """COCO's AP (mean over IoU 0.5 to 0.95) of each class, nan for a class without objects."""
    results = _metric_results(predictions)
    coco = _coco_from_instances(results, predictions.names)
    detections = [dict(det, id=i, area=det['bbox'][2] * det['bbox'][3], iscrowd=0) for i, det in
                  enumerate(_to_coco(results, coco.getCatIds()), 1)]
    evaluation = COCOeval(coco, coco_from_annotations(
        coco.dataset['images'], detections, coco.dataset['categories']), 'bbox')
    evaluation.params.maxDets = [max_dets]
    evaluation.params.areaRng = evaluation.params.areaRng[:1]
    evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0, 0]  # (IoU, recall, class); -1: no objects
    precision = np.where(precision < 0, np.nan, precision)
    return precision.mean(axis=(0, 1))


def _judge_poses(predictions: Predictions, rule: Rule) -> Judged:
    boxes = predictions.gt_boxes.astype(np.float64)
    size = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    distance = np.linalg.norm(
        predictions.keypoints.astype(np.float64) - predictions.gt_keypoints, axis=-1)
    with np.errstate(divide='ignore', invalid='ignore'):
        hits = distance / size[:, None] < rule.pck_thr
    # A box without extent says nothing about what is near, as in mmpose's PCK
    counts = predictions.gt_visible & (size > 0)[:, None]
    scores = np.clip(predictions.scores.astype(np.float64), 0, 1)
    images = np.broadcast_to(predictions.images[:, None], counts.shape)
    scores, hits, images = scores[counts], hits[counts], images[counts]
    return Judged(
        predictions.names, scores, hits, np.nonzero(counts)[1], images, np.flatnonzero(counts),
        np.where(hits, np.arange(len(hits)), -1), np.where(hits, 1., -1.), images)
