"""Losses: the formulas (functional.py) and the registered modules, one file per method."""
from typing import Dict, Type

from torch import nn

from mmskd.optional import HAS_MMDET, HAS_MMPOSE
from .distill import (ClassDistillLoss, FeatureDistillLoss, HeatmapDistillLoss, LossCall,
                      SimCCDistillLoss)
from .functional import (feature_l2, heatmap_l2, one_hot, progressive_target,
                         pskd_binary_cross_entropy, pskd_cross_entropy, pskd_focal, pskd_simcc_kl,
                         simcc_kl)
from .nkd import NKDLoss
from .soft_target import SoftTargetLoss
from .uskd import USKDLoss

__all__ = [
    'COUNTERPARTS', 'ClassDistillLoss', 'FeatureDistillLoss', 'HeatmapDistillLoss', 'LossCall',
    'NKDLoss', 'SimCCDistillLoss', 'SoftTargetLoss', 'USKDLoss', 'feature_l2', 'heatmap_l2',
    'one_hot', 'progressive_target', 'pskd_binary_cross_entropy', 'pskd_cross_entropy', 'pskd_focal',
    'pskd_simcc_kl', 'simcc_kl'
]

COUNTERPARTS: Dict[Type[nn.Module], Type[SoftTargetLoss]] = {}
"""The soft-target drop-in of each hard-target loss of the packages that are installed."""

if HAS_MMDET:
    from . import pskd_detection
    from .pskd_detection import (PSKDCrossEntropyLoss, PSKDFocalLoss, PSKDQualityFocalLoss,
                                 PSKDVarifocalLoss)
    COUNTERPARTS.update(pskd_detection.COUNTERPARTS)
    __all__ += [
        'PSKDCrossEntropyLoss', 'PSKDFocalLoss', 'PSKDQualityFocalLoss', 'PSKDVarifocalLoss'
    ]

if HAS_MMPOSE:
    from . import pskd_pose
    from .pskd_pose import PSKDKeypointMSELoss, PSKDKeypointOHKMMSELoss, PSKDKLDiscretLoss
    COUNTERPARTS.update(pskd_pose.COUNTERPARTS)
    __all__ += ['PSKDKLDiscretLoss', 'PSKDKeypointMSELoss', 'PSKDKeypointOHKMMSELoss']
