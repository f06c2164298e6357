"""tools/analysis/eval_calibration.py and fit_temperature.py against tools/test.py."""
import json
import os
import pickle
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
needs_mmpose = pytest.mark.skipif(find_spec('mmpose') is None, reason='mmpose is not installed')

from mmskd.config import load_config  # noqa: E402
from mmskd.evaluation.offline import dataset_meta  # noqa: E402
from mmskd.evaluation.results import load_results  # noqa: E402
from mmskd.evaluation.temperature import fit_temperature  # noqa: E402
from mmskd.registry import METRICS  # noqa: E402

# Hits that an untrained model has as well
DETECTOR_OPTIONS = ('iou_thr=0.1', 'score_thr=0.01')
POSE_OPTIONS = ('thr=0.5', 'per_keypoint=True')


def table_of(text):
    """The rows of a printed table: {name: [values]}."""
    rows = re.findall(r'│ (\S+) +│((?: +\S+ │)+)', text)
    return {name: [float(value) for value in values.split('│')[:-1]] for name, values in rows}


@pytest.fixture(scope='module')
def detector(tiny_folder):
    """Weights of measured.py before any training, but with scores from 0.2 to 0.4."""
    from mmdet.utils import register_all_modules
    from mmengine.registry import MODELS

    register_all_modules(init_default_scope=True)
    (tiny_folder / 'measured.py').write_text(
        "_base_ = 'tiny.py'\nmodel = dict(test_cfg=dict(max_per_img=30))\n")
    torch.manual_seed(0)
    model = MODELS.build(load_config(str(tiny_folder / 'measured.py')).model)
    model.init_weights()
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=.03)
    torch.nn.init.constant_(model.bbox_head.retina_cls.bias, -2.)
    path = tiny_folder / 'detector.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope='module')
def pose_model(tiny_folder):
    """The weights of tiny_pose.py before any training, but with scores around 0.7."""
    from mmengine.registry import MODELS
    from mmpose.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = MODELS.build(load_config(str(tiny_folder / 'tiny_pose.py')).model)
    model.init_weights()
    torch.nn.init.normal_(model.head.final_layer.weight, std=.02)
    torch.nn.init.constant_(model.head.final_layer.bias, .7)
    path = tiny_folder / 'pose_model.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope='module')
def detector_results(tiny_folder, detector, run_tool):
    """What tools/test.py measures, and saves in detector.pkl."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_folder)
        run_tool('test', 'measured.py', detector, '--out', 'detector.pkl', '--work-dir',
                 'work_dirs/measured')
        metrics, = Path('work_dirs/measured').rglob('*_*/*.json')
        return json.loads(metrics.read_text())


@pytest.fixture(scope='module')
def pose_results(tiny_folder, pose_model, run_tool):
    """What tools/test.py measures, and saves in pose.pkl."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_folder)
        Path('measured_pose.py').write_text(
            "_base_ = 'tiny_pose.py'\n"
            "test_evaluator = [dict(type='PCKAccuracy', thr=0.5),\n"
            "                  dict(type='mmskd.PoseCalibrationMetric', thr=0.5)]\n")
        run_tool('test', 'measured_pose.py', pose_model, '--out', 'pose.json', '--dump',
                 'pose.pkl', '--work-dir', 'work_dirs/measured_pose')
        return json.loads(Path('pose.json').read_text())


def test_a_detectors_results_file(run_tool, tiny, detector, detector_results, capsys):
    detector.rename('away.pth')  # no model is needed
    try:
        run_tool('analysis/eval_calibration', 'detector.pkl', 'measured.py')
    finally:
        Path('away.pth').rename(detector)
    rows = table_of(capsys.readouterr().out)
    assert len(rows) == 7
    for key, (value, ) in rows.items():
        assert value == pytest.approx(detector_results[key], abs=1e-4), key
    run_tool('analysis/eval_calibration', 'detector.pkl', 'measured.py', '--options',
             'iou_thr=0.1', 'classwise=True')
    assert len(table_of(capsys.readouterr().out)) > 7


@needs_mmpose
def test_a_pose_estimators_results_file(run_tool, tiny, pose_results, capsys):
    assert 0 < pose_results['PCK'] < 1
    run_tool('analysis/eval_calibration', 'pose.pkl', 'measured_pose.py')
    rows = table_of(capsys.readouterr().out)
    assert len(rows) == 11
    for key, (value, ) in rows.items():
        assert value == pytest.approx(pose_results[key], abs=1e-4), key


def check_report(report, rows, results, metric):
    """A report and its table against the predictions that tools/test.py saved."""
    assert report['fitted_on'] == 'val' and report['measured_on'] == 'test'
    metric.process(None, results)
    scores, hits = metric.scores_and_hits(metric.results)
    # val and test are the same images in these configs
    assert report['predictions'] == len(scores)
    assert report['temperature'] == pytest.approx(fit_temperature(scores, hits), rel=1e-3)
    before, after = report['before'], report['after']
    assert after['NLL'] < before['NLL']
    assert after['AURC'] == before['AURC'] and after['EAURC'] == before['EAURC']
    assert before.keys() == after.keys() == rows.keys()
    for key in ('NLL', 'ECE', 'AURC'):
        assert rows[key] == pytest.approx([before[key], after[key]], abs=1e-4)


def test_temperature_of_a_detector(run_tool, tiny, detector, detector_results, capsys):
    run_tool('analysis/fit_temperature', 'measured.py', detector, '--eval-split', 'test', '--out',
             'temperature.json', '--options', *DETECTOR_OPTIONS)
    output = capsys.readouterr()
    assert '100%' not in output.err, 'a progress bar without a terminal'
    report = json.loads(Path('temperature.json').read_text())
    assert report['after']['oLRP'] == report['before']['oLRP']
    metric = METRICS.build(dict(type='mmskd.DetCalibrationMetric', iou_thr=.1, score_thr=.01,
                                ann_file='data/shapes/annotations/val.json'))
    check_report(report, table_of(output.out), load_results('detector.pkl'), metric)


@needs_mmpose
def test_temperature_of_a_pose_estimator(run_tool, tiny, pose_model, pose_results, capsys):
    run_tool('analysis/fit_temperature', 'tiny_pose.py', pose_model, '--eval-split', 'test',
             '--quiet', '--out', 'temperature.json', '--options', *POSE_OPTIONS)
    output = capsys.readouterr()
    assert '100%' not in output.err
    metric = METRICS.build(dict(type='mmskd.PoseCalibrationMetric', thr=.5, per_keypoint=True))
    metric.dataset_meta = dataset_meta(load_config('tiny_pose.py').test_dataloader.dataset)
    check_report(json.loads(Path('temperature.json').read_text()), table_of(output.out),
                 load_results('pose.pkl'), metric)


def test_same_images_are_pointed_out(run_tool, tiny, detector, capsys):
    run_tool('analysis/fit_temperature', 'measured.py', detector, '--quiet', '--options',
             *DETECTOR_OPTIONS)
    assert '--eval-split measures on others' in capsys.readouterr().out


def test_no_temperature_is_explained(run_tool, tiny, detector):
    with pytest.raises(SystemExit, match='fit_temperature.py: no temperature can be fitted'):
        run_tool('analysis/fit_temperature', 'measured.py', detector, '--quiet', '--options',
                 'score_thr=1.0')


def test_weights_of_another_model_are_refused(run_tool, tiny, detector):
    """Half-loaded, it would be measured all the same."""
    weights = torch.load(detector, weights_only=True)['state_dict']
    del weights['bbox_head.retina_cls.bias']
    torch.save(dict(state_dict=weights), 'other.pth')
    with pytest.raises(SystemExit, match='(?s)other.pth is no checkpoint of this .*retina_cls'):
        run_tool('analysis/fit_temperature', 'measured.py', 'other.pth', '--quiet')


class Evil:

    def __reduce__(self):
        return os.system, ('touch evil_was_here', )


def test_runs_nothing_of_a_crafted_file(run_tool, tiny):
    Path('evil.pkl').write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(SystemExit, match='evil.pkl was not loaded: it asks for posix.system'):
        run_tool('analysis/eval_calibration', 'evil.pkl', 'tiny.py')
    torch.save(dict(state_dict=Evil()), 'evil.pth')
    with pytest.raises(SystemExit, match='evil.pth was not loaded: it asks for posix.system'):
        run_tool('analysis/fit_temperature', 'tiny.py', 'evil.pth')
    assert not Path('evil_was_here').exists()


@pytest.mark.parametrize('tool, argv, message', [
    ('eval_calibration', ['nowhere.pkl', 'tiny.py'], 'no results file nowhere.pkl'),
    ('eval_calibration', ['nowhere.pkl', 'nowhere.py'], 'no config file nowhere.py'),
    ('fit_temperature', ['tiny.py', 'nowhere.pth'], 'no checkpoint nowhere.pth'),
    ('fit_temperature', ['tiny.py', 'https://host/x.pth', '--out', 'x.txt'], 'must end in .json'),
    ('fit_temperature', ['tiny.py', 'https://host/x.pth', '--cfg-options', 'test_dataloader=None',
                         '--eval-split', 'test'], 'the config has no test_dataloader'),
    ('fit_temperature', ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'https://host/x.pth'],
     'instances_val2017.json (val), which is not there'),
])
def test_errors_before_anything_is_built(tool, argv, message, run_tool, tiny):
    with pytest.raises(SystemExit) as error:
        run_tool(f'analysis/{tool}', *argv)
    assert message in str(error.value)
