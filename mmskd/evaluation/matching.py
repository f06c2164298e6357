"""Which detections hit an object, decided once and by pycocotools' rules."""
import contextlib
import io
from typing import List, NamedTuple, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class Matches(NamedTuple):
    """The detections of one class that count, and the number of objects they could have found.

    A detection on a crowd or an ignored object is neither right nor wrong and is left out.

    Attributes:
        scores (ndarray): Scores, shape (N,), float64.
        hits (ndarray): Whether matched to an object, shape (N,), bool.
        ious (ndarray): IoU with that object, 0 for a miss, shape (N,), float64.
        n_objects (int): Objects of the class, without crowds and ignored ones.
    """
    scores: np.ndarray
    hits: np.ndarray
    ious: np.ndarray
    n_objects: int

    def above(self, score_thr: float) -> 'Matches':
        """The matches of the detections with a score of at least ``score_thr``.

        The same as matching only those: objects are given to detections from the highest score
        down, so a detection cannot take anything from one that scores higher.
        """
        keep = self.scores >= score_thr
        return Matches(self.scores[keep], self.hits[keep], self.ious[keep], self.n_objects)


class Assignment(NamedTuple):
    """What became of each of N detections, in the order in which they were given.

    Attributes:
        counts (ndarray): False where a detection is neither right nor wrong: on a crowd or an
            ignored object, or beyond the number of detections to look at; shape (N,), bool.
        objects (ndarray): Id of the annotation that it took, -1 for none; shape (N,), int64.
    """
    counts: np.ndarray
    objects: np.ndarray


def match_detections(coco_gt: COCO,
                     detections: Sequence[dict],
                     img_ids: Sequence,
                     cat_ids: Sequence,
                     iou_thr: float = 0.5,
                     max_dets: int = 100) -> List[Matches]:
    """Match detections to objects, class by class, with ``COCOeval.evaluateImg``.

    Per image, detections choose from the highest score down; each takes the free object of its
    class with the highest IoU, if that is at least ``iou_thr``. Unlike COCOeval, which overwrites
    the ``ignore`` flag of an annotation by its ``iscrowd`` flag, this honours both.

    Args:
        coco_gt (COCO): Ground truth.
        detections (Sequence[dict]): Detections in COCO's results format: ``image_id``,
            ``category_id``, ``bbox`` (x, y, width, height; pixels) and ``score``.
        img_ids (Sequence): Images to look at.
        cat_ids (Sequence): Categories to look at.
        iou_thr (float): IoU from which on a detection may match. Defaults to 0.5.
        max_dets (int): Detections per image and class to look at, the highest scores first.
            Defaults to 100.

    Returns:
        list[Matches]: One entry per category, in the order of ``cat_ids``.
    """
    evaluation = _evaluate(coco_gt, detections, img_ids, cat_ids, iou_thr, max_dets)
    images = {cat_id: [] for cat_id in cat_ids}
    for image in evaluation.evalImgs:
        if image is not None:  # neither objects nor detections
            images[image['category_id']].append(image)
    return [_collect(evaluation, images[cat_id]) for cat_id in cat_ids]


def assign_detections(coco_gt: COCO,
                      detections: Sequence[dict],
                      img_ids: Sequence,
                      cat_ids: Sequence,
                      iou_thr: float = 0.5,
                      max_dets: int = 100) -> Assignment:
    """Say of each detection which object it took, by the rules of :func:`match_detections`.

    Args:
        As in :func:`match_detections`.

    Returns:
        Assignment: One entry per detection, in the order of ``detections``.
    """
    evaluation = _evaluate(coco_gt, detections, img_ids, cat_ids, iou_thr, max_dets)
    counts = np.zeros(len(detections), bool)
    objects = np.full(len(detections), -1, np.int64)
    for image in evaluation.evalImgs:
        if image is None:
            continue
        index = np.asarray(image['dtIds'], np.int64) - 1
        counts[index] = ~image['dtIgnore'][0].astype(bool)
        row, column = np.nonzero(_took(image))
        objects[index[row]] = np.asarray(image['gtIds'], np.int64)[column]
    return Assignment(counts, objects)


def coco_from_annotations(images: List[dict], annotations: List[dict],
                          categories: List[dict]) -> COCO:
    """A COCO object of lists instead of a file. ``COCO.loadRes`` cannot take empty ones."""
    coco = COCO()
    coco.dataset = dict(images=images, annotations=annotations, categories=categories)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _evaluate(coco_gt: COCO, detections: Sequence[dict], img_ids: Sequence, cat_ids: Sequence,
              iou_thr: float, max_dets: int) -> COCOeval:
    """``COCOeval`` with its ``evalImgs``; the id of a detection is its position, from 1."""
    coco_dt = coco_from_annotations(
        [dict(id=i) for i in img_ids],
        [dict(det, id=i, area=det['bbox'][2] * det['bbox'][3], iscrowd=0)
         for i, det in enumerate(detections, 1)],
        coco_gt.dataset['categories'])
    evaluation = _COCOeval(coco_gt, coco_dt, 'bbox')
    params = evaluation.params
    params.imgIds, params.catIds = list(img_ids), list(cat_ids)
    params.iouThrs, params.maxDets = np.array([iou_thr]), [max_dets]
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]  # any size
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return evaluation


class _COCOeval(COCOeval):
    """COCOeval, with the annotations' own ``ignore`` flag kept."""

    def _prepare(self):
        ignored = [ann for ann in self.cocoGt.anns.values() if ann.get('ignore')]
        super()._prepare()
        for ann in ignored:
            ann['ignore'] = 1


def _collect(evaluation: COCOeval, images: List[dict]) -> Matches:
    """Concatenate the entries that ``COCOeval.evalImgs`` has for one class."""
    counts = [~image['dtIgnore'][0].astype(bool) for image in images]
    scores = [np.asarray(image['dtScores'], np.float64)[c] for image, c in zip(images, counts)]
    ious = [_matched_ious(evaluation, image)[c] for image, c in zip(images, counts)]
    n_objects = sum(int(np.sum(np.asarray(image['gtIgnore']) == 0)) for image in images)
    ious = np.concatenate([np.zeros(0), *ious])
    return Matches(np.concatenate([np.zeros(0), *scores]), ious > 0, ious, n_objects)


def _matched_ious(evaluation: COCOeval, image: dict) -> np.ndarray:
    """IoU of each detection with the object it took, 0 for those that took none, shape (D,).

    Read from the objects' side: ``dtMatches`` holds annotation ids with 0 for "none", and many
    converters number annotations from 0, so that COCOeval takes a hit on that object for a miss.
    Detections are numbered from 1.
    """
    img_id, cat_id = image['image_id'], image['category_id']
    objects = evaluation._gts[img_id, cat_id]
    if not objects or not image['dtIds']:
        return np.zeros(len(image['dtIds']))
    # gtMatches lists ignored objects last, the IoUs are in the order of the annotations
    order = np.argsort([obj['_ignore'] for obj in objects], kind='stable')
    return (evaluation.ious[img_id, cat_id][:, order] * _took(image)).max(axis=1)


def _took(image: dict) -> np.ndarray:
    """Which detection took which object, in the order of ``dtIds`` and ``gtIds``, shape (D, G)."""
    return np.asarray(image['dtIds'])[:, None] == image['gtMatches'][0]
