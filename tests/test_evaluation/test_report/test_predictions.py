"""Predictions of real checkpoints: what they say, and when they are made again."""
import json
import pickle
import shutil

import numpy as np
import pytest

from mmskd.errors import UsageError
from mmskd.evaluation.detection import DetectionRule
from mmskd.evaluation.report import predictions as module
from mmskd.evaluation.report.judging import verdicts
from mmskd.evaluation.report.predictions import DataSets, Predictions, collate, predictions_of
from mmskd.evaluation.report.rules import rule_of
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
    assert predictions.metrics == pytest.approx(logged, nan_ok=True) and predictions.failure == ''
    # and so are those that are computed from the arrays
    rule = rule_of(run.cfg)
    assert rule == DetectionRule(score_thr=0.0, n_bins=10)
    values = verdicts(predictions, rule).values
    shared = {key: value for key, value in values.items() if f'calibration/{key}' in logged}
    assert len(shared) > 12
    assert shared == pytest.approx({key: logged[f'calibration/{key}'] for key in shared},
                                   nan_ok=True)
    assert values['mAP'] == pytest.approx(logged['coco/bbox_mAP'], abs=0.0006)  # rounded


def test_keypoints_are_those_that_the_training_measured(pose_runs):
    run = Run(pose_runs[0])
    predictions = predictions_of(run)
    assert predictions.metrics == pytest.approx(run.last_metrics())
    values = verdicts(predictions, rule_of(run.cfg)).values
    assert values['PCK'] == pytest.approx(run.last_metrics()['PCK'])
    assert predictions.names[0] == 'head' and len(predictions.links) == 12


def test_they_are_made_once(run, made):
    first = predictions_of(run)
    again = predictions_of(Run(run.folder))
    assert made == ['epoch_2.pth']
    assert first.names == again.names and first.metrics == pytest.approx(again.metrics, nan_ok=True)
    for key, value in first.arrays.items():
        np.testing.assert_array_equal(value, again.arrays[key])
        assert value.dtype == again.arrays[key].dtype


@pytest.mark.parametrize('change', ['checkpoint', 'config', 'damage', 'annotations'])
def test_they_are_made_again_when_they_are_out_of_date(run, made, change, tmp_path):
    own_data(run, tmp_path)
    before = predictions_of(run)
    cache, = run.folder.glob('report/*.npz')
    if change == 'checkpoint':
        shutil.copy(run.folder / 'epoch_1.pth', run.folder / 'epoch_2.pth')
    elif change == 'config':
        run.cfg.model.test_cfg.max_per_img = 7
    elif change == 'annotations':  # in place, and no more objects than before
        move_objects(run, tmp_path)
    else:
        cache.write_bytes(cache.read_bytes()[:200])
    predictions = predictions_of(run)
    assert len(made) == 2
    if change == 'config':
        assert len(predictions.scores) <= 4 * 7
    if change == 'annotations':
        assert not np.array_equal(predictions.gt_boxes, before.gt_boxes)


def own_data(run, tmp_path):
    """Let a run read a copy of its data."""
    data = tmp_path / 'data'
    shutil.copytree(run.cfg.val_dataloader.dataset.data_root, data)
    run.cfg.val_dataloader.dataset.data_root = str(data)
    for metric in run.cfg.val_evaluator:
        metric.ann_file = str(data / 'annotations/val.json')
    return data / 'annotations/val.json'


def move_objects(run, tmp_path):
    file = tmp_path / 'data/annotations/val.json'
    content = json.loads(file.read_text())
    for item in content['annotations']:
        item['bbox'][0] += 3
    file.write_text(json.dumps(content))


def test_a_folder_that_cannot_be_written_is_no_obstacle(run, made):
    (run.folder / 'report').write_text('in the way')
    assert len(predictions_of(run).image_ids) == 4


class Exploit:

    def __reduce__(self):
        return print, ('the cache ran code', )


def test_a_cache_runs_no_code(tmp_path, capsys):
    path = tmp_path / 'cache.npz'
    meta = dict(format=module.FORMAT, fingerprint='x', task='pose', names=[], links=[], sigmas=[],
                metrics={}, failure='')
    np.savez(path, meta=np.array(json.dumps(meta)), scores=np.array([Exploit()], dtype=object))
    np.load(path, allow_pickle=True)['scores']
    assert 'ran code' in capsys.readouterr().out, 'the exploit would work'
    assert Predictions.load(path, 'x') is None
    assert 'ran code' not in capsys.readouterr().out


def test_a_results_pickle_is_left_alone(run, capsys):
    (run.folder / 'results.pkl').write_bytes(pickle.dumps(Exploit()))
    predictions_of(run)
    assert 'ran code' not in capsys.readouterr().out


def write(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_what_mmdet_leaves_out_is_known(run, tmp_path):
    """Objects marked to be ignored are dropped from mmdet's samples."""
    file = own_data(run, tmp_path)
    write(file, lambda content: content['annotations'][0].update(ignore=1))
    predictions = predictions_of(run)
    assert predictions.gt_ignored.sum() == 1 and not predictions.gt_crowds.any()


def test_classes_are_named_in_the_order_of_the_labels(run, tmp_path):
    file = own_data(run, tmp_path)
    before = predictions_of(run)
    write(file, lambda content: content['categories'].reverse())
    after = predictions_of(run)
    classes = DataSets().get(run.cfg, 'val').metainfo['classes']
    assert before.names == list(classes) and after.names == before.names[::-1]
    np.testing.assert_array_equal(after.labels, before.labels)
    # The objects are what they were
    for predictions in (before, after):
        assert sorted(predictions.names[label] for label in predictions.gt_labels) == sorted(
            before.names[label] for label in before.gt_labels)


def test_images_of_two_files_with_the_same_ids_are_told_apart(run, tmp_path):
    file = own_data(run, tmp_path)
    other = file.with_name('other.json')
    shutil.copy(file, other)
    write(other, lambda content: [item['bbox'].__setitem__(0, item['bbox'][0] + 2)
                                  for item in content['annotations']])
    single = run.cfg.val_dataloader.dataset
    parts = [dict(single), dict(single, ann_file='annotations/other.json')]
    run.cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    predictions = predictions_of(run)
    assert len(predictions.image_ids) == 8 and len(set(predictions.image_ids.tolist())) == 4
    objects = np.bincount(predictions.gt_images, minlength=8)
    np.testing.assert_array_equal(objects[::2], objects[1::2])
    for i in range(0, 8, 2):  # a pair of each id, in the order of the files
        mine, theirs = (predictions.gt_boxes[predictions.gt_images == k] for k in (i, i + 1))
        np.testing.assert_allclose(theirs[:, 0], mine[:, 0] + 2, atol=1e-4)
    assert 'predicted twice' in predictions.failure or predictions.failure == ''
    # Each image meets the objects of its own file: the truth is all right
    arrays = dict(predictions.arrays, boxes=predictions.gt_boxes, labels=predictions.gt_labels,
                  images=predictions.gt_images,
                  scores=np.linspace(.1, 1, len(predictions.gt_labels)))
    perfect = Predictions('detection', predictions.names, arrays)
    assert verdicts(perfect, DetectionRule()).judged.hits.all()


def test_the_order_of_the_objects_does_not_matter(run, tmp_path):
    file = own_data(run, tmp_path)
    before = predictions_of(run)
    write(file, lambda content: (content['annotations'].reverse(), content['images'].reverse()))
    after = predictions_of(run)
    for key in before.arrays:
        np.testing.assert_array_equal(before.arrays[key], after.arrays[key])


def test_images_in_another_order_are_refused(detection_runs):
    run = Run(detection_runs[0])
    dataset = DataSets().get(run.cfg, 'val')
    empty = dict(boxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, int))
    records = [dict(empty, image_id=dataset.get_data_info(i)['img_id']) for i in range(4)]
    assert len(collate('detection', records, dataset).image_ids) == 4
    with pytest.raises(UsageError, match='not predicted in the order of the data set'):
        collate('detection', records[::-1], dataset)


def test_labels_that_the_annotations_lack_are_refused(run, tmp_path, monkeypatch):
    file = own_data(run, tmp_path)
    predictions_of(run)

    def drop(content):
        content['categories'] = content['categories'][:1]
        content['annotations'] = [item for item in content['annotations']
                                  if item['category_id'] == content['categories'][0]['id']]

    write(file, drop)
    run.cfg.val_evaluator = []
    with pytest.raises(UsageError, match='metainfo.classes has .* no such category, but circle:'):
        predictions_of(run)
    # Of a data set that numbers its labels in another way than mmdet.CocoDataset
    monkeypatch.setattr('mmskd.evaluation.report.predictions.check_data', lambda *args: None)
    with pytest.raises(UsageError, match='of its classes the annotations have 1 only: circle'):
        predictions_of(run)


def test_a_checkpoint_of_an_earlier_training_is_refused(run):
    """A rerun in the same folder that has saved nothing yet."""
    later, = run.folder.glob('*/vis_data')
    shutil.move(later.parent, run.folder / '20200101_000000')
    shutil.copytree(run.folder / '20200101_000000', run.folder / '20990101_000000')
    again = Run(run.folder)
    assert again.trainings == 2 and again.checkpoint().name == 'epoch_2.pth'
    with pytest.raises(UsageError, match="epoch_2.pth was saved at .* it is an earlier one's"):
        predictions_of(again)
    run.cfg.randomness.seed = 7
    with pytest.raises(UsageError,
                       match='is of seed 0, the last training in this folder of seed 7'):
        predictions_of(run)


@pytest.mark.parametrize('key', ['boxes', 'scores'])
def test_what_is_not_a_number_is_refused(detection_runs, key):
    predictions = predictions_of(Run(detection_runs[0]))
    predictions.arrays[key][3] = np.nan
    with pytest.raises(UsageError, match=f'predicted {key} are not finite'):
        module.check_finite(predictions)


def test_calibrated_scores_are_those_of_the_test_alone(run, tmp_path):
    from mmskd.evaluation.calibrators import fit_calibrator
    rng, path = np.random.default_rng(0), tmp_path / 'calibrator.json'
    names = predictions_of(run).names
    scores = rng.random(200)
    calibrator = fit_calibrator('platt', scores, rng.random(200) < scores**2,
                                rng.integers(0, 5, 200), names)
    calibrator.thresholds = [0.] * 5
    calibrator.save(str(path))
    run.cfg.custom_hooks = [*(run.cfg.custom_hooks or []), dict(
        type='mmskd.CalibratedScores', calibrator=str(path))]
    run.cfg.test_dataloader, run.cfg.test_evaluator = run.cfg.val_dataloader, []
    plain, mapped = predictions_of(run), predictions_of(run, 'test')
    assert not np.allclose(plain.scores, mapped.scores)
    np.testing.assert_array_equal(np.argsort(plain.scores), np.argsort(mapped.scores))
    content = json.loads(path.read_text())
    content['maps'][0]['offset'] = 3.
    path.write_text(json.dumps(content))
    assert (predictions_of(run, 'test').scores > mapped.scores).mean() > .9, 'made again'


def test_an_evaluator_that_fails_is_no_obstacle(run):
    run.cfg.val_evaluator = [dict(type='CocoMetric', ann_file='/nowhere.json', metric='bbox',
                                  prefix='gone'), run.cfg.val_evaluator[1]]
    with pytest.raises(Exception, match='nowhere'):
        predictions_of(run)  # built before anything is predicted
    run.cfg.val_evaluator = [dict(run.cfg.val_evaluator[1], score_thr=0.)]
    run.cfg.val_evaluator[0].ann_file = None  # its samples hold no instances
    predictions = predictions_of(run)
    assert "samples with 'instances'" in predictions.failure and predictions.metrics == {}
    assert len(predictions.scores)


@pytest.mark.parametrize('spoil, message', [
    (lambda run: (run.folder / 'epoch_2.pth').unlink() or (run.folder / 'epoch_1.pth').unlink(),
     'holds no last checkpoint'),
    (lambda run: run.cfg.val_dataloader.dataset.update(data_root='gone'), 'which is not there'),
    (lambda run: run.cfg.model.bbox_head.update(num_classes=3), 'does not fit RetinaNet'),
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


def test_people_of_two_files_with_the_same_ids_are_told_apart():
    """As of a CombinedDataset, whose samples carry ids and files only."""
    from types import SimpleNamespace

    def record(image_id, path, offset):
        return dict(image_id=image_id, image_path=path, keypoints=np.full((1, 2, 2), offset),
                    scores=np.ones((1, 2)), gt_keypoints=np.full((1, 2, 2), offset),
                    gt_visible=np.ones((1, 2), bool), gt_boxes=np.array([[0., 0, 9, 9]]),
                    gt_areas=np.array([np.nan]), gt_head_sizes=np.array([np.nan]))

    dataset = SimpleNamespace(metainfo=dict(num_keypoints=2, keypoint_id2name={0: 'a', 1: 'b'}))
    records = [record(1, 'x/1.png', 1.), record(2, 'x/2.png', 2.), record(1, 'x/1.png', 3.),
               record(1, 'y/1.png', 4.)]
    found = collate('pose', records, dataset)
    assert found.image_ids.tolist() == [1, 1, 2]
    assert found.image_paths.tolist() == ['x/1.png', 'y/1.png', 'x/2.png']
    assert found.images.tolist() == [0, 0, 1, 2]
    assert found.keypoints[:, 0, 0].tolist() == [1., 3., 4., 2.]
