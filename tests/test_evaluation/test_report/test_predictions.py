"""Predictions of real checkpoints: what they say, and when they are made again."""
import json
import pickle
import shutil

import numpy as np
import pytest

from mmskd.errors import UsageError
from mmskd.evaluation.report import predictions as module
from mmskd.evaluation.report.judging import Rule, calibration_metrics, judge
from mmskd.evaluation.report.predictions import Predictions, predictions_of
from mmskd.evaluation.report.runs import Run


@pytest.fixture
def run(detection_runs, tmp_path):
    """A run with a folder of its own."""
    shutil.copytree(detection_runs[0], tmp_path / 'run', ignore=shutil.ignore_patterns('report'))
    return Run(tmp_path / 'run')


@pytest.fixture
def made(monkeypatch):
    """The checkpoints for which predictions were made."""
    made = []
    make = module._predict
    monkeypatch.setattr(module, '_predict',
                        lambda cfg, checkpoint, *args: made.append(checkpoint.name) or make(
                            cfg, checkpoint, *args))
    return made


def test_the_metrics_are_those_that_the_training_logged(detection_runs):
    run = Run(detection_runs[-1])
    predictions = predictions_of(run)
    logged = run.last_metrics()
    assert {'coco/bbox_mAP', 'calibration/ECE'} <= set(logged)
    assert predictions.metrics == pytest.approx(logged, nan_ok=True)
    # and so are those that are computed from the arrays
    rule = Rule.of(run.cfg)
    assert rule == Rule(score_thr=0.0, n_bins=10)
    computed = calibration_metrics(predictions, judge(predictions, rule), rule)
    assert len(computed) == 7
    assert computed == pytest.approx({key: logged[key] for key in computed}, nan_ok=True)


def test_keypoints_are_those_that_the_training_measured(pose_runs):
    run = Run(pose_runs[0])
    predictions = predictions_of(run)
    judged = judge(predictions, Rule.of(run.cfg))
    assert predictions.metrics == pytest.approx(run.last_metrics())
    pck = [judged.hits[judged.labels == k].mean() for k in range(13)]
    assert np.mean(pck) == pytest.approx(run.last_metrics()['PCK'])
    assert predictions.names[0] == 'head' and len(predictions.links) == 12


def test_they_are_made_once(run, made):
    first = predictions_of(run)
    again = predictions_of(Run(run.folder))
    assert made == ['epoch_2.pth']
    assert first.names == again.names and first.metrics == pytest.approx(again.metrics, nan_ok=True)
    for key, value in first.arrays.items():
        np.testing.assert_array_equal(value, again.arrays[key])
        assert value.dtype == again.arrays[key].dtype


@pytest.mark.parametrize('change', ['checkpoint', 'config', 'damage'])
def test_they_are_made_again_when_they_are_out_of_date(run, made, change):
    predictions_of(run)
    cache, = run.folder.glob('report/*.npz')
    if change == 'checkpoint':
        shutil.copy(run.folder / 'epoch_1.pth', run.folder / 'epoch_2.pth')
    elif change == 'config':
        run.cfg.model.test_cfg.max_per_img = 7
    else:
        cache.write_bytes(cache.read_bytes()[:200])
    predictions = predictions_of(run)
    assert len(made) == 2
    if change == 'config':
        assert len(predictions.scores) <= 4 * 7


def test_a_folder_that_cannot_be_written_is_no_obstacle(run, made):
    (run.folder / 'report').write_text('in the way')
    assert len(predictions_of(run).image_ids) == 4


class Exploit:

    def __reduce__(self):
        return print, ('the cache ran code', )


def test_a_cache_runs_no_code(tmp_path, capsys):
    path = tmp_path / 'cache.npz'
    meta = dict(format=module.FORMAT, fingerprint='x', task='pose', names=[], links=[], metrics={})
    np.savez(path, meta=np.array(json.dumps(meta)), scores=np.array([Exploit()], dtype=object))
    np.load(path, allow_pickle=True)['scores']
    assert 'ran code' in capsys.readouterr().out, 'the exploit would work'
    assert Predictions.load(path, 'x') is None
    assert 'ran code' not in capsys.readouterr().out


def test_a_results_pickle_is_left_alone(run, capsys):
    (run.folder / 'results.pkl').write_bytes(pickle.dumps(Exploit()))
    predictions_of(run)
    assert 'ran code' not in capsys.readouterr().out


@pytest.mark.parametrize('spoil, message', [
    (lambda run: (run.folder / 'epoch_2.pth').unlink() or (run.folder / 'epoch_1.pth').unlink(),
     'holds no last checkpoint'),
    (lambda run: run.cfg.val_dataloader.dataset.update(data_root='gone'), 'which is not there'),
    (lambda run: run.cfg.model.bbox_head.update(num_classes=3), 'does not fit the config'),
])
def test_what_is_missing_is_named(run, spoil, message):
    spoil(run)
    with pytest.raises(UsageError, match=message):
        predictions_of(run)


def test_a_config_without_the_split(run):
    with pytest.raises(UsageError, match='no test_dataloader'):
        predictions_of(run, 'test')


def test_boxes_are_judged_in_the_original_image(detection_runs):
    """The pipeline resizes 160x128 to 64x64, boxes included; the ground truth must not follow."""
    predictions = predictions_of(Run(detection_runs[0]))
    content = json.loads((detection_runs[0].parent / 'data/annotations/val.json').read_text())
    expected = sorted([x, y, x + w, y + h] for x, y, w, h in
                      (item['bbox'] for item in content['annotations']))
    np.testing.assert_allclose(sorted(predictions.gt_boxes.tolist()), expected, atol=1e-3)
