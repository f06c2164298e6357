"""Losses: the formulas (functional.py) and the registered modules, one file per method."""
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

from .boxes import BoxDistillLoss, BoxLesson
from .cwd import CWDLoss
from .distill import (
    ClassDistillLoss,
    DSNTDistillLoss,
    FeatureDistillLoss,
    HeatmapDistillLoss,
    LossCall,
    RTMODistillLoss,
    SimCCDistillLoss,
)
from .functional import (
    bins_kl,
    channel_kl,
    density_kl,
    feature_l2,
    heatmap_l2,
    one_hot,
    pearson_distance,
    progressive_target,
    pskd_binary_cross_entropy,
    pskd_cross_entropy,
    pskd_focal,
    pskd_simcc_kl,
    simcc_kl,
)
from .nkd import NKDLoss
from .pkd import PKDLoss
from .pskd_classification import PSKDTorchCrossEntropyLoss
from .soft_target import SoftTargetLoss, register_soft_loss, soft_form
from .uskd import USKDLoss

__all__ = [
    'BoxDistillLoss', 'BoxLesson', 'CWDLoss', 'ClassDistillLoss', 'DSNTDistillLoss',
    'FeatureDistillLoss', 'HeatmapDistillLoss', 'LossCall', 'NKDLoss', 'PKDLoss',
    'PSKDTorchCrossEntropyLoss', 'RTMODistillLoss', 'SimCCDistillLoss', 'SoftTargetLoss',
    'USKDLoss', 'bins_kl', 'channel_kl', 'density_kl', 'feature_l2', 'heatmap_l2', 'one_hot',
    'pearson_distance', 'progressive_target', 'pskd_binary_cross_entropy', 'pskd_cross_entropy',
    'pskd_focal', 'pskd_simcc_kl', 'register_soft_loss', 'simcc_kl', 'soft_form'
]

if HAS_MMDET:
    from .pskd_detection import (
        PSKDCrossEntropyLoss,
        PSKDFocalLoss,
        PSKDQualityFocalLoss,
        PSKDVarifocalLoss,
    )
    __all__ += [
        'PSKDCrossEntropyLoss', 'PSKDFocalLoss', 'PSKDQualityFocalLoss', 'PSKDVarifocalLoss'
    ]

if HAS_MMPOSE:
    from .pskd_pose import PSKDKeypointMSELoss, PSKDKeypointOHKMMSELoss, PSKDKLDiscretLoss
    __all__ += ['PSKDKLDiscretLoss', 'PSKDKeypointMSELoss', 'PSKDKeypointOHKMMSELoss']
