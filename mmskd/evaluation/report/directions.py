"""Whether more or less of a metric is better, for those of MMDetection's and MMPose's evaluators.

A metric that is not listed has no direction, and gets no verdict.
"""
import re
from typing import Optional

from ..measures import measure_of

# What a key is made of, beside what it is about (bbox, Head, an action, a threshold, ...)
HIGHER = r"""
    m?AP m?ap AP[rcfsml] AP\d+ ap\d+ AR AR[sml]? m?[Ii]o[Uu] [cg]IoU a?Acc mAcc acc accuracy Acc
    m?Dice m?Fscore m?Precision m?Recall precision recall F1 f1 JI PQ SQ RQ R\d+ top\d
    HOTA AssA DetA MOTA MOTP IDF1 IDTP IDP IDR MT TP
    PCK PCKh tPCK AUC HandednessAcc Bleu METEOR ROUGE CIDEr SPICE
"""
LOWER = r"""
    loss mMR EPE NME MPJPE MRRPE IDSW Frag ML FP FN IDFN IDFP
"""
# Beside one of the above they say that it is something else
TURNING = r"""
    [Ee]rr(or)? [Ll]oss [Mm]iss(ed)? [Gg]ap [Dd]rop [Dd]iff(erence)? [Dd]elta [Ss]td [Vv]ar(iance)?
    [Tt]ime [Rr]ank [Ff]alse [Nn]eg(ative)? [Ii]nv(erse)? [Nn]ot [Nn]on [Nn]o
"""


def lower_is_better(key: str, task: str) -> Optional[bool]:
    """Whether less of a metric is better.

    Args:
        key (str): As it is logged: ``'coco/bbox_mAP_50'``, ``'PCK'``, ``'calibration/ECE'``.
        task (str): ``'detection'`` or ``'pose'``.

    Returns:
        bool or None: None if that is not known, or neither is better.
    """
    measure = measure_of(key, task)
    if measure is not None:
        return None if measure.better is None else measure.better == 'lower'
    words = [word for word in re.split(r'[^A-Za-z0-9]+', key.rpartition('/')[2]) if word]
    said = {lower for lower, words_of in ((False, HIGHER), (True, LOWER))
            for word in words if _is(word, words_of)}
    turned = any(_is(word, TURNING) and not _is(word, LOWER) for word in words)
    return said.pop() if len(said) == 1 and not turned else None


def _is(word: str, patterns: str) -> bool:
    return any(re.fullmatch(pattern, word) for pattern in patterns.split())
