"""The registered metric: as mmengine and mmpose run it, on synthetic pose estimators."""
import copy
import random

import numpy as np
import pytest
import torch

pytest.importorskip('mmpose')
from mmengine.evaluator import DumpResults, Evaluator  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from mmskd.evaluation.calibration import aurc, brier, eaurc, ece, nll, overconfidence  # noqa: E402
from mmskd.evaluation.calibrators import Calibrator, LogitMap  # noqa: E402
from mmskd.evaluation.keypoint_hits import oks_terms  # noqa: E402
from mmskd.evaluation.results import load_results  # noqa: E402
from mmskd.registry import METRICS  # noqa: E402
from tests.support.processes import run_in_two  # noqa: E402

NAMES = ('nose', 'left_ear', 'right_ear', 'tail', 'left_paw', 'right_paw')
K = len(NAMES)
META = dict(num_keypoints=K, keypoint_id2name=dict(enumerate(NAMES)),
            sigmas=np.linspace(.025, .107, K))
KEYS = ('NLL', 'ECE', 'overconfidence', 'Brier', 'AURC', 'EAURC')
OTHERS = ('NLL_mapped', 'clipped', 'keypoints')
SIZE = 100.  # of the boxes, in pixels


def sample(offsets, scores, visible=None, annotated=None, size=SIZE, **fields):
    """A data sample whose predictions are ``offsets`` pixels to the right of the annotations."""
    k = len(offsets)
    if annotated is None:
        annotated = np.arange(2 * k, dtype=np.float32).reshape(1, k, 2) + 10
    predicted = annotated + np.stack([offsets, np.zeros(k)], -1).astype(np.float32)
    return dict(
        id=1, img_id=1,
        gt_instances=dict(
            keypoints=annotated, bboxes=np.array([[5, 5, 5 + size, 5 + size / 2]], np.float32),
            keypoints_visible=np.ones((1, k), np.float32) if visible is None else
            np.array([visible], np.float32)),
        pred_instances=dict(keypoints=predicted, keypoint_scores=np.array([scores], np.float32)),
        **fields)


def estimator(n=60, shift=0., seed=0):
    """Data samples of a pose estimator whose scores are the share of hits, plus ``shift``."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n):
        chance = rng.uniform(.3, .7, K)
        hits = rng.random(K) < chance
        # A miss is a whole box away, whatever the threshold
        samples.append(sample(np.where(hits, 0, SIZE), chance + shift, rng.random(K) < .8))
    return samples


def noisy(n=40, seed=0):
    """Data samples at every distance, with the fields of all reference sizes."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n):
        s = sample(rng.normal(0, 8, K), rng.random(K), rng.random(K) < .7,
                   rng.uniform(0, 100, (1, K, 2)).astype(np.float32), rng.uniform(50, 150))
        s['gt_instances']['head_size'] = rng.uniform(20, 60, (1, 1))
        s['raw_ann_info'] = dict(area=rng.uniform(1000, 5000))
        samples.append(s)
    return samples


def build(meta=META, **kwargs):
    metric = METRICS.build(dict(type='mmskd.PoseCalibrationMetric', **kwargs))
    metric.dataset_meta = meta
    return metric


def evaluate(samples, **kwargs):
    metric = build(**kwargs)
    for s in samples:
        metric.process(None, [copy.deepcopy(s)])
    return metric.evaluate(len(samples))


def without_keypoints(values):
    return {key: value for key, value in values.items() if not key.endswith('keypoints')}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-9, err_msg=key)


def test_keys():
    samples = estimator()
    for i, s in enumerate(samples):
        s['img_path'] = f'{i}.jpg'
    values = evaluate(samples)
    assert set(values) == {*(f'calibration/{key}' for key in (*KEYS, *OTHERS)),
                           *(f'calibration/mean_{key}' for key in KEYS)}
    assert values['calibration/keypoints'] > 60
    assert all(type(v) is float and 0 <= v < 1 for v in without_keypoints(values).values())
    values = evaluate(estimator(), per_keypoint=True)
    for key in KEYS:
        assert values[f'calibration/mean_{key}'] == pytest.approx(
            np.mean([values[f'calibration/{name}_{key}'] for name in NAMES]))


def test_a_calibrated_estimator_scores_zero_and_a_shifted_one_the_shift():
    honest = evaluate(estimator(4000), n_bins=10)
    assert honest['calibration/ECE'] < .015
    for shift in (-.2, .2):
        shifted = evaluate(estimator(4000, shift), n_bins=10)
        for key in ('ECE', 'mean_ECE'):
            assert shifted[f'calibration/{key}'] == pytest.approx(abs(shift), abs=.015)
        for key in ('NLL', 'Brier'):
            assert shifted[f'calibration/{key}'] > honest[f'calibration/{key}']
        for key in ('AURC', 'EAURC'):  # the order of the scores is the same
            assert shifted[f'calibration/{key}'] == pytest.approx(
                honest[f'calibration/{key}'], abs=1e-4)


def test_values_by_hand():
    samples = [sample([0, 4, 6], [.75, .25, .5], visible=[1, 1, 0]),
               sample([9, 0, 0], [.5, .5, .5], visible=[1, 0, 0])]
    values = evaluate(samples, per_keypoint=True, meta=None)
    expected = {}
    for name, scores, hits in (('', [.75, .25, .5], [1, 1, 0]), ('0_', [.75, .5], [1, 0]),
                               ('1_', [.25], [1]), ('2_', [], [])):
        for key, metric in zip(KEYS, (nll, ece, overconfidence, brier, aurc, eaurc)):
            expected[name + key] = metric(scores, hits)
    for key in KEYS:  # the third keypoint is never annotated
        expected[f'mean_{key}'] = (expected[f'0_{key}'] + expected[f'1_{key}']) / 2
    assert_same({k: values[f'calibration/{k}'] for k in expected}, expected)


# ------------------------------------------------------------------ what is a hit


@pytest.mark.parametrize('norm_item, key', [('bbox', 'PCK'), ('head', 'PCKh'), ('torso', 'tPCK')])
@pytest.mark.parametrize('thr', [.05, .2])
def test_hits_are_those_of_mmpose(norm_item, key, thr):
    from mmpose.evaluation.metrics import PCKAccuracy
    samples = noisy()
    samples[3]['gt_instances']['keypoints_visible'][:] = 0
    samples[4]['gt_instances'].update(bboxes=np.full((1, 4), 7.), head_size=np.zeros((1, 1)))
    samples[5]['gt_instances']['keypoints'][0, 4] = samples[5]['gt_instances']['keypoints'][0, 5]
    for s in samples:
        s['gt_instances']['keypoints_visible'][:, 2] = 0
    theirs = PCKAccuracy(thr=thr, norm_item=norm_item, prefix='pck')
    theirs.process(None, copy.deepcopy(samples))
    metric = build(thr=thr, norm_item=norm_item)
    metric.process(None, samples)
    hits, counts = (np.stack([r[key] for r in metric.results]) for key in ('hits', 'counts'))
    # mmpose averages over the keypoints that are annotated anywhere
    shares = hits.sum(0)[counts.any(0)] / counts.sum(0)[counts.any(0)]
    assert theirs.evaluate(len(samples))[f'pck/{key}'] == pytest.approx(shares.mean(), abs=1e-6)
    assert 0 < shares.mean() < 1 and not counts.any(0)[2]


def test_the_threshold_itself_is_a_miss_as_in_mmpose():
    metric = build(thr=.25, meta=None)
    metric.process(None, [sample([24, 25, 26], [.5] * 3)])
    assert metric.results[0]['hits'].tolist() == [True, False, False]


@pytest.mark.parametrize('thr', [.5, .9])
def test_oks_hits(thr):
    samples = noisy()
    metric = build(hit='oks', thr=thr)
    metric.process(None, samples)
    for s, result in zip(samples, metric.results):
        terms = oks_terms(s['pred_instances']['keypoints'][0], s['gt_instances']['keypoints'][0],
                          s['raw_ann_info']['area'], META['sigmas'])
        visible = s['gt_instances']['keypoints_visible'][0] > 0
        np.testing.assert_array_equal(result['hits'], (terms >= thr) & visible)
        np.testing.assert_array_equal(result['counts'], visible)
    assert 0 < np.concatenate([r['hits'] for r in metric.results]).mean() < 1


def test_oks_takes_the_box_where_no_area_is_annotated():
    samples = noisy()
    for s in samples:
        x1, y1, x2, y2 = s['gt_instances']['bboxes'][0]
        s['raw_ann_info'] = dict(area=.53 * (x2 - x1) * (y2 - y1))
    expected = evaluate(samples, hit='oks')
    for s in samples:
        del s['raw_ann_info']
    assert_same(evaluate(samples, hit='oks'), expected)


# ------------------------------------------------------------------ what is a probability


def test_scores_are_clipped_and_the_share_is_told():
    scores = [1.5, -.25, .5, .25, 1., 0.]
    values = evaluate([sample([0, 50, 0, 50, 50, 0], scores)])
    clipped, hits = np.clip(scores, 0, 1), [1, 0, 1, 0, 0, 1]
    for key, metric in dict(NLL=nll, ECE=ece, Brier=brier, overconfidence=overconfidence).items():
        assert values[f'calibration/{key}'] == pytest.approx(metric(clipped, hits))
    assert values['calibration/clipped'] == pytest.approx(2 / 6)
    # Of what is clipped, the order is not lost
    order = np.argsort(np.argsort(scores)) / 10
    assert values['calibration/AURC'] == pytest.approx(aurc(order, hits))
    assert values['calibration/AURC'] < aurc(clipped, hits)


@pytest.mark.parametrize('codec, lowest, highest', [
    (dict(type='MSRAHeatmap', input_size=(64, 64), heatmap_size=(16, 16), sigma=2), -.5, 1.5),
    (dict(type='UDPHeatmap', input_size=(64, 64), heatmap_size=(16, 16), sigma=2), -.5, 1.5),
    (dict(type='MegviiHeatmap', input_size=(64, 64), heatmap_size=(16, 16), kernel_size=5),
     .5, .51),
    (dict(type='SimCCLabel', input_size=(64, 64), normalize=False), -.5, 1.5)])
def test_mmpose_does_give_such_scores(codec, lowest, highest):
    """Its decoders hand on the maximum of what the network says, whatever that is."""
    from mmpose.registry import KEYPOINT_CODECS
    from mmpose.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    codec = KEYPOINT_CODECS.build(codec)
    simcc = type(codec).__name__ == 'SimCCLabel'
    peaks = np.array([-.5, 1.5], np.float32)
    maps = np.full((2, 128) if simcc else (2, 16, 16), -1, np.float32)
    maps.reshape(2, -1)[:, 40] = peaks
    if simcc:
        _, scores = codec.decode(maps[None], maps[None].copy())
    else:
        _, scores = codec.decode(maps)
    assert scores.min() == pytest.approx(lowest, abs=.01)
    assert scores.max() == pytest.approx(highest, abs=.01)


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match='keypoint_scores must be 2 finite numbers'):
        evaluate([sample([0, 0], [.5, np.nan])])


@pytest.mark.parametrize('where', ['pred_instances', 'gt_instances'])
def test_a_keypoint_that_is_no_number_is_an_error(where):
    s = sample([0, 0], [.5, .5])
    s['img_id'] = 7
    s[where]['keypoints'][0, 1] = np.nan
    with pytest.raises(ValueError, match='PoseCalibrationMetric: image 7: some keypoints'):
        evaluate([s])
    if where == 'gt_instances':  # where nothing is annotated there is nothing to be read
        s[where]['keypoints_visible'][0, 1] = 0
        assert evaluate([s])['calibration/keypoints'] == 1


# ------------------------------------------------------------------ calibrators


def save(path, maps, names=NAMES):
    """A calibrator's file."""
    Calibrator('pose', 'platt', 'hit', list(names), maps).save(path)
    return str(path)


@pytest.mark.parametrize('classwise', [False, True])
def test_a_calibrator_needs_no_clipping(classwise, tmp_path):
    samples = estimator(shift=.4)  # up to 1.1
    plain = evaluate(samples)
    assert plain['calibration/clipped'] > .1
    maps = [LogitMap(4., -3. - k / 10) for k in range(len(NAMES) if classwise else 1)]
    path = save(tmp_path / 'c.json', maps)
    values = evaluate(samples, calibrator=path)
    assert values['calibration/clipped'] == 0
    metric = build()
    metric.process(None, samples)
    found = metric.gather(metric.results).keypoints
    offsets = np.array([m.offset for m in maps])
    probs = (1 / (1 + np.exp(-4 * found.scores - offsets)))[found.counts]
    for key, formula in dict(
            NLL=nll, ECE=ece, Brier=brier, overconfidence=overconfidence).items():
        assert values[f'calibration/{key}'] == pytest.approx(
            formula(probs, found.hits[found.counts]))
        assert values[f'calibration/{key}'] != plain[f'calibration/{key}']
    for key in ('mean_AURC', 'mean_EAURC', 'keypoints'):
        assert values[f'calibration/{key}'] == plain[f'calibration/{key}']
    for s in samples:
        s['calibrator'] = 'digest'
    with pytest.raises(ValueError, match='PoseCalibrationMetric: .*mapped already'):
        evaluate(samples, calibrator=path)


def test_a_calibrator_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="of the keypoints .*'elbow'"):
        evaluate(estimator(), calibrator=save(tmp_path / 'c.json', [LogitMap(1., 0.)], ['elbow']))
    detector = tmp_path / 'd.json'
    Calibrator('detection', 'none', 'iou', ['a'], [], [.5]).save(detector)
    with pytest.raises(ValueError, match='PoseCalibrationMetric: calibrator is of a detector'):
        build(calibrator=str(detector))


def test_mapped_nll_does_not_depend_on_the_scale_of_the_scores():
    """As of SimCC, where a model may say 5 where another says 0.9 of the same keypoints."""
    samples = estimator(400)
    for i, s in enumerate(samples):
        s['img_path'] = f'{i}.jpg'
    values = evaluate(samples)
    for s in samples:
        s['pred_instances']['keypoint_scores'] = 8 * s['pred_instances']['keypoint_scores'] - 1
    scaled = evaluate(samples)
    assert scaled['calibration/NLL_mapped'] == pytest.approx(
        values['calibration/NLL_mapped'], abs=1e-5)
    # These scores are honest, and no map, fitted on other images, makes them better
    assert values['calibration/NLL_mapped'] == pytest.approx(values['calibration/NLL'], abs=.01)
    assert scaled['calibration/clipped'] > .9
    assert scaled['calibration/NLL'] > 2 * scaled['calibration/NLL_mapped']
    for s in samples:  # these say nothing
        s['pred_instances']['keypoint_scores'][:] = np.random.default_rng(0).random(K)
    base = build()
    base.process(None, samples)
    share = base.gather(base.results).keypoints
    share = share.hits[share.counts].mean()
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert evaluate(samples)['calibration/NLL_mapped'] == pytest.approx(entropy, abs=.02)


# ------------------------------------------------------------------ order, ranks, files


def test_order_and_repetition_change_nothing():
    samples = noisy()
    for i, s in enumerate(samples):
        s['img_path'] = f'{i // 2}.jpg'
    expected = evaluate(samples, per_keypoint=True, bootstrap=20)
    assert_same(evaluate(samples[::-1], per_keypoint=True, bootstrap=20), expected)
    twice = evaluate(samples * 2, per_keypoint=True, bootstrap=20)
    assert_same(without_keypoints(twice), without_keypoints(expected))
    assert twice['calibration/keypoints'] == 2 * expected['calibration/keypoints']


def test_intervals_hold_the_value():
    samples = noisy(200)
    for i, s in enumerate(samples):
        s['img_path'] = f'{i}.jpg'
    values = evaluate(samples, bootstrap=100)
    for key in KEYS:
        low, high = values[f'calibration/{key}_low'], values[f'calibration/{key}_high']
        assert low < values[f'calibration/{key}'] < high < low + .5 * abs(
            values[f'calibration/{key}'] if key != 'overconfidence' else 1)


def test_tensors_are_as_good_as_arrays():
    samples = noisy()
    expected = evaluate(samples)
    for s in samples:
        for instances in ('pred_instances', 'gt_instances'):
            s[instances] = {k: torch.as_tensor(v) for k, v in s[instances].items()}
    assert_same(evaluate(samples), expected)


def _rank(rank, init_file, samples, values_file):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{init_file}', rank=rank, world_size=2)
    metric = build(per_keypoint=True)
    padded = samples + samples[:1]  # what a distributed sampler does to 5 samples on 2 ranks
    metric.process(None, padded[rank::2])
    torch.save(metric.evaluate(len(samples)), f'{values_file}.{rank}')
    torch.distributed.destroy_process_group()


def test_distributed(tmp_path):
    samples = noisy(5)
    run_in_two(_rank, str(tmp_path / 'init'), samples, str(tmp_path / 'values'))
    expected = evaluate(samples, per_keypoint=True)
    for rank in (0, 1):
        assert_same(torch.load(f'{tmp_path}/values.{rank}', weights_only=True), expected)


def test_beside_the_metric_of_mmpose_and_from_a_results_file(tmp_path):
    from mmpose.structures import PoseDataSample
    samples = noisy()
    expected = evaluate(samples, hit='oks')
    data_samples = []
    for s in samples:
        data_sample = PoseDataSample(
            metainfo=dict(id=1, img_id=1, raw_ann_info=s['raw_ann_info']))
        data_sample.gt_instances = InstanceData(**s['gt_instances'])
        data_sample.pred_instances = InstanceData(**s['pred_instances'])
        data_samples.append(data_sample)
    config = dict(type='mmskd.PoseCalibrationMetric', hit='oks')
    evaluator = Evaluator([dict(type='mmpose.PCKAccuracy', prefix='pck'), dict(config),
                           DumpResults(str(tmp_path / 'results.pkl'))])  # tools/test.py --dump
    evaluator.dataset_meta = META
    evaluator.process(data_samples)
    live = evaluator.evaluate(len(samples))
    assert 0 < live['pck/PCK'] < 1
    assert_same({k: v for k, v in live.items() if k.startswith('calibration')}, expected)
    offline = Evaluator(dict(config))
    offline.dataset_meta = META
    assert_same(offline.offline_evaluate(load_results(str(tmp_path / 'results.pkl'))), expected)


# ------------------------------------------------------------------ edges and errors


def test_nothing_visible():
    values = evaluate([sample([0, 0], [.5, .9], visible=[0, 0])], per_keypoint=True)
    assert values['calibration/keypoints'] == 0
    assert all(np.isnan(v) for v in without_keypoints(values).values())


@pytest.mark.parametrize('meta', [META, None])
def test_no_samples(meta):
    values = build(meta, per_keypoint=True).compute_metrics([])
    assert {*KEYS, 'clipped', 'mean_ECE'} <= values.keys()
    assert ('tail_ECE' in values) is (meta is not None)
    assert all(np.isnan(v) for v in without_keypoints(values).values())


def test_a_single_instance():
    values = evaluate([sample([0, 50], [.75, .25])])
    assert values['calibration/ECE'] == pytest.approx(.25)
    assert values['calibration/AURC'] == pytest.approx(.25)


@pytest.mark.parametrize('hit', ['pck', 'oks'])
def test_an_instance_without_size_does_not_count(hit):
    meta = dict(META, sigmas=META['sigmas'][:2])
    flat = sample([50, 50], [.9, .9], size=0)
    normal = sample([0, 0], [.75, .25])
    assert_same(evaluate([flat, normal], hit=hit, meta=meta),
                evaluate([normal], hit=hit, meta=meta))


def test_visibility_may_carry_a_weight():
    samples = noisy()
    expected = evaluate(samples)
    for s in samples:
        visible = s['gt_instances']['keypoints_visible']
        s['gt_instances']['keypoints_visible'] = np.stack([visible, np.ones_like(visible)], -1)
    assert_same(evaluate(samples), expected)


@pytest.mark.parametrize('instances, field', [
    ('gt_instances', 'keypoints'), ('gt_instances', 'keypoints_visible'),
    ('gt_instances', 'bboxes'), ('pred_instances', 'keypoints'),
    ('pred_instances', 'keypoint_scores')])
def test_missing_fields_are_named(instances, field):
    broken = sample([0, 0], [.5, .5])
    del broken[instances][field]
    with pytest.raises(ValueError, match=f'CalibrationMetric: .* no {field} in its {instances}'):
        evaluate([broken])
    del broken[instances]
    with pytest.raises(ValueError, match=f'in its {instances}'):
        evaluate([broken])


def test_missing_sizes_and_sigmas_are_named():
    with pytest.raises(ValueError, match='no head_size in its gt_instances'):
        evaluate([sample([0, 0], [.5, .5])], norm_item='head')
    with pytest.raises(ValueError, match="norm_item='torso' needs .* there are 2"):
        evaluate([sample([0, 0], [.5, .5])], norm_item='torso')
    with pytest.raises(ValueError, match="hit='oks' needs .*sigmas"):
        evaluate([sample([0, 0], [.5, .5])], hit='oks', meta=None)
    with pytest.raises(ValueError, match='6 sigmas, but 2 keypoints'):
        evaluate([sample([0, 0], [.5, .5])], hit='oks')


def test_bottom_up_models_are_refused():
    several = sample([0, 0], [.5, .5])
    for key, value in several['pred_instances'].items():
        several['pred_instances'][key] = np.repeat(value, 3, 0)
    with pytest.raises(ValueError, match='bottom-up'):
        evaluate([several])


def test_detected_boxes_without_annotations_are_refused():
    """What mmpose's data sets make of bbox_file: keypoints at 0, all visible."""
    dummy = sample([0, 0], [.5, .5], annotated=np.zeros((1, 2, 2), np.float32))
    with pytest.raises(ValueError, match="bbox_file=''"):
        evaluate([dummy])


@pytest.mark.parametrize('options, message', [
    (dict(hit='auc'), "hit must be 'pck' or 'oks'"),
    (dict(norm_item='hand'), "norm_item must be"),
    (dict(thr=0), 'thr must be a number, above 0'),
    (dict(hit='oks', thr=1.5), 'thr must be a number, above 0, at most 1'),
    (dict(n_bins=0), 'n_bins must be'),
    (dict(bootstrap=-5), 'bootstrap must be'),
])
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f'PoseCalibrationMetric: {message}'):
        build(**options)


def test_random_state_and_predictions_are_left_alone():
    def state():
        return (random.getstate(), np.random.get_state()[1].tolist(),
                torch.get_rng_state().tolist())

    samples = noisy()
    before, kept = state(), copy.deepcopy(samples[0])
    metric = build()
    metric.process(None, samples)
    metric.evaluate(len(samples))
    assert state() == before
    np.testing.assert_equal(samples[0], kept)
