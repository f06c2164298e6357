"""The registered metric: as mmengine and mmdet run it, on synthetic detectors."""
import copy
import json
import random
import re

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
from mmengine.evaluator import Evaluator  # noqa: E402
from mmengine.fileio import load  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from mmskd.evaluation.calibration import brier, ece, nll  # noqa: E402
from mmskd.evaluation.calibrators import Calibrator, LogitMap  # noqa: E402
from mmskd.evaluation.held_out import image_keys  # noqa: E402
from mmskd.registry import METRICS  # noqa: E402
from tests.support.processes import run_in_two  # noqa: E402

CLASSES = ('cell', 'cat', 'car')
KEYS = ('NLL', 'ECE', 'LaECE', 'Brier', 'AURC', 'EAURC', 'oLRP')
POINT = ('LaECE_0', 'LaACE_0', 'overconfidence', 'LRP', 'LRP_loc', 'LRP_FP', 'LRP_FN', 'OCE')
COUNTS = ('detections', 'objects', 'emitted')


def sample(img_id, objects, predictions):
    """A data sample of ``objects`` (box, label[, ignore]) and ``predictions`` (box, label, score).

    Boxes are x1, y1, x2, y2.
    """
    boxes, labels, scores = zip(*predictions) if predictions else ((), (), ())
    return dict(
        img_id=img_id, ori_shape=(1000, 1000),
        instances=[dict(bbox=list(box), bbox_label=label, ignore_flag=int(any(ignore)))
                   for box, label, *ignore in objects],
        pred_instances=dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.long),
            scores=torch.tensor(scores, dtype=torch.float32)))


def detector(n_images=20, n_boxes=20, shift=0., seed=0, first_id=0):
    """Data samples of a detector whose scores are the share of hits, plus ``shift``."""
    rng = np.random.default_rng(seed)
    samples = []
    for img_id in range(first_id, first_id + n_images):
        objects, predictions = [], []
        for i in range(n_boxes):
            x, y = 40 * (i % 20), 40 * (i // 20)
            box, label = [x, y, x + 20, y + 20], int(rng.integers(len(CLASSES)))
            chance = rng.uniform(.3, .7)
            if rng.random() < chance:
                objects.append(([x, y, x + 20, y + rng.integers(15, 25)], label))
            predictions.append((box, label, chance + shift))
        samples.append(sample(img_id, objects, predictions))
    return samples


def annotations(samples, path, classes=CLASSES):
    """Write the objects of ``samples`` as a COCO file, categories numbered 10, 20, ..."""
    anns = []
    for s in samples:
        for obj in s['instances']:
            x1, y1, x2, y2 = map(float, obj['bbox'])
            anns.append(dict(
                id=len(anns) + 1, image_id=s['img_id'], bbox=[x1, y1, x2 - x1, y2 - y1],
                category_id=10 * obj['bbox_label'] + 10, area=(x2 - x1) * (y2 - y1),
                iscrowd=obj['ignore_flag']))
    path.write_text(json.dumps(dict(
        images=[dict(id=s['img_id'], width=1000, height=1000) for s in samples], annotations=anns,
        categories=[dict(id=10 * i + 10, name=name) for i, name in enumerate(classes)])))
    return str(path)


def build(classes=CLASSES, **kwargs):
    metric = METRICS.build(dict(type='mmskd.DetCalibrationMetric', **kwargs))
    metric.dataset_meta = dict(classes=classes)
    return metric


def evaluate(samples, **kwargs):
    metric = build(**kwargs)
    for s in samples:
        metric.process(None, [copy.deepcopy(s)])
    return metric.evaluate(len(samples))


def without_counts(values):
    return {key: value for key, value in values.items() if not re.search(
        f'({"|".join(COUNTS)})(_own_thr)?$', key)}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-9, err_msg=key)


def test_keys():
    names = {*KEYS, 'emitted', *(f'{key}_own_thr' for key in (*POINT, 'detections', 'objects'))}
    values = evaluate(detector())
    assert set(values) == {f'calibration/{key}' for key in names}
    assert all(type(v) is float and 0 <= v < 1 for v in without_counts(values).values())
    values = evaluate(detector(), classwise=True, by_size=True)
    assert set(values) == {f'calibration/{prefix}{key}' for key in names for prefix in (
        '', *(f'{name}_' for name in CLASSES), 'small_', 'medium_', 'large_')}
    for key in ('LaECE', 'oLRP', *(f'{key}_own_thr' for key in POINT[:-1])):
        assert values[f'calibration/{key}'] == pytest.approx(
            np.mean([values[f'calibration/{name}_{key}'] for name in CLASSES]))
    values = evaluate(detector(), bootstrap=50)
    for key in POINT:
        low, high = (values[f'calibration/{key}_own_thr_{end}'] for end in ('low', 'high'))
        assert low < values[f'calibration/{key}_own_thr'] < high, key


def test_a_calibrated_detector_scores_zero_and_a_shifted_one_the_shift():
    honest = evaluate(detector(100, 200), n_bins=10)
    assert honest['calibration/ECE'] < .015
    for shift in (-.2, .2):
        shifted = evaluate(detector(100, 200, shift), n_bins=10)
        assert shifted['calibration/ECE'] == pytest.approx(abs(shift), abs=.015)
        for key in ('NLL', 'Brier'):
            assert shifted[f'calibration/{key}'] > honest[f'calibration/{key}']
        for key in ('AURC', 'EAURC', 'oLRP'):  # the order of the scores is the same
            assert shifted[f'calibration/{key}'] == pytest.approx(honest[f'calibration/{key}'])


def test_values_by_hand():
    values = evaluate([sample(
        0, [([0, 0, 10, 10], 0), ([50, 50, 60, 60], 0), ([80, 80, 90, 90], 0, True)],
        [([0, 0, 10, 8], 0, .75),   # hits, IoU .8
         ([20, 0, 30, 10], 0, .5),  # misses
         ([80, 80, 90, 90], 0, .9),  # on what is to be ignored
         ([50, 50, 60, 60], 0, .03125)])])  # would hit, but only oLRP looks below score_thr
    assert_same({k: values[f'calibration/{k}'] for k in KEYS}, dict(
        NLL=(-np.log(.75) - np.log(.5)) / 2, ECE=(.25 + .5) / 2, LaECE=(.05 + .5) / 2,
        Brier=(.25 ** 2 + .5 ** 2) / 2, AURC=(0 + .5) / 2,
        EAURC=.25 - (.5 + .5 * np.log(.5)), oLRP=(.2 / .5 + 1) / 3))


def test_order_of_images_and_repetition_change_nothing():
    samples = detector()
    expected = evaluate(samples, classwise=True)
    assert_same(evaluate(samples[::-1], classwise=True), expected)
    twice = evaluate(samples + detector(first_id=100), classwise=True)
    assert_same(without_counts(twice), without_counts(expected))
    for key in expected.keys() - without_counts(expected).keys():
        assert twice[key] == 2 * expected[key]


def test_partial_results_of_ranks_are_the_whole():
    samples = detector()
    expected = evaluate(samples)
    ranks = []
    for rank in range(3):
        metric = build()
        metric.process(None, samples[rank::3])
        ranks.append(metric.results)
    collected = build().compute_metrics(ranks[2] + ranks[0] + ranks[1])
    assert_same({f'calibration/{k}': v for k, v in collected.items()}, expected)


def _rank(rank, init_file, samples, values_file):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{init_file}', rank=rank, world_size=2)
    metric = build()
    padded = samples + samples[:1]  # what a distributed sampler does to 5 images on 2 ranks
    metric.process(None, padded[rank::2])
    values = metric.evaluate(len(samples))
    torch.save(values, f'{values_file}.{rank}')
    torch.distributed.destroy_process_group()


def test_distributed(tmp_path):
    samples = detector(n_images=5)
    run_in_two(_rank, str(tmp_path / 'init'), samples, str(tmp_path / 'values'))
    expected = evaluate(samples)
    for rank in (0, 1):
        assert_same(torch.load(tmp_path / f'values.{rank}', weights_only=True), expected)


def test_file_and_data_samples_are_the_same_ground_truth(tmp_path):
    samples = detector()
    samples[0]['instances'][0]['ignore_flag'] = 1
    expected = evaluate(samples, classwise=True)
    ann_file = annotations(samples, tmp_path / 'ann.json')
    for s in samples:
        del s['instances']
    assert_same(evaluate(samples, classwise=True, ann_file=ann_file), expected)
    # twice with one metric, as after every epoch
    metric = build(ann_file=ann_file, classwise=True)
    for _ in range(2):
        metric.process(None, samples)
        assert_same(metric.evaluate(len(samples)), expected)


def test_a_category_that_the_model_does_not_know_is_no_part(tmp_path):
    samples = detector()
    expected = evaluate(samples, ann_file=annotations(samples, tmp_path / 'ann.json'))
    for s in samples:  # objects of a fourth category, where the detector finds others
        s['instances'].append(dict(bbox=[0, 0, 20, 20], bbox_label=3, ignore_flag=0))
    ann_file = annotations(samples, tmp_path / 'more.json', classes=(*CLASSES, 'cloud'))
    assert_same(evaluate(samples, ann_file=ann_file), expected)


def test_labels_follow_the_file_as_in_mmdet(tmp_path):
    samples = detector()
    ann_file = annotations(samples, tmp_path / 'ann.json')
    expected = evaluate(samples, ann_file=ann_file, classwise=True)
    # mmdet numbers labels in the file's order, whatever the order of the config's classes
    assert_same(evaluate(samples, ann_file=ann_file, classwise=True, classes=CLASSES[::-1]),
                expected)


def test_beside_the_metric_of_mmdet_and_from_a_results_file(tmp_path):
    from mmdet.evaluation import DumpDetResults
    from mmdet.structures import DetDataSample
    samples = detector()
    ann_file = annotations(samples, tmp_path / 'ann.json')
    expected = evaluate(samples, ann_file=ann_file)
    data_samples = []
    for s in samples:
        data_sample = DetDataSample(metainfo=dict(img_id=s['img_id'], ori_shape=s['ori_shape']))
        data_sample.pred_instances = InstanceData(**s['pred_instances'])
        data_samples.append(data_sample)

    config = [dict(type='mmdet.CocoMetric', ann_file=ann_file, metric='bbox'),
              dict(type='mmskd.DetCalibrationMetric', ann_file=ann_file)]
    dump = DumpDetResults(str(tmp_path / 'results.pkl'))  # tools/test.py --out
    evaluator = Evaluator([*map(copy.deepcopy, config), dump])
    evaluator.dataset_meta = dict(classes=CLASSES)
    evaluator.process(data_samples)
    live = evaluator.evaluate(len(samples))
    assert 0 < live['coco/bbox_mAP_50'] < 1
    assert_same({k: v for k, v in live.items() if k.startswith('calibration')}, expected)

    offline = Evaluator(config[1:])
    offline.dataset_meta = dict(classes=CLASSES)
    assert_same(offline.offline_evaluate(load(str(tmp_path / 'results.pkl'))), expected)
    # a results file and the annotations are enough
    assert_same(Evaluator(config[1:]).offline_evaluate(load(str(tmp_path / 'results.pkl'))),
                expected)


def save(path, maps, thresholds=None, classes=CLASSES, images=(), **fields):
    """A calibrator's file."""
    Calibrator('detection', 'platt', 'iou', list(classes), maps,
               thresholds or [None] * len(classes), images, **fields).save(path)
    return str(path)


@pytest.mark.parametrize('slope, offset', [(.5, 0.), (2., -1.)])
def test_a_calibrator(slope, offset, tmp_path):
    samples = detector()
    plain = evaluate(samples, classwise=True)
    path = save(tmp_path / 'c.json', [LogitMap(slope, offset)], [.4, .5, .6])
    metric = build(calibrator=path)
    metric.process(None, samples)
    gathered = metric.gather(metric.results)
    emitted = build().measure(gathered).emitted
    scores = 1 / (1 + np.exp(-slope * np.log(emitted.scores / (1 - emitted.scores)) - offset))
    values = evaluate(samples, calibrator=path, thresholds=path)
    assert values == evaluate(samples, calibrator=path), 'its own thresholds'
    for key, formula in dict(NLL=nll, ECE=ece, Brier=brier).items():
        assert values[f'calibration/{key}'] == pytest.approx(formula(scores, emitted.hits))
        assert values[f'calibration/{key}'] != plain[f'calibration/{key}']
    for key in ('AURC', 'EAURC', 'oLRP', 'emitted'):  # the order is the same
        assert values[f'calibration/{key}'] == pytest.approx(plain[f'calibration/{key}'])
    # Thresholds are those of the scores before, so the same detections count
    kept = evaluate(samples, thresholds=path)
    for key in ('LRP', 'LRP_loc', 'LRP_FP', 'LRP_FN', 'detections'):
        assert values[f'calibration/{key}'] == pytest.approx(kept[f'calibration/{key}'])
    assert values['calibration/LaECE_0'] != kept['calibration/LaECE_0']


def test_mapped_predictions_measure_and_rank_as_by_the_metric(tmp_path):
    """What the metric does with a calibrator is what a detector that applies it would score."""
    samples = detector()
    for s in samples:  # in thousandths, so that no two scores fall together in float32
        s['pred_instances']['scores'] = s['pred_instances']['scores'].double().round(decimals=3)
    path = save(tmp_path / 'c.json', [LogitMap(.5, .3), LogitMap(1.5, 0.), LogitMap(1., -.5)],
                [.4005, .5005, .6005])
    calibrator = Calibrator.load(path)
    mapped = copy.deepcopy(samples)
    for s in mapped:
        found = s['pred_instances']
        found['scores'] = torch.from_numpy(calibrator(found['scores'], found['labels']))
        s['calibrator'] = calibrator.digest
    expected = evaluate(samples, calibrator=path, score_thr=0.)
    values = evaluate(mapped, thresholds=path, score_thr=0.)
    for key in expected:
        assert values[key] == pytest.approx(expected[key], abs=1e-6), key

    ann_file = annotations(samples, tmp_path / 'ann.json')
    aps = []
    for variant in (samples, mapped):
        coco = METRICS.build(dict(type='mmdet.CocoMetric', ann_file=ann_file, metric='bbox'))
        coco.dataset_meta = dict(classes=CLASSES)
        coco.process(None, variant)
        aps.append(coco.evaluate(len(variant)))
    assert aps[0] == aps[1] and 0 < aps[0]['coco/bbox_mAP'] < 1

    with pytest.raises(ValueError, match='were mapped already'):
        evaluate(mapped, calibrator=path)
    other = save(tmp_path / 'other.json', [LogitMap(2., 0.)], [.4, .5, .6])
    with pytest.raises(ValueError, match='mapped by another calibrator'):
        evaluate(mapped, thresholds=other)
    with pytest.raises(ValueError, match='of some samples were mapped'):
        evaluate(mapped + detector(first_id=100))


def test_thresholds_of_other_images(tmp_path):
    val, test = detector(40, seed=1), detector(40, seed=2)
    metric = build()
    metric.process(None, val)
    found = metric.measure(metric.gather(metric.results)).thresholds
    path = save(tmp_path / 'c.json', [LogitMap(1., 0.)], found.tolist())
    values = evaluate(test, thresholds=path)
    assert not any(key.endswith('_own_thr') for key in values)
    kept = [(label, score) for s in test for label, score in zip(
        s['pred_instances']['labels'].tolist(), s['pred_instances']['scores'].double().tolist())]
    assert values['calibration/detections'] == sum(score >= found[label] for label, score in kept)
    # On the very images they are the best, and said to be theirs
    own = evaluate(val)
    same = evaluate(val, thresholds=path)
    for key in POINT:
        assert own[f'calibration/{key}_own_thr'] == same[f'calibration/{key}']
    for s in val:
        s['img_path'] = f'data/val/{s["img_id"]}.jpg'
    path = save(tmp_path / 'c.json', [LogitMap(1., 0.)], found.tolist(),
                images=image_keys([s['img_path'] for s in val[:1]]))
    assert evaluate(val, thresholds=path) == own, 'one shared image is enough for the mark'
    with pytest.raises(ValueError, match="calibrator is of the classes .*'dog'"):
        evaluate(test, thresholds=save(tmp_path / 'd.json', [LogitMap(1., 0.)], classes=['dog']))


def test_an_image_that_was_predicted_twice_is_refused(tmp_path):
    samples = detector(n_images=3)
    with pytest.raises(ValueError, match='DetCalibrationMetric: image 0 was predicted twice'):
        evaluate(samples + samples[:1])
    ann_file = annotations(samples, tmp_path / 'ann.json')
    with pytest.raises(ValueError, match='DetCalibrationMetric: image 0 was predicted twice'):
        evaluate(samples + samples[:1], ann_file=ann_file)


def test_ids_that_repeat_over_files_are_different_images():
    parts = detector(), detector(seed=1)
    for name, samples in zip('ab', parts):
        for s in samples:
            s['img_path'] = f'{name}/{s["img_id"]}.jpg'
    other = detector(seed=1, first_id=100)
    assert_same(evaluate(parts[0] + parts[1]), evaluate(detector() + other))


@pytest.mark.parametrize('key', ['bboxes', 'scores'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_no_number_is_refused(key, value):
    samples = detector(n_images=2)
    samples[1]['pred_instances'][key][3] = value
    with pytest.raises(ValueError, match=f'DetCalibrationMetric: some {key} predicted in image 1 '):
        evaluate(samples)


@pytest.mark.parametrize('options, message', [
    (dict(n_bins=0), 'n_bins'), (dict(n_bins=2.5), 'n_bins'), (dict(score_thr=2), 'score_thr'),
    (dict(score_thr=-.1), 'score_thr'), (dict(iou_thr=0), 'iou_thr'),
    (dict(max_dets=0), 'max_dets'), (dict(bootstrap=-1), 'bootstrap')])
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f'DetCalibrationMetric: {message}'):
        build(**options)


def test_no_predictions():
    values = evaluate([sample(0, [([0, 0, 9, 9], 0)], [])], classwise=True)
    assert values['calibration/oLRP'] == values['calibration/cell_oLRP'] == 1
    for key in ('LRP', 'LRP_FN', 'OCE'):
        assert values[f'calibration/{key}_own_thr'] == 1, key
    one = ('oLRP', 'LRP_own_thr', 'LRP_FN_own_thr', 'OCE_own_thr')
    assert all(np.isnan(v) for k, v in without_counts(values).items() if not k.endswith(one))
    assert np.isnan(values['calibration/cat_oLRP'])


def test_no_objects():
    values = evaluate([sample(0, [], [([0, 0, 9, 9], 0, .25)]), sample(1, [], [])])
    assert values['calibration/ECE'] == pytest.approx(.25)
    assert values['calibration/AURC'] == 1
    assert np.isnan(values['calibration/LaECE']) and np.isnan(values['calibration/oLRP'])


def test_a_class_without_objects_counts_but_not_as_a_class():
    samples = [sample(0, [([0, 0, 10, 10], 0)],
                      [([0, 0, 10, 10], 0, .75), ([0, 0, 10, 10], 1, .5)])]
    values = evaluate(samples, classwise=True)
    assert values['calibration/ECE'] == pytest.approx((.25 + .5) / 2)
    assert values['calibration/LaECE'] == values['calibration/cell_LaECE'] == pytest.approx(.25)
    assert values['calibration/oLRP'] == values['calibration/cell_oLRP'] == 0
    assert values['calibration/cat_ECE'] == pytest.approx(.5)


def test_no_images():
    values = build(classwise=True).compute_metrics([])
    assert all(np.isnan(v) for v in without_counts(values).values())
    assert all(values[key] == 0 for key in values.keys() - without_counts(values).keys())


def test_images_that_were_not_evaluated_do_not_count(tmp_path):
    samples = detector()
    ann_file = annotations(samples, tmp_path / 'ann.json')
    assert_same(evaluate(samples[:5], ann_file=ann_file), evaluate(samples[:5]))


@pytest.mark.parametrize('label', [3, -1])
def test_an_unknown_class_is_an_error(label, tmp_path):
    samples = [sample(0, [], [([0, 0, 9, 9], label, .5)])]
    with pytest.raises(ValueError, match=f'DetCalibrationMetric: label {label} .* 3 classes'):
        evaluate(samples)
    with pytest.raises(ValueError, match=f'DetCalibrationMetric: label {label} .* 3 classes'):
        evaluate(samples, ann_file=annotations(samples, tmp_path / 'ann.json'))


def test_errors_name_the_metric(tmp_path):
    samples = detector(n_images=2)
    ann_file = annotations(samples[:1], tmp_path / 'ann.json')
    with pytest.raises(ValueError, match='DetCalibrationMetric: image 1 is not in ann_file'):
        evaluate(samples, ann_file=ann_file)
    del samples[1]['instances']
    with pytest.raises(ValueError, match='DetCalibrationMetric: .*ann_file'):
        evaluate(samples)
    with pytest.raises(ValueError, match='DetCalibrationMetric: iou_thr'):
        build(iou_thr=1)


def test_random_state_and_predictions_are_left_alone():
    def state():
        return (random.getstate(), np.random.get_state()[1].tolist(),
                torch.get_rng_state().tolist())

    samples = detector()
    before, boxes = state(), samples[0]['pred_instances']['bboxes'].clone()
    metric = build()
    metric.process(None, samples)
    metric.evaluate(len(samples))
    assert state() == before
    assert torch.equal(samples[0]['pred_instances']['bboxes'], boxes)
