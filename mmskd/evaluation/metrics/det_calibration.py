"""How far the scores of a detector can be trusted."""
import json
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_text
from pycocotools.coco import COCO

from mmskd.registry import METRICS

from ..calibration import aurc, brier, eaurc, ece, laece, nll, olrp
from ..matching import Matches, coco_from_annotations, match_detections


@METRICS.register_module()
class DetCalibrationMetric(BaseMetric):
    """Calibration of a box detector on any data set in COCO format.

    Detections are matched once, by pycocotools' rules (crowds and ignored objects honoured), at
    one IoU. The formulas, with their papers, are in :mod:`mmskd.evaluation.calibration`; lower is
    better for all. Keys, under the prefix ``calibration``:

    - over all detections with a score of at least ``score_thr``: ``NLL`` (nats), ``ECE`` (the
      D-ECE), ``Brier``, ``AURC`` and ``EAURC``;
    - the mean over the classes that have objects, as in the papers: ``LaECE``, over the same
      detections, and ``oLRP``, which seeks its own threshold and so looks at every score;
    - with ``classwise``, each of these per class as ``{class name}_{key}``.

    An undefined value is nan: the ECE of no detections, the oLRP of a class without objects. Only
    images that were evaluated count, so a part of a data set can be measured too.

    Use it beside mmdet's own metric, or on a results file that ``tools/test.py --out`` wrote::

        val_evaluator = [
            dict(type='CocoMetric', ann_file=ann_file),
            dict(type='mmskd.DetCalibrationMetric', ann_file=ann_file)]

    Args:
        ann_file (str, optional): Annotations in COCO format. Without it the ground truth is taken
            from the data samples, which must then carry ``instances``. Defaults to None.
        iou_thr (float): IoU from which on a detection hits, between 0 and 1. Defaults to 0.5.
        score_thr (float): Detections below it do not count (except for ``oLRP``). With 0, the
            thousands of boxes that score next to nothing, and are rightly nothing, outweigh all
            others and every detector looks calibrated. Defaults to 0.05.
        n_bins (int): Score bins of ``ECE`` and ``LaECE``. Defaults to 25, as in LaECE's paper; for
            the D-ECE, 10 and 20 are common as well.
        max_dets (int): Detections per image and class, the highest scores first. Defaults to 100.
        classwise (bool): Whether to report each class as well. Defaults to False.
        collect_device (str): Where results of several processes are collected, 'cpu' or 'gpu'.
            Defaults to 'cpu'.
        prefix (str, optional): Prefix of the keys. Defaults to None, for ``calibration``.

    Raises:
        ValueError: If ``iou_thr`` is not between 0 and 1; if no source of ground truth is given; if
            an image is not in ``ann_file``; if a label is none of the data set's classes.
    """
    default_prefix = 'calibration'

    def __init__(self,
                 ann_file: Optional[str] = None,
                 iou_thr: float = 0.5,
                 score_thr: float = 0.05,
                 n_bins: int = 25,
                 max_dets: int = 100,
                 classwise: bool = False,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not 0 < iou_thr < 1:
            raise ValueError(
                f'DetCalibrationMetric: iou_thr must be between 0 and 1, got {iou_thr}')
        self.iou_thr = iou_thr
        self.score_thr = score_thr
        self.n_bins = n_bins
        self.max_dets = max_dets
        self.classwise = classwise
        self._coco = None if ann_file is None else _load_coco(ann_file)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep of each image what matching needs."""
        for sample in data_samples:
            pred = sample['pred_instances']
            result = dict(
                img_id=sample['img_id'],
                bboxes=pred['bboxes'].float().cpu().numpy(),
                scores=pred['scores'].float().cpu().numpy(),
                labels=pred['labels'].cpu().numpy())
            if self._coco is None:
                result['instances'] = self._instances(sample)
            self.results.append(result)

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Match, and apply the formulas to all classes together and to each."""
        classes = list((self.dataset_meta or {}).get('classes', []))
        coco = self._coco or _coco_from_instances(results, classes)
        # In the order of the file, which is how mmdet's data sets number their labels; a file used
        # without dataset_meta gives all its categories.
        cat_ids = coco.getCatIds(catNms=classes)
        names = [cat['name'] for cat in coco.loadCats(cat_ids)]
        self._check(results, coco, names)
        matches = match_detections(
            coco, _to_coco(results, cat_ids), [r['img_id'] for r in results], cat_ids,
            self.iou_thr, self.max_dets)

        per_class = [self._measure(m) for m in matches]
        metrics = self._measure(_pool(matches))
        # Two are means over classes by definition, and a class without objects is no part of them.
        with_objects = [values for values, m in zip(per_class, matches) if m.n_objects]
        for key in ('LaECE', 'oLRP'):
            metrics[key] = _nanmean([values[key] for values in with_objects])
        if self.classwise:
            metrics.update({f'{name}_{key}': value for name, values in zip(names, per_class)
                            for key, value in values.items()})
        return metrics

    def _measure(self, matches: Matches) -> Dict[str, float]:
        scores, hits, ious, _ = matches.above(self.score_thr)
        return dict(
            NLL=nll(scores, hits),
            ECE=ece(scores, hits, self.n_bins),
            LaECE=laece(scores, hits, ious, self.n_bins),
            Brier=brier(scores, hits),
            AURC=aurc(scores, hits),
            EAURC=eaurc(scores, hits),
            oLRP=olrp(*matches, self.iou_thr))

    @staticmethod
    def _instances(sample: dict) -> List[dict]:
        """The objects of a data sample, without their masks."""
        if 'instances' not in sample:
            raise ValueError("DetCalibrationMetric: give ann_file, or samples with 'instances' "
                             '(a meta key of PackDetInputs)')
        return [dict(bbox=[float(x) for x in obj['bbox']], label=int(obj['bbox_label']),
                     ignore=int(obj.get('ignore_flag', 0))) for obj in sample['instances']]

    @staticmethod
    def _check(results: List[dict], coco: COCO, names: List[str]) -> None:
        for result in results:
            if result['img_id'] not in coco.imgs:
                raise ValueError(
                    f'DetCalibrationMetric: image {result["img_id"]} is not in ann_file')
            unknown = [i for i in np.unique(result['labels']) if not 0 <= i < len(names)]
            if unknown:
                raise ValueError(
                    f'DetCalibrationMetric: label {unknown[0]} predicted in image '
                    f'{result["img_id"]}, but the data set has {len(names)} classes: {names}')


def _load_coco(ann_file: str) -> COCO:
    data = json.loads(get_text(ann_file))
    return coco_from_annotations(data['images'], data.get('annotations', []), data['categories'])


def _coco_from_instances(results: List[dict], classes: List[str]) -> COCO:
    """Ground truth of the data samples, as mmdet's CocoMetric has it: labels are category ids,
    and what mmdet's data set flagged as ignored was a crowd."""
    annotations = []
    for result in results:
        for obj in result['instances']:
            x1, y1, x2, y2 = obj['bbox']
            annotations.append(dict(
                id=len(annotations) + 1, image_id=result['img_id'], category_id=obj['label'],
                bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1),
                iscrowd=obj['ignore']))
    return coco_from_annotations(
        [dict(id=result['img_id']) for result in results], annotations,
        [dict(id=i, name=name) for i, name in enumerate(classes)])


def _to_coco(results: List[dict], cat_ids: List) -> List[dict]:
    """Detections in COCO's results format."""
    detections = []
    for result in results:
        boxes = result['bboxes'].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]  # x1, y1, x2, y2 -> x, y, width, height
        detections += [
            dict(image_id=result['img_id'], category_id=cat_ids[label], bbox=box, score=score)
            for box, score, label in zip(boxes.tolist(), result['scores'].tolist(),
                                         result['labels'].tolist())]
    return detections


def _pool(matches: List[Matches]) -> Matches:
    """The matches of all classes as if of one."""
    if not matches:
        return Matches(np.zeros(0), np.zeros(0, bool), np.zeros(0), 0)
    scores, hits, ious, n_objects = zip(*matches)
    return Matches(*map(np.concatenate, (scores, hits, ious)), sum(n_objects))


def _nanmean(values: List[float]) -> float:
    values = [v for v in values if not np.isnan(v)]
    return float(np.mean(values)) if values else np.nan
