"""The one rule by which all runs of a report are judged."""
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from mmengine.config import Config

from mmskd.config import project_of
from mmskd.errors import UsageError

from ..detection import DetectionRule
from .runs import Run


class PoseRule(NamedTuple):
    """When a keypoint is right.

    Attributes:
        hit (str): ``'pck'``: nearer than ``thr`` times a reference size; ``'oks'``: with a term of
            the OKS of at least ``thr``. Defaults to ``'pck'``.
        thr (float): Defaults to 0.05.
        norm_item (str): The reference size: ``'bbox'``, the longer side of the box; ``'head'``;
            ``'torso'``, the distance between keypoints 4 and 5. Defaults to ``'bbox'``.
        n_bins (int): Score bins of the calibration error. Defaults to 25.
    """
    hit: str = 'pck'
    thr: float = 0.05
    norm_item: str = 'bbox'
    n_bins: int = 25

    def __str__(self) -> str:
        if self.hit == 'oks':
            return f'with a term of the OKS of {self.thr:g} or more'
        size = dict(bbox='the longer side of its box', head='the size of the head',
                    torso='the size of the torso')[self.norm_item]
        return f'within {self.thr:g} of {size}'


Rule = Union[DetectionRule, PoseRule]


def rule_of(cfg: Config, split: str = 'val') -> Rule:
    """As the evaluators of a config have it: mmskd's metric of calibration, or for poses mmpose's
    PCK; else the defaults.

    Raises:
        UsageError: If a value is out of range.
    """
    pose, values = project_of(cfg) == 'mmpose', {}
    rule = PoseRule if pose else DetectionRule
    for kind, metric in _evaluators(cfg.get(f'{split}_evaluator')):
        if kind == ('PoseCalibrationMetric' if pose else 'DetCalibrationMetric'):
            values = {key: metric[key] for key in rule._fields if metric.get(key) is not None}
            if values.get('hit') == 'oks':
                values.setdefault('thr', 0.5)
            break
        if pose and kind.endswith('PCKAccuracy') and not values:
            norm_item = metric.get('norm_item', 'head' if kind.startswith('Mpii') else 'bbox')
            values = dict(thr=metric.get('thr', 0.5 if kind.startswith('Mpii') else 0.05),
                          norm_item=norm_item if isinstance(norm_item, str) else norm_item[0])
    return _checked(rule(**values))


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


def _evaluators(cfg) -> Iterator[Tuple[str, dict]]:
    for metric in evaluator_list(cfg):
        kind = metric.get('type', '')
        yield kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__, metric


def evaluator_list(cfg: Optional[Union[dict, list]]) -> List[dict]:
    """The settings of the metrics of an evaluator, in whichever form a config has it."""
    if isinstance(cfg, dict):
        return evaluator_list(cfg['metrics']) if 'metrics' in cfg else [cfg]
    return [metric for metric in cfg or [] if isinstance(metric, dict)]


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
