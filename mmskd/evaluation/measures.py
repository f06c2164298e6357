"""What each measure of calibration says, which direction is better, and what it can compare."""
from typing import NamedTuple, Optional

OWN_THR = '_own_thr'  # ends the name of what is measured at thresholds of the measured images
COUNTS = ('detections', 'objects', 'emitted', 'keypoints')


class Measure(NamedTuple):
    """One measure.

    Attributes:
        better (str or None): ``'lower'`` or ``'higher'``; None for a number that only describes.
        comparable (bool): Whether two models can be compared by it. False for an average over all
            that a model emits: one that emits more easy rubbish gets a better value.
        says (str): What it says, in a line.
    """
    better: Optional[str]
    comparable: bool
    says: str


EMITTED = 'average over all detections above score_thr: depends on how many the model emits'

MEASURES = {
    'detection': {
        'LaECE_0': Measure(
            'lower', True, 'localisation-aware calibration error: score against IoU, in 25 bins '
            'of each class, of the detections kept at the LRP-optimal threshold of the class'),
        'LaACE_0': Measure(
            'lower', True, 'mean |score - IoU| of the same detections, mean over classes'),
        'overconfidence': Measure(
            None, False, 'mean score - IoU of the same detections, mean over classes: above 0 the '
            'model is too sure of itself, below too modest'),
        'LRP': Measure(
            'lower', True, 'localisation-recall-precision error of the same detections, any '
            'overlap a hit, mean over classes'),
        'LRP_loc': Measure('lower', True, 'its localisation error: mean 1 - IoU of the hits'),
        'LRP_FP': Measure('lower', True, 'its false positives: 1 - precision'),
        'LRP_FN': Measure('lower', True, 'its false negatives: 1 - recall'),
        'OCE': Measure(
            'lower', True, 'object-level calibration error: Brier score of each object, missed '
            'ones included, by the same detections'),
        'detections': Measure(None, False, 'detections kept at the LRP-optimal thresholds'),
        'objects': Measure(None, False, 'objects to be found'),
        'oLRP': Measure('lower', True, 'LRP at iou_thr, at the best threshold of each class'),
        'NLL': Measure('lower', False, f'negative log-likelihood of the hits, {EMITTED}'),
        'ECE': Measure('lower', False, f'expected calibration error (D-ECE), {EMITTED}'),
        'LaECE': Measure('lower', False, f'LaECE at iou_thr, {EMITTED}'),
        'Brier': Measure('lower', False, f'squared error of the scores, {EMITTED}'),
        'AURC': Measure('lower', False, f'area under the risk-coverage curve, {EMITTED}'),
        'EAURC': Measure('lower', False, f'AURC above the best order, {EMITTED}'),
        'emitted': Measure(None, False, 'detections above score_thr'),
    },
    # The annotations, not the model, decide how many keypoints are measured
    'pose': {
        'NLL': Measure('lower', True, 'negative log-likelihood of the hits'),
        'ECE': Measure('lower', True, 'expected calibration error'),
        'overconfidence': Measure(
            None, False, 'mean score - share of hits: above 0 the model is too sure of itself, '
            'below too modest'),
        'Brier': Measure('lower', True, 'squared error of the scores'),
        'AURC': Measure('lower', True, 'area under the risk-coverage curve'),
        'EAURC': Measure('lower', True, 'AURC above the best order'),
        'NLL_mapped': Measure(
            'lower', True, 'negative log-likelihood of the hits under a map of the unclipped '
            'scores that was fitted on the other half of the images'),
        'clipped': Measure(None, False, 'share of the scores that lay outside [0, 1]'),
        'keypoints': Measure(None, False, 'annotated keypoints that were measured'),
    },
}


def measure_of(key: str, task: str) -> Optional[Measure]:
    """The measure that a logged key holds the value of.

    Args:
        key (str): As logged: ``'calibration/LaECE_0'``, ``'calibration/cell_ECE'``,
            ``'calibration/mean_NLL'``, ``'calibration/LRP_FN_own_thr'``, ``'OCE'``.
        task (str): ``'detection'`` or ``'pose'``.

    Returns:
        Measure or None: None for a key of something else.
    """
    prefix, _, name = key.rpartition('/')
    name = name[:-len(OWN_THR)] if name.endswith(OWN_THR) else name
    known = MEASURES[task]
    if name in known:
        return known[name]
    # A class may be called anything, so the longest measure that the name ends in is meant
    found = [measure for measure in known if name.endswith(f'_{measure}')]
    return known[max(found, key=len)] if found and prefix else None
