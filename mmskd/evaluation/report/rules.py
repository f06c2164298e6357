"""The one rule by which all runs of a report are judged."""
from typing import Sequence, Tuple, Union

from mmengine.config import Config

from mmskd.config import CALIBRATION_METRICS, metrics_of, project_of, type_name
from mmskd.errors import UsageError

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
    rule = PoseRule if pose else DetectionRule
    for metric in metrics_of(cfg.get(f'{split}_evaluator')):
        kind = type_name(metric)
        if kind == CALIBRATION_METRICS['mmpose' if pose else 'mmdet']:
            values = {key: metric[key] for key in rule._fields if metric.get(key) is not None}
            if pose:
                values.setdefault('thr', THRESHOLDS.get(values.get('hit', 'pck'), 1))
            break
        if pose and kind.endswith('PCKAccuracy') and not values:
            norm_item = metric.get('norm_item', 'head' if kind.startswith('Mpii') else 'bbox')
            values = dict(thr=metric.get('thr', 0.5 if kind.startswith('Mpii') else 0.05),
                          norm_item=norm_item if isinstance(norm_item, str) else norm_item[0])
    return _checked(rule(**values))


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


def _checked(rule: Rule) -> Rule:
    wrong = [] if isinstance(rule.n_bins, int) and rule.n_bins > 0 else [('n_bins', 'at least 1')]
    if isinstance(rule, DetectionRule):
        wrong += [] if 0 < rule.iou_thr < 1 else [('iou_thr', 'between 0 and 1')]
        wrong += [] if 0 <= rule.score_thr <= 1 else [('score_thr', 'between 0 and 1')]
        wrong += [] if rule.max_dets > 0 else [('max_dets', 'at least 1')]
    else:
        wrong += [] if rule.hit in ('pck', 'oks') else [('hit', "'pck' or 'oks'")]
        wrong += [] if rule.norm_item in ('bbox', 'head', 'torso') else \
            [('norm_item', "'bbox', 'head' or 'torso'")]
        wrong += [] if 0 < rule.thr and (rule.hit == 'pck' or rule.thr <= 1) else \
            [('thr', 'above 0, and for OKS at most 1')]
    for field, range_ in wrong:
        raise UsageError(f'{field} of an evaluator must be {range_}, got {getattr(rule, field)!r}')
    return rule
