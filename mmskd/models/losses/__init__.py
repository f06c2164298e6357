"""Soft-target losses: the formulas (functional.py) and the registered modules, one file per method."""
from mmskd.optional import HAS_MMDET
from .functional import (one_hot, progressive_target, pskd_binary_cross_entropy,
                         pskd_cross_entropy, pskd_focal)
from .nkd import NKDLoss
from .uskd import USKDLoss

__all__ = [
    'one_hot', 'progressive_target', 'pskd_binary_cross_entropy', 'pskd_cross_entropy',
    'pskd_focal', 'NKDLoss', 'USKDLoss'
]

if HAS_MMDET:
    from .pskd_detection import (PSKDCrossEntropyLoss, PSKDFocalLoss, PSKDQualityFocalLoss,
                                 PSKDVarifocalLoss)
    __all__ += [
        'PSKDCrossEntropyLoss', 'PSKDFocalLoss', 'PSKDQualityFocalLoss', 'PSKDVarifocalLoss'
    ]
