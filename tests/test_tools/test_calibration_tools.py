"""tools/analysis/eval_calibration.py and calibrate.py against tools/test.py."""
import contextlib
import io
import json
import os
import pickle
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
needs_mmpose = pytest.mark.skipif(find_spec('mmpose') is None, reason='mmpose is not installed')

from mmskd.config import load_config  # noqa: E402
from mmskd.evaluation.calibrators import Calibrator  # noqa: E402

MEASURED = """
_base_ = 'tiny.py'
model = dict(test_cfg=dict(max_per_img=30))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""
HELD_OUT = """
_base_ = 'measured.py'
test_dataloader = dict(dataset=dict(
    ann_file='annotations/train.json', data_prefix=dict(img='train/')))
test_evaluator = dict(
    _delete_=True, type='CocoMetric', metric='bbox',
    ann_file='data/shapes/annotations/train.json')
"""
# Hits that an untrained model has as well
POSE_OPTIONS = ('thr=0.5', 'per_keypoint=True')


def table_of(text):
    """The rows of a printed table: {name: [values]}."""
    rows = re.findall(r'│ (\S+) +│((?: +\S+ │)+)', text)
    return {name: [float(value) for value in values.split('│')[:-1]] for name, values in rows}


def one_line(text):
    return ' '.join(text.split())


@pytest.fixture(scope='module')
def detector(tiny_folder):
    """Weights of measured.py before any training, but with scores from 0.2 to 0.4."""
    from mmdet.utils import register_all_modules
    from mmengine.registry import MODELS

    register_all_modules(init_default_scope=True)
    (tiny_folder / 'measured.py').write_text(MEASURED)
    (tiny_folder / 'held_out.py').write_text(HELD_OUT)
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
    text = capsys.readouterr().out
    rows = table_of(text)
    assert len(rows) == 18
    text = one_line(text)
    assert 'NLL, ECE, Brier' in text and 'do not compare' in text and '_own_thr: at ' in text
    for key, (value, ) in rows.items():
        assert value == pytest.approx(detector_results[key], abs=1e-4), key
    run_tool('analysis/eval_calibration', 'detector.pkl', 'measured.py', '--options',
             'iou_thr=0.1', 'classwise=True')
    assert len(table_of(capsys.readouterr().out)) > 17


@needs_mmpose
def test_a_pose_estimators_results_file(run_tool, tiny, pose_results, capsys):
    assert 0 < pose_results['PCK'] < 1
    run_tool('analysis/eval_calibration', 'pose.pkl', 'measured_pose.py')
    rows = table_of(capsys.readouterr().out)
    assert len(rows) == 15
    for key, (value, ) in rows.items():
        assert value == pytest.approx(pose_results[key], abs=1e-4), key


@pytest.fixture(scope='module')
def calibrated(tiny_folder, detector, run_tool):
    """calibrator.json, fitted on the images of val; and what was printed."""
    stdout = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stdout):
        patch.chdir(tiny_folder)
        run_tool('analysis/calibrate', 'held_out.py', detector, '--out', 'calibrator.json',
                 '--options', 'score_thr=0.0')
    return stdout.getvalue()


def test_a_detectors_calibrator(run_tool, tiny, detector, calibrated, capsys):
    calibrator = Calibrator.load('calibrator.json')
    assert calibrator.kind == 'platt' and calibrator.target == 'iou' and not calibrator.classwise
    assert calibrator.classes == ['circle', 'ellipse', 'square', 'rounded_square', 'rhombus']
    assert calibrator.fitted_on['split'] == 'val' and calibrator.fitted_on['images'] == 4
    text = one_line(calibrated)
    assert 'measured on test (8 images)' in text and 'kept at the LRP-optimal thresholds' in text
    for note in calibrator.notes:
        assert note in text
    rows = table_of(calibrated)
    assert rows['calibration/LaECE_0'][1] < rows['calibration/LaECE_0'][0]
    for key in ('LRP', 'LRP_FN', 'oLRP', 'AURC', 'detections', 'emitted'):
        assert len(set(rows[f'calibration/{key}'])) == 1, key
    # tools/test.py and eval_calibration.py come to the same values, before and after
    for column, options in enumerate(([], ['--calibrator', 'calibrator.json'])):
        run_tool('test', 'held_out.py', detector, '--out', 'held_out.pkl', '--work-dir',
                 'work_dirs/held_out', *options)
        capsys.readouterr()
        run_tool('analysis/eval_calibration', 'held_out.pkl', 'held_out.py', '--options',
                 'thresholds=calibrator.json', 'score_thr=0.0')
        again = table_of(capsys.readouterr().out)
        assert again.keys() == rows.keys()
        for key, (value, ) in again.items():
            assert value == pytest.approx(rows[key][column], abs=1e-4, nan_ok=True), key


@pytest.fixture(scope='module')
def studied(tiny_folder, detector, run_tool):
    """What a study of two runs prints, one by its config and one by its work dir."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_folder)
        return study_of_two(detector, run_tool)


def study_of_two(detector, run_tool):
    for name, epoch, epochs in (('study/a/0', 1, 1), ('study/b/0', 1, 3), ('study/c/0', 0, 1)):
        logs = Path(name) / '20260101_000000' / 'vis_data'
        logs.mkdir(parents=True)
        cfg = load_config('held_out.py')
        cfg.train_cfg = dict(by_epoch=True, max_epochs=epochs)
        cfg.dump(logs / 'config.py')
        (logs / 'scalars.json').write_text('{"loss": 1.0, "epoch": 1, "iter": 4, "step": 4}\n')
        if epoch:
            shutil.copy(detector, Path(name) / f'epoch_{epoch}.pth')
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_tool('analysis/calibration_study', '--run', 'held_out.py', detector, '--runs', 'study',
                 '--out', 'study.json', '--bootstrap', '5', '--quiet')
    return printed.getvalue()


def test_a_study_of_all_calibrators(tiny, studied, calibrated):
    assert 'isotonic, iou, each class' in studied
    run, again = json.loads(Path('study.json').read_text())['runs']
    assert (run['name'], again['name']) == ('held_out.py', 'a/0')
    assert run['rows'] == again['rows'] and run['data'] == again['data']
    assert (run['fitted_on'], run['measured_on']) == ('val', 'test')
    assert run['data']['images'] == 8
    rows = {(row['kind'], row['target'], row['classwise']): row['values'] for row in run['rows']}
    assert len(rows) == 13
    before, after = rows['none', 'iou', False], rows['platt', 'iou', False]
    by_hand = table_of(calibrated)
    for key in ('LaECE_0', 'LaACE_0', 'OCE'):
        assert [before[f'calibration/{key}'], after[f'calibration/{key}']] == pytest.approx(
            by_hand[f'calibration/{key}'], abs=1e-4)
    for values in rows.values():  # a map that rises changes no order of a class
        assert values['coco/bbox_mAP'] == before['coco/bbox_mAP']
        assert values['calibration/LRP'] == before['calibration/LRP']
        assert values['calibration/LaECE_0_low'] <= values['calibration/LaECE_0_high']
    assert len({values['calibration/LaECE_0'] for values in rows.values()}) > 6


def test_a_study_says_what_it_leaves_out(studied):
    assert 'b/0 is left out: stopped at epoch 1 of 3' in studied
    assert 'c/0 is left out: it has no checkpoint' in studied


def test_a_study_grows(tiny, studied, run_tool, monkeypatch):
    """What the file has of the same checkpoint and settings is not measured again."""
    before = json.loads(Path('study.json').read_text())['runs']
    shutil.copy('study.json', 'grown.json')

    def never(*args, **kwargs):
        raise ValueError('measured again')

    monkeypatch.setattr('mmskd.evaluation.calibrating.predict_apart', never)
    run_tool('analysis/calibration_study', '--runs', 'study', '--out', 'grown.json', '--bootstrap',
             '5', '--quiet')
    assert json.loads(Path('grown.json').read_text())['runs'] == before
    with pytest.raises(SystemExit, match='measured again'):
        run_tool('analysis/calibration_study', '--runs', 'study', '--out', 'grown.json',
                 '--bootstrap', '6', '--quiet')


def test_the_table_of_a_study(tiny, studied, load_tool):
    runs = json.loads(Path('study.json').read_text())['runs']
    text, run = load_tool('analysis/calibration_tables').study_text(runs), runs[0]
    lines = [line.split(' | ') for line in text.splitlines() if line.startswith('| platt')]
    assert [line[0] for line in lines] == [
        f'| platt, {target}, {which}' for target in ('hits', 'IoU')
        for which in ('all classes', 'each class')]
    value = next(row['values']['calibration/LaECE_0'] for row in run['rows']
                 if (row['kind'], row['target'], row['classwise']) == ('platt', 'iou', False))
    assert lines[2][1] == f'{value:.3f} / {value:.3f}'


def test_files_that_have_no_place_for_a_study(run_tool, tiny, detector):
    Path('list.json').write_text('[1]')
    with pytest.raises(SystemExit, match='list.json is no file of this tool'):
        run_tool('analysis/calibration_study', '--run', 'held_out.py', detector, '--out',
                 'list.json')
    Path('nothing').mkdir()
    for folder, message in (((), 'there is nothing to measure'),
                            (('--runs', 'nothing'), 'no work dir')):
        with pytest.raises(SystemExit, match=message):
            run_tool('analysis/calibration_study', '--out', 'x.json', *folder)


@needs_mmpose
def test_a_pose_estimators_calibrator(run_tool, tiny, pose_model, capsys):
    run_tool('analysis/calibrate', 'tiny_pose.py', pose_model, '--halves', '0', '--quiet', '--kind',
             'isotonic', '--out', 'pose.json', '--options', *POSE_OPTIONS)
    output = capsys.readouterr()
    assert '100%' not in output.err
    calibrator = Calibrator.load('pose.json')
    assert calibrator.task == 'pose' and calibrator.target == 'hit' and len(
        calibrator.classes) == 13
    rows = table_of(output.out)
    assert rows['calibration/NLL'][0] != rows['calibration/NLL'][1]
    assert 'fitted to hits' in one_line(output.out)


def test_the_same_images_are_refused(run_tool, tiny, detector, tmp_path):
    """As test_dataloader = val_dataloader, in most of MMDetection's configs."""
    with pytest.raises(SystemExit, match='4 of the 4 images of val are images of test .*--halves'):
        run_tool('analysis/calibrate', 'measured.py', detector, '--quiet')
    shutil.copytree('data/shapes/val', tmp_path / 'renamed')  # the same pictures elsewhere
    with pytest.raises(SystemExit, match='4 of the 4 images of val are images of test'):
        run_tool('analysis/calibrate', 'measured.py', detector, '--quiet', '--cfg-options',
                 f'test_dataloader.dataset.data_prefix.img={tmp_path / "renamed"}/')


def test_halves(run_tool, tiny, detector, capsys):
    run_tool('analysis/calibrate', 'measured.py', detector, '--quiet', '--halves', '3', '--kind',
             'none', '--out', 'half.json')
    text = one_line(capsys.readouterr().out)
    assert '(2 images, a random half by seed 3), measured on the other half (2 images)' in text
    half = Calibrator.load('half.json')
    assert half.kind == 'none' and len(half.images) == 2


def test_only_a_fit(run_tool, tiny, detector, capsys):
    run_tool('analysis/calibrate', 'measured.py', detector, '--quiet', '--measure', 'none', '--out',
             'fit.json')
    assert not table_of(capsys.readouterr().out)
    assert len(Calibrator.load('fit.json').images) == 4


def test_nothing_to_fit_is_explained(run_tool, tiny, detector):
    with pytest.raises(SystemExit, match='calibrate.py: nothing can be fitted'):
        run_tool('analysis/calibrate', 'measured.py', detector, '--quiet', '--halves', '0',
                 '--cfg-options', 'model.test_cfg.score_thr=1.0')


def test_weights_of_another_model_are_refused(run_tool, tiny, detector):
    """Half-loaded, it would be measured all the same."""
    weights = torch.load(detector, weights_only=True)['state_dict']
    del weights['bbox_head.retina_cls.bias']
    torch.save(dict(state_dict=weights), 'other.pth')
    with pytest.raises(SystemExit, match='other.pth does not fit RetinaNet: .*retina_cls'):
        run_tool('analysis/calibrate', 'measured.py', 'other.pth', '--quiet', '--halves', '0')


class Evil:

    def __reduce__(self):
        return os.system, ('touch evil_was_here', )


def test_runs_nothing_of_a_crafted_file(run_tool, tiny):
    Path('evil.pkl').write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(SystemExit, match='evil.pkl was not loaded: it asks for posix.system'):
        run_tool('analysis/eval_calibration', 'evil.pkl', 'tiny.py')
    torch.save(dict(state_dict=Evil()), 'evil.pth')
    with pytest.raises(SystemExit, match='evil.pth was not loaded: it asks for posix.system'):
        run_tool('analysis/calibrate', 'tiny.py', 'evil.pth', '--halves', '0')
    assert not Path('evil_was_here').exists()


def fewer(sample, key):
    """With fewer of these than of everything else."""
    pred = sample['pred_instances']
    return dict(sample, pred_instances=dict(pred, **{key: pred[key][:-1]}))


HOSTILE = {
    'no predictions': (lambda first, *rest: [dict(img_id=1), *rest], 'in its pred_instances'),
    'no dict': (lambda first, *rest: [dict(first, pred_instances=3), *rest],
                'in its pred_instances'),
    'no number': (lambda first, *rest: [dict(first, img_id=[1], gt_instances=3), *rest],
                  'a sample has no'),
    'another': (lambda first, *rest: [{}], 'a sample has no'),
}
def other(**changes):
    """With these predictions in place of the first sample's."""
    return lambda first, *rest: [
        dict(first, pred_instances=dict(first['pred_instances'], **{
            key: change(first['pred_instances']) for key, change in changes.items()})), *rest]


OF_BOXES = {
    'an image twice': (lambda first, *rest: [first, first], 'was predicted twice'),
    **{f'fewer {key}': (lambda first, *rest, key=key: [fewer(first, key), *rest],
                        'not of one number of detections')
       for key in ('bboxes', 'scores', 'labels')},
    'labels of another': (other(labels=lambda pred: pred['labels'] + 7),
                          'but the data set has 5 classes'),
    'halves of labels': (other(labels=lambda pred: pred['scores']), 'no whole numbers'),
    'an unknown image': (lambda first, *rest: [dict(first, img_id=10**6), *rest],
                         'is not in ann_file'),
    'flat boxes': (other(bboxes=lambda pred: pred['scores']), 'boxes, scores and labels'),
}
OF_KEYPOINTS = {
    'fewer scores': (other(keypoint_scores=lambda pred: pred['keypoint_scores'][:, :-1]),
                     'must be 13 finite numbers'),
    'words': (other(keypoints=lambda pred: ['a']), 'are no numbers'),
}


def test_what_a_test_does_not_write(run_tool, tiny, detector_results, pose_results, capsys):
    from mmengine.registry import init_default_scope

    from mmskd.config import project_of
    from mmskd.errors import UsageError
    from mmskd.evaluation.offline import calibration_metric, dataset_meta
    from mmskd.evaluation.results import load_results
    cases = [('detector.pkl', 'measured.py', {**HOSTILE, **OF_BOXES}),
             ('pose.pkl', 'measured_pose.py', {**HOSTILE, **OF_KEYPOINTS})]
    for results, config, hostile in cases:
        known, cfg = load_results(results), load_config(config)
        init_default_scope(project_of(cfg))
        metric = calibration_metric(cfg, 'test')
        metric.dataset_meta = dataset_meta(cfg.test_dataloader.dataset)
        for name, (spoil, message) in hostile.items():
            samples, metric.results = spoil(*known), []
            with pytest.raises(UsageError) as refused:
                metric.process(None, samples)
                metric.evaluate(len(samples))
            assert message in str(refused.value), name
    for content in ([
            dict(known[0], gt_instances=dict(known[0]['gt_instances'], keypoints_visible='a'))
    ], [dict(known[0], raw_ann_info=3, gt_instances={})]):
        Path('hostile.pkl').write_bytes(pickle.dumps(content))
        with pytest.raises(SystemExit) as ending:
            run_tool('analysis/eval_calibration', 'hostile.pkl', config, '--options', 'hit=oks')
        line, = capsys.readouterr().err.splitlines()
        assert ending.value.code == 2 and line.startswith('eval_calibration.py: ')
    with pytest.raises(ValueError):
        run_tool('analysis/eval_calibration', 'hostile.pkl', config, '--traceback')


def test_a_pose_twice_in_a_file_is_refused(run_tool, tiny):
    sample = dict(id=3, img_id=1, img_path='a.png')
    Path('twice.pkl').write_bytes(pickle.dumps([sample, sample]))
    with pytest.raises(SystemExit, match=r'image a.png \(instance 3\) was predicted twice'):
        run_tool('analysis/eval_calibration', 'twice.pkl', 'tiny_pose.py')



@pytest.mark.parametrize('tool, argv, message', [
    ('eval_calibration', ['nowhere.pkl', 'tiny.py'], 'no results file nowhere.pkl'),
    ('eval_calibration', ['nowhere.pkl', 'nowhere.py'], 'no config file nowhere.py'),
    ('eval_calibration', ['nowhere.pkl', 'tiny.py', '--options', 'n_bins=0'],
     'no results file nowhere.pkl'),
    ('calibrate', ['tiny.py', 'nowhere.pth'], 'no checkpoint nowhere.pth'),
    ('calibrate', ['tiny.py', 'https://host/x.pth', '--out', 'x.txt'], 'must end in .json'),
    ('calibrate', ['tiny.py', 'https://host/x.pth', '--cfg-options', 'test_dataloader=None'],
     'the config has no test_dataloader'),
    ('calibrate', ['tiny.py', 'https://host/x.pth', '--options', 'calibrator=x.json'],
     '--options calibrator: it is what this tool makes'),
    ('calibration_study', ['--run', 'tiny.py', 'nowhere.pth', '--out', 'x.json'],
     'no checkpoint nowhere.pth'),
    ('calibration_study', ['--run', 'tiny_pose.py', 'https://host/x.pth', '--out', 'x.json'],
     'tiny_pose.py is no detector'),
    ('calibrate', ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'https://host/x.pth'],
     'instances_val2017.json (val), which is not there'),
])
def test_errors_before_anything_is_built(tool, argv, message, run_tool, tiny):
    with pytest.raises(SystemExit) as error:
        run_tool(f'analysis/{tool}', *argv)
    assert message in str(error.value)
