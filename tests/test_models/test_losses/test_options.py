"""Options of losses: each is checked, and its owner named."""
import pytest
from mmengine.registry import MODELS

from mmskd.errors import UsageError


@pytest.mark.parametrize(
    'cfg, message',
    [(dict(type='NKDLoss', weight=-1), 'NKDLoss: weight must be a number, at least 0, got -1'),
     (dict(type='NKDLoss',
           weight='much'), "NKDLoss: weight must be a number, at least 0, got 'much'"),
     (dict(type='NKDLoss', gamma=None), 'NKDLoss: gamma must be'),
     (dict(type='NKDLoss', tau=0), 'NKDLoss: tau must be a number, above 0, got 0'),
     (dict(type='NKDLoss', ignore_background='no'), 'ignore_background must be True or False'),
     (dict(type='USKDLoss', alpha=-1), 'USKDLoss: alpha must be'),
     (dict(type='USKDLoss', beta='a'), 'USKDLoss: beta must be'),
     (dict(type='USKDLoss', mu=True), 'USKDLoss: mu must be'),
     (dict(type='USKDLoss', weight=float('nan')), 'USKDLoss: weight must be'),
     (dict(type='FeatureDistillLoss', weight=-1), 'FeatureDistillLoss: weight must be'),
     (dict(type='FeatureDistillLoss', student_channels=0,
           teacher_channels=1), 'student_channels must'),
     (dict(type='FeatureDistillLoss', for_batch_size=0), 'for_batch_size must be a whole number'),
     (dict(type='SimCCDistillLoss', weight=-.1), 'SimCCDistillLoss: weight must be'),
     (dict(type='SimCCDistillLoss', for_batch_size=.5), 'for_batch_size must be a whole number'),
     (dict(type='HeatmapDistillLoss', weight='1'), 'HeatmapDistillLoss: weight must be'),
     (dict(type='ClassDistillLoss', weight=-1), 'ClassDistillLoss: weight must be'),
     (dict(type='BoxDistillLoss', tau=0), 'BoxDistillLoss: tau must be a number, above 0'),
     (dict(type='BoxDistillLoss', weight=-1), 'BoxDistillLoss: weight must be'),
     (dict(type='CWDLoss', tau=0), 'CWDLoss: tau must be a number, above 0'),
     (dict(type='CWDLoss', weight=-1), 'CWDLoss: weight must be'),
     (dict(type='PKDLoss', weight='6'), 'PKDLoss: weight must be'), ])
def test_options_of_losses(cfg, message):
    with pytest.raises(UsageError, match=message):
        MODELS.build(dict(cfg, type=f'mmskd.{cfg["type"]}'))
