"""CalibrationPictureHook in real trainings of detectors and pose estimators."""
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.visualization import Visualizer
from PIL import Image

from mmskd.datasets import write_demo_data
from mmskd.engine.hooks import CalibrationPictureHook
from mmskd.engine.hooks import calibration_picture_hook as module
from mmskd.errors import UsageError
from mmskd.evaluation.calibration import ece
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

HOOK = dict(type='mmskd.CalibrationPictureHook', num_images=2, score_thr=0.0)
needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    from tests.support import runs
    return runs.data(tmp_path_factory.mktemp('shapes') / 'data', val=3)


def detector(data_root, work_dir, hooks=(HOOK, ), **changes):
    from tests.support import runs
    cfg = runs.config(data_root, work_dir, ema=True, model__test_cfg__score_thr=0.0, **changes)
    cfg.val_evaluator = [cfg.val_evaluator, dict(
        type='mmskd.DetCalibrationMetric', score_thr=0.0, n_bins=8,
        ann_file=str(data_root / 'annotations/val.json'))]
    cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
    return cfg


def images(work_dir):
    return {path.name: np.asarray(Image.open(path))
            for path in work_dir.rglob('vis_image/*.png')}


@pytest.fixture
def drawn(monkeypatch):
    """Scores, hits and number of bins of the reliability diagrams that were drawn."""
    calls = []
    draw = module.reliability
    monkeypatch.setattr(module, 'reliability', lambda name, title, scores, hits, **options: (
        calls.append((title, scores, hits, options)) or draw(name, title, scores, hits, **options)))
    return calls


@needs_mmdet
@pytest.mark.parametrize('loop, length, steps', [('epoch', 4, (2, 4)), ('iter', 4, (4, ))])
def test_detector(data_root, tmp_path, drawn, loop, length, steps):
    from tests.support import runs
    plain = runs.train(detector(data_root, tmp_path / 'plain', (), loop=loop, length=length))
    seen = runs.train(detector(data_root, tmp_path / 'seen', loop=loop, length=length))
    runs.assert_equal(runs.weights(plain), runs.weights(seen))

    found = images(tmp_path / 'seen')
    assert set(found) == {f'{name}_{step}.png' for name in ('reliability', 'predictions')
                          for step in steps}
    assert all(image.std() > 10 for image in found.values())
    first, last = (found[f'predictions_{step}.png'] for step in (steps[0], steps[-1]))
    assert first.shape == last.shape  # the same images
    assert (first != last).any() or len(steps) == 1
    assert images(tmp_path / 'plain') == {}

    # The EMA model's, judged as the evaluator does
    title, scores, hits, options = drawn[-1]
    assert title == f'{"epoch" if loop == "epoch" else "iteration"} {length}'
    logged = seen.message_hub.get_scalar('val/calibration/ECE').current()
    assert ece(scores, hits, 8) == pytest.approx(logged) == options['error']
    assert options['n_bins'] == 8


@needs_mmdet
def test_any_backend_and_a_validation_alone(data_root, tmp_path, monkeypatch):
    """Pictures go through ``Visualizer.add_image``, whatever is behind it; a run that only
    validates is at step 0."""
    from tests.support import runs
    added = []
    monkeypatch.setattr(Visualizer, 'add_image', lambda self, name, image, step=0: added.append(
        (name, image.dtype, image.ndim, image.shape[-1], step)))
    runs.runner(detector(data_root, tmp_path / 'run')).val()
    assert added == [('reliability', np.uint8, 3, 3, 0), ('predictions', np.uint8, 3, 3, 0)]


@needs_mmpose
def test_pose_estimator(tmp_path, drawn):
    from tests.support import runs
    from tests.test_tools.conftest import tool_module
    write_demo_data(tmp_path / 'data', kind='stick-figures', train=6, val=4)
    text = tool_module('stress/tiny').FIGURES.replace('data/figures', str(tmp_path / 'data'))
    trained = []
    for name, hooks in (('plain', []), ('seen', [HOOK])):
        cfg = Config.fromstring(text, '.py')
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / name), experiment_name=name,
                                 randomness=dict(seed=0), log_level='ERROR', custom_hooks=hooks))
        trained.append(runs.train(cfg))
    runs.assert_equal(*map(runs.weights, trained))
    found = images(tmp_path / 'seen')
    assert set(found) == {'reliability_1.png', 'predictions_1.png'}
    _, scores, hits, _ = drawn[-1]
    pck = trained[1].message_hub.get_scalar('val/PCK').current()
    assert hits.mean() == pytest.approx(pck, abs=0.1)  # PCK is the mean over keypoints of means
    assert len(scores) > 13


@pytest.mark.parametrize('options', [dict(num_images=0), dict(num_images=1.5), dict(score_thr=2)])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=f'CalibrationPictureHook: {next(iter(options))}'):
        CalibrationPictureHook(**options)


@pytest.mark.parametrize('changes, message', [
    (dict(val_dataloader=dict(sampler=dict(type='DefaultSampler', shuffle=True))),
     'sampler.shuffle=False'),
    (dict(val_evaluator=dict(type='mmskd.DetCalibrationMetric', n_bins=0)), 'n_bins')])
def test_what_cannot_be_drawn_is_refused_before_the_training(changes, message):
    hook, cfg = CalibrationPictureHook(), dict(default_scope='mmdet')
    hook.before_run(SimpleNamespace(cfg=Config(cfg)))
    with pytest.raises(UsageError, match=message):
        hook.before_run(SimpleNamespace(cfg=Config(dict(cfg, **changes))))


def test_a_model_that_diverged_is_not_drawn():
    """And the training goes on."""
    hook, said = CalibrationPictureHook(), []
    hook._task = 'pose'
    hook._rule = module.rule_of(Config(dict(default_scope='mmpose')))
    record = dict(image_id=1, image_path='1.png', keypoints=np.full((1, 2, 2), np.nan),
                  scores=np.ones((1, 2)), gt_keypoints=np.ones((1, 2, 2)),
                  gt_visible=np.ones((1, 2), bool), gt_boxes=np.array([[0., 0, 9, 9]]),
                  gt_areas=np.array([np.nan]), gt_head_sizes=np.array([np.nan]))
    hook._records = [record]
    dataset = [None]

    class Data(list):
        metainfo = dict(num_keypoints=2, keypoint_id2name={0: 'a', 1: 'b'})

    runner = SimpleNamespace(val_dataloader=SimpleNamespace(dataset=Data(dataset)),
                             logger=SimpleNamespace(warning=said.append))
    hook.after_val_epoch(runner)
    assert 'draws nothing: 4 of the 4 numbers of its predicted keypoints are not finite' in said[0]
