"""Which metric, with which settings, the tools measure a config's model with."""
import json

import pytest

pytest.importorskip('mmdet')
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

from mmskd.config import load_config  # noqa: E402
from mmskd.evaluation.offline import calibration_metric, dataset_meta, incomparable, metrics_table  # noqa: E402

OURS = dict(type='mmskd.DetCalibrationMetric', iou_thr=.7)


@pytest.fixture
def ann_file(tmp_path):
    path = tmp_path / 'ann.json'
    path.write_text(json.dumps(dict(images=[dict(id=5)], categories=[])))
    return str(path)


def config(evaluator, scope='mmdet'):
    return Config(dict(default_scope=scope, model=dict(type='X'), val_evaluator=evaluator))


def images_of(metric):
    return [image['id'] for image in metric._data['images']]


def test_the_configs_own_settings(ann_file):
    for evaluator in (OURS, [dict(type='CocoMetric'), OURS],
                      dict(type='MultiDatasetEvaluator', metrics=[OURS], dataset_prefixes=['a'])):
        assert calibration_metric(config(evaluator), 'val').rule.iou_thr == .7
    metric = calibration_metric(config(OURS), 'val', dict(iou_thr=.6, ann_file=ann_file))
    assert metric.rule.iou_thr == .6 and images_of(metric) == [5]


def test_the_annotations_of_another_metric(ann_file):
    evaluator = [dict(type='CocoMetric', ann_file=ann_file)]
    assert images_of(calibration_metric(config(evaluator), 'val')) == [5]


def test_none_at_all():
    assert calibration_metric(config(None), 'val').rule.iou_thr == .5
    assert calibration_metric(config(None), 'test').rule.iou_thr == .5


def test_pose():
    pytest.importorskip('mmpose')
    evaluator = [dict(type='CocoMetric', ann_file='nowhere.json')]
    metric = calibration_metric(config(evaluator, 'mmpose'), 'val', dict(hit='oks'))
    assert type(metric).__name__ == 'PoseCalibrationMetric' and metric.rule.hit == 'oks'


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError, match='iou_threshold'):
        calibration_metric(config(OURS), 'val', dict(iou_threshold=.5))


@pytest.mark.parametrize('name, key, number', [
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'classes', 80),
    ('mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py', 'sigmas', 17)])
def test_dataset_meta_needs_no_data(name, key, number):
    project = name.partition('::')[0]
    pytest.importorskip(project)
    with DefaultScope.overwrite_default_scope(project):
        assert len(dataset_meta(load_config(name).test_dataloader.dataset)[key]) == number


def test_what_does_not_compare_models_is_named():
    values = {f'calibration/{key}': 0. for key in ('LaECE_0_own_thr', 'OCE_own_thr', 'NLL', 'ECE',
                                                   'oLRP', 'emitted', 'cell_ECE')}
    averages, own = incomparable(values, 'detection').splitlines()
    assert averages.startswith('NLL, ECE: averages over what is emitted')
    assert own.startswith('_own_thr: at thresholds that were found on these very images')
    assert incomparable({'calibration/ECE': 0., 'calibration/clipped': 0.}, 'pose') == ''


def test_counts_have_no_digits(capsys):
    from rich.console import Console
    Console().print(metrics_table(dict(value={'calibration/detections_own_thr': 12.,
                                              'calibration/ECE': 1.})))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['│', 'calibration/detections_own_thr', '│', '12', '│'] in lines
    assert ['│', 'calibration/ECE', '│', '1.0000', '│'] in lines


def test_table(capsys):
    from rich.console import Console
    Console().print(metrics_table(dict(before=dict(ECE=.25, NLL=float('nan')),
                                       after=dict(ECE=.125, NLL=1.))))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['│', 'ECE', '│', '0.2500', '│', '0.1250', '│'] in lines
    assert ['│', 'NLL', '│', 'nan', '│', '1.0000', '│'] in lines
