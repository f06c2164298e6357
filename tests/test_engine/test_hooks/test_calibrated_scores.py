"""CalibratedScores on real detectors and pose estimators, bare and in a Runner's test."""
import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from mmskd.engine.hooks import CalibratedScores
from mmskd.errors import UsageError
from mmskd.evaluation.calibrators import Calibrator, LogitMap, StepMap
from mmskd.evaluation.held_out import image_keys
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')
CLASSES = ['circle', 'ellipse', 'square', 'rounded_square', 'rhombus']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('calibrated')


def save(path, maps, classes=CLASSES, images=()):
    thresholds = [.2] * len(classes)
    Calibrator('detection', 'platt', 'iou', classes, maps, thresholds, images).save(path)
    return str(path)


@pytest.fixture
def calibrator(tmp_path):
    """Of the five shapes, with a map of its own for each."""
    return save(tmp_path / 'calibrator.json', [LogitMap(1 + i / 4, -i / 4) for i in range(5)])


@pytest.fixture(scope='module')
def detector(folder):
    """A config, and a checkpoint with scores all over [0, 1]."""
    from mmdet.utils import register_all_modules

    from tests.support import runs
    register_all_modules(init_default_scope=False)
    cfg = runs.config(runs.data(folder / 'shapes'), folder / 'detector',
                      model__test_cfg__score_thr=0.1)
    cfg.custom_hooks = []
    cfg.test_dataloader, cfg.test_cfg = copy.deepcopy(cfg.val_dataloader), dict()
    cfg.test_evaluator = [copy.deepcopy(cfg.val_evaluator)]
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=.3)
    torch.nn.init.constant_(model.bbox_head.retina_cls.bias, -1.)
    torch.save(dict(state_dict=model.state_dict()), folder / 'detector.pth')
    cfg.load_from = str(folder / 'detector.pth')
    return cfg


def built(cfg):
    """The model and a batch."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
        if cfg.get('load_from'):
            model.load_state_dict(torch.load(cfg.load_from, weights_only=True)['state_dict'])
        loader = Runner.build_dataloader(copy.deepcopy(cfg.val_dataloader), seed=0)
    return model, next(iter(loader))


def predicted(model, batch):
    with torch.no_grad():
        return model.test_step(copy.deepcopy(batch))


@needs_mmdet
def test_it_maps_what_a_detector_predicts_and_nothing_else(detector, calibrator):
    model, batch = built(detector)
    keys, plain = set(model.state_dict()), predicted(model, batch)
    hook = CalibratedScores(calibrator)
    hook.attach(model)
    mapped = predicted(model, batch)
    for before, after in zip(plain, mapped):
        found = before.pred_instances
        assert len(found) > 3 and len(found.labels.unique()) > 1
        torch.testing.assert_close(after.pred_instances.bboxes, found.bboxes)
        expected = hook.calibrator(found.scores.double().numpy(), found.labels.numpy())
        np.testing.assert_allclose(after.pred_instances.scores.numpy(), expected, rtol=1e-6)
        assert after.pred_instances.scores.dtype == found.scores.dtype
        assert after.metainfo['calibrator'] == hook.calibrator.digest
        with pytest.raises(ValueError, match='mapped by a calibrator before'):
            hook._map(model, (), dict(mode='predict'), [after])
    assert set(model.state_dict()) == keys, 'the checkpoint stays the stock one'
    losses = model(**model.data_preprocessor(copy.deepcopy(batch), True), mode='loss')
    assert all(torch.isfinite(torch.stack(list(map(torch.as_tensor, loss)))).all()
               for loss in losses.values())
    again = predicted(pickle.loads(pickle.dumps(model)), batch)
    torch.testing.assert_close(again[0].pred_instances.scores, mapped[0].pred_instances.scores)
    hook.attach(model)  # twice is once
    torch.testing.assert_close(predicted(model, batch)[0].pred_instances.scores,
                               mapped[0].pred_instances.scores)
    hook.detach()
    torch.testing.assert_close(predicted(model, batch)[0].pred_instances.scores,
                               plain[0].pred_instances.scores)


@needs_mmdet
def test_in_the_runners_test(detector, calibrator, folder):
    from tests.support import runs
    metric = dict(type='mmskd.DetCalibrationMetric', thresholds=calibrator, score_thr=0.,
                  ann_file=detector.test_evaluator[0].ann_file)
    measured = {}
    for name, hooks, own in (
            ('plain', [], {}), ('by the metric', [], dict(calibrator=calibrator)),
            ('by the hook', [dict(type='mmskd.CalibratedScores', calibrator=calibrator)], {})):
        cfg = copy.deepcopy(detector)
        cfg.custom_hooks = hooks
        cfg.test_evaluator = [*cfg.test_evaluator, dict(metric, **own)]
        runner = runs.runner(cfg)
        measured[name] = runner.test()
        assert not runner.model._forward_hooks
    assert measured['by the hook'].keys() == measured['plain'].keys()
    for key, value in measured['by the hook'].items():
        assert value == pytest.approx(measured['by the metric'][key], abs=1e-5, nan_ok=True), key
    for key in ('coco/bbox_mAP', 'calibration/LRP', 'calibration/detections', 'calibration/oLRP'):
        assert measured['by the hook'][key] == measured['plain'][key], key
    assert measured['by the hook']['calibration/LaECE_0'] != \
        measured['plain']['calibration/LaECE_0']


@needs_mmdet
def test_a_validation_in_training_is_left_alone(detector, calibrator):
    """The model that trains is not the one that the calibrator was fitted to."""
    from tests.support import runs
    cfg = copy.deepcopy(detector)
    cfg.val_evaluator = [dict(type='mmskd.DetCalibrationMetric', score_thr=0.,
                              ann_file=cfg.val_evaluator.ann_file)]
    plain = runs.runner(cfg).val()
    cfg.custom_hooks = [dict(type='mmskd.CalibratedScores', calibrator=calibrator)]
    assert runs.runner(cfg).val()['calibration/NLL'] == plain['calibration/NLL']


@needs_mmdet
def test_at_inference(detector, calibrator, folder):
    from mmdet.apis import inference_detector, init_detector
    cfg = copy.deepcopy(detector)
    cfg.test_dataloader.dataset.pipeline = [
        step for step in cfg.test_dataloader.dataset.pipeline if step.type != 'RandomFlip']
    image = str(next((folder / 'shapes' / 'val').glob('*.png')))
    model = init_detector(cfg, cfg.load_from, device='cpu')
    plain = inference_detector(model, image).pred_instances
    hook = CalibratedScores(calibrator)
    hook.attach(model)
    mapped = inference_detector(model, image).pred_instances
    np.testing.assert_allclose(
        mapped.scores.numpy(), hook.calibrator(plain.scores.double().numpy(),
                                               plain.labels.numpy()), rtol=1e-5)


@needs_mmpose
@pytest.mark.parametrize('kind', ['simcc', 'heatmap'])
def test_keypoint_scores(kind, folder, tmp_path):
    from mmpose.utils import register_all_modules

    from tests.support import pose_runs
    register_all_modules(init_default_scope=False)
    cfg = pose_runs.config(pose_runs.data(folder / 'figures'), tmp_path, [], kind)
    model, batch = built(cfg)
    plain = predicted(model, batch)
    names = [name for _, name in sorted(plain[0].metainfo.get('keypoint_id2name', {
        k: str(k) for k in range(plain[0].pred_instances.keypoints.shape[1])}).items())]
    path = tmp_path / 'calibrator.json'
    Calibrator('pose', 'isotonic', 'hit', names, [
        StepMap((-5., 5.), (k / 50, .5 + k / 50)) for k in range(len(names))]).save(path)
    hook = CalibratedScores(str(path))
    hook.attach(model)
    for before, after in zip(plain, predicted(model, batch)):
        scores = np.asarray(before.pred_instances.keypoint_scores, np.float64)
        expected = .1 / 2 * (scores + 5) + np.arange(len(names)) / 50
        np.testing.assert_allclose(after.pred_instances.keypoint_scores, expected, rtol=1e-5)
        np.testing.assert_array_equal(after.pred_instances.keypoints,
                                      before.pred_instances.keypoints)
        np.testing.assert_array_equal(after.pred_instances.keypoints_visible,
                                      after.pred_instances.keypoint_scores)


def test_wrong_files_are_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match='CalibratedScores: there is no calibrator nowhere.json'):
        CalibratedScores('nowhere.json')
    (tmp_path / 'x.json').write_text('{}')
    with pytest.raises(UsageError, match='x.json is no calibrator'):
        CalibratedScores(str(tmp_path / 'x.json'))


class Dataset:
    """As much of a data set as is asked for."""

    def __init__(self, metainfo, files=()):
        self.metainfo = metainfo
        self.files = files

    def __len__(self):
        return len(self.files)

    def get_data_info(self, i):
        return dict(img_path=self.files[i])


def before_test(hook, dataset):
    hook.before_test(SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset),
                                     model=torch.nn.Identity()))


def test_a_calibrator_of_something_else_is_refused(calibrator, tmp_path):
    hook = CalibratedScores(calibrator)
    before_test(hook, Dataset(dict(classes=CLASSES)))
    for metainfo in (dict(classes=CLASSES[::-1]), dict(classes=CLASSES[:4]),
                     dict(keypoint_id2name={0: 'nose'})):
        with pytest.raises(UsageError, match='calibrator.json is of the classes .*but the test '):
            before_test(hook, Dataset(metainfo))
    Calibrator('pose', 'none', 'hit', ['nose'], []).save(tmp_path / 'pose.json')
    hook = CalibratedScores(str(tmp_path / 'pose.json'))
    before_test(hook, Dataset(dict(keypoint_id2name={0: 'nose'})))
    with pytest.raises(UsageError, match='pose.json is of the keypoints'):
        before_test(hook, Dataset(dict(classes=CLASSES)))


def test_images_that_it_was_fitted_on_are_pointed_out(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmskd.engine.hooks.calibrated_scores.print_log',
                        lambda message, *args: said.append(message))
    files = [f'data/test/{i}.jpg' for i in range(4)]
    for images, number in ((files[:2], 2), (['data/val/0.jpg'], 0)):
        path = save(tmp_path / 'c.json', [LogitMap(1., 0.)], images=image_keys(images))
        before_test(CalibratedScores(path), Dataset(dict(classes=CLASSES), files))
        assert len(said) == bool(number)
        if said:
            assert f'was fitted on {number} of the images' in said.pop()
