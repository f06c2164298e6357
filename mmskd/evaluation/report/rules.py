"""The one rule by which all runs of a report are judged."""
from typing import Sequence, Tuple, Type, Union

from mmengine.config import Config

from mmskd.config import CALIBRATION_METRICS, metrics_of, project_of, type_name

from ..detection import DetectionRule
from ..pose import THRESHOLDS, PoseRule
from .runs import Run

Rule = Union[DetectionRule, PoseRule]


def rule_of(cfg: Config, split: str = 'val') -> Rule:
    """As the evaluators of a config have it, else the defaults.

    The evaluators that say it are mmskd's metric of calibration and mmpose's PCK.

    Raises:
        UsageError: If a value is out of range.
    """
    pose, values = project_of(cfg) == 'mmpose', {}
    rule: Type[Rule] = PoseRule if pose else DetectionRule
    for metric in metrics_of(cfg.get(f'{split}_evaluator')):
        kind = type_name(metric)
        if kind == CALIBRATION_METRICS['mmpose' if pose else 'mmdet']:
            values = {key: metric[key] for key in rule._fields if metric.get(key) is not None}
            if pose:
                values.setdefault('thr', THRESHOLDS['oks' if values.get('hit') == 'oks' else 'pck'])
            break
        if pose and kind.endswith('PCKAccuracy') and not values:
            norm_item = metric.get('norm_item', 'head' if kind.startswith('Mpii') else 'bbox')
            values = dict(thr=metric.get('thr', 0.5 if kind.startswith('Mpii') else 0.05),
                          norm_item=norm_item if isinstance(norm_item, str) else norm_item[0])
    return rule(**values).checked(f'{split}_evaluator')


def in_words(rule: Rule) -> str:
    """When a prediction is right: ``'at an IoU of 0.5 or more'``."""
    if isinstance(rule, DetectionRule):
        return f'at an IoU of {rule.iou_thr:g} or more'
    if rule.hit == 'oks':
        return f'with a term of the OKS of {rule.thr:g} or more'
    size = dict(bbox='the longer side of its box', head='the size of the head',
                torso='the size of the torso')[rule.norm_item]
    return f'within {rule.thr:g} of {size}'


def common_rule(runs: Sequence[Run], split: str) -> Tuple[Rule, str]:
    """The baseline's rule, and in which settings other runs' evaluators have others.

    Args:
        runs (sequence[Run]): The baseline's first.
        split (str): ``'val'`` or ``'test'``.
    """
    rules = [rule_of(run.cfg, split) for run in runs]
    differ = [f'{field} ({", ".join(dict.fromkeys(str(getattr(rule, field)) for rule in rules))})'
              for field in rules[0]._fields
              if len({getattr(rule, field) for rule in rules}) > 1]
    return rules[0], ' and '.join(differ)
