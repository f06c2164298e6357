import ast
import inspect

import pytest

from mmskd.evaluation.measures import MEASURES
from mmskd.evaluation.report.directions import lower_is_better

HIGHER = [
    'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP_s', 'coco/AR@100', 'coco/AR_l@1000',
    'coco/circle_precision', 'lvis/bbox_AP50', 'lvis/bbox_APr', 'lvis/ARs@300', 'lvis_fixed_ap/APf',
    'pascal_voc/AP50', 'pascal_voc/recall@100@0.5', 'cityscapes/AP@50', 'coco_panoptic/PQ',
    'coco_panoptic/RQ_st', 'mIoU', 'aAcc', 'mAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall',
    'cIoU', 'crowd_human/mAP', 'crowd_human/JI', 'dod/mAP_very_long', 'grefcoco/F1_score',
    'grefcoco/T_acc', 'refexp/mean_precision', 'refexp/refcoco+_precision@1', 'reid-metric/R5',
    'base_ap', 'novel_ap50', 'motchallenge-metric/HOTA', 'motchallenge-metric/MOTA',
    'motchallenge-metric/IDF1', 'occluded_recall', 'coco/AP .5', 'coco/AP (M)', 'coco/AR .75',
    'coco/AP(E)', 'PCK', 'PCK@0.1', 'PCKh', 'tPCK', 'Head PCK', 'Sho tPCK', 'AUC',
    'posetrack18/Ankl AP', 'HandednessAcc', 'body/coco/AP', 'CIDEr', 'Bleu_4', 'accuracy/top1'
]
LOWER = [
    'crowd_human/mMR', 'EPE', 'NME', 'MPJPE', 'P-MPJPE', 'N-MPJPE', 'MPJPE_all', 'MPJPE_Walking',
    'MRRPE', 'loss', 'loss_cls', 'motchallenge-metric/IDSW', 'motchallenge-metric/FN',
    'motchallenge-metric/Frag', 'face/NME', 'calibration/ECE', 'calibration/mean_NLL',
    'calibration/LaECE_0_own_thr']
UNKNOWN = ['my_metric', 'MAPE', 'AP_gap', 'precision_std', 'mAP_drop', 'false_recall', 'time', 'lr',
           'calibration/emitted', 'calibration/clipped', 'MT_FN', 'mAP_error', 'PCK_rank']


@pytest.mark.parametrize('keys, expected', [(HIGHER, False), (LOWER, True), (UNKNOWN, None)])
def test_known_metrics(keys, expected):
    task = 'pose' if 'calibration/mean_NLL' in keys else 'detection'
    wrong = [key for key in keys if lower_is_better(key, task) is not expected and
             lower_is_better(key, 'detection') is not expected]
    assert not wrong


@pytest.mark.parametrize('task', ['detection', 'pose'])
def test_our_measures_say_it_themselves(task):
    for name, measure in MEASURES[task].items():
        expected = {'lower': True, 'higher': False, None: None}[measure.better]
        assert lower_is_better(f'calibration/{name}', task) is expected


def keys_of(module):
    """Constant keys that the metrics of a module put into what they return."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and \
                isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str) and \
                getattr(node.value, 'id', '') in ('metrics', 'eval_results', 'result'):
            yield node.slice.value


def test_the_list_covers_the_evaluators_of_mmdet_and_mmpose():
    """What their sources log under a name that is written out."""
    metrics = pytest.importorskip('mmdet.evaluation.metrics')
    pose_metrics = pytest.importorskip('mmpose.evaluation.metrics')
    modules = [inspect.getmodule(getattr(package, name)) for package in (metrics, pose_metrics)
               for name in package.__all__]
    keys = {key for module in set(modules) for key in keys_of(module)} - {
        # not scores, but what is kept of each sample
        'bboxes', 'scores', 'labels', 'masks', 'mask_scores', 'img_id', 'sem_seg_results'}
    known = {key for key in keys if lower_is_better(key, 'pose') is not None}
    assert {'mMR', 'PQ', 'EPE', 'NME', 'MRRPE', 'HOTA', 'PCK', 'AUC'} <= known
    from_samples = {key for key in keys - known if key == key.lower() or key[0].islower()}
    assert keys - known - from_samples == {'IDTP'} or keys - known - from_samples == set()
