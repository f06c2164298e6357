"""Heads and models that cannot be taught, with those that derive from them, and why."""
from .adapter import refuse_heads

refuse_heads('its loss is that of a bag of anchors, which has no target for each anchor',
             'FreeAnchorRetinaHead')
refuse_heads(
    'its losses weigh every place by a confidence that all of its outputs share, so that no target '
    'of a class could be softened by itself', 'AutoAssignHead')
refuse_heads(
    'it predicts coordinates, and a target between two places is a third place, not a softer '
    'target; SimCC and heatmap heads predict distributions', 'RegressionHead', 'RLEHead',
    'IntegralRegressionHead', 'MotionRegressionHead', 'TemporalRegressionHead',
    'TrajectoryRegressionHead')
refuse_heads(
    'it finds the people and their keypoints in one stage, by regression from places that it '
    'assigns anew in each step; SimCC and heatmap heads of top-down models predict distributions',
    'YOLOXPoseHead', 'DEKRHead', 'CIDHead', 'EDPoseHead')
refuse_heads(
    'its decoder with its queries is a part of the head, so the n-th prediction of a teacher is '
    'about another object than its own n-th one', 'MaskFormerHead')
refuse_heads(
    'its class loss and its box loss are one number, the smaller one of two pairings with the '
    'objects, so that softer classes would choose the boxes', 'MultiInstanceBBoxHead')
refuse_heads(
    'it looks at features and anchors that the stage before it has moved, each model in its own '
    'way',
    'StageCascadeRPNHead')
refuse_heads(
    'its decoder leaves out the queries that its own class scores call doubles, so that a teacher '
    'would answer about other queries', 'DDQDETR')
refuse_heads('it trains a student and a teacher of its own already', 'SemiBaseDetector',
             'DWPoseDistiller')
refuse_heads(
    'it follows objects from frame to frame with a detector inside, which can be taught by itself, '
    'with a config of its own', 'BaseMOTModel')
