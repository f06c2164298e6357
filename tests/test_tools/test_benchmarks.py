"""What studies train and compare with: their files, label smoothing, the small classifier."""
import copy
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import Runner

from mmskd.engine.hooks import PSKDHook
from tests.support import detectors

BENCHMARKS = Path(__file__).resolve().parents[2] / 'tools' / 'benchmarks'
STUDIES = sorted((BENCHMARKS / 'studies').glob('*.yaml'))
# Not in any config before
ADDED = 'custom_imports', 'custom_hooks', 'train_dataloader.dataset.indices', 'train_cfg.val_begin'


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    """As for tools/train.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_studies_ask_for_what_there_is(path, load_tool, monkeypatch):
    tool = load_tool('benchmarks/study')
    monkeypatch.chdir(BENCHMARKS.parents[1])
    study = tool.Study(path)
    assert study.definition['description']
    seen = set()
    for key in study.runs:
        if (key.config, key.method) in seen:
            continue
        seen.add((key.config, key.method))
        method = study.method(key, tool.Checkpoints(key))
        before, after = study._config_file(key.config), study.config(key, method)
        for option in method['options']:
            if option not in ADDED:
                node = before
                for part in option.split('.'):  # an option that is misspelt would do nothing
                    part = int(part) if isinstance(node, list) else part
                    known = range(len(node)) if isinstance(node, list) else node
                    assert part in known, f'{path.name}: {key}: there is no {option}'
                    node = node[part]
        assert after.randomness.seed == key.seed
        for name in ('train_dataloader', 'val_dataloader'):
            assert after[name].num_workers == 0, 'one process a run'
    # A method that no config is trained with was forgotten in the grid
    assert {method for _, method in seen} == set(study.methods)
    assert {config for config, _ in seen} == set(study.configs)


@pytest.fixture
def boxes():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(12, 4, generator=generator, dtype=torch.float64),
            torch.tensor([0, 1, 2, 3, 4, 4, 4, 4, 0, 1, 4, 2]),  # 4 is background
            torch.rand(12, generator=generator, dtype=torch.float64))


def test_smoothed_focal_loss(boxes):
    pytest.importorskip('mmdet')
    from benchmarks.label_smoothing import SmoothedFocalLoss
    from mmdet.models.losses import FocalLoss
    logits, labels, weight = boxes
    call = dict(weight=weight, avg_factor=5.0)
    stock = FocalLoss(loss_weight=2.0)(logits, labels, **call)
    torch.testing.assert_close(
        SmoothedFocalLoss(0.0, loss_weight=2.0)(logits, labels, **call), stock)
    loss, p = 0.0, logits.sigmoid()
    for row, (label, w) in enumerate(zip(labels, weight)):
        for column in range(4):
            y = 0.0 if label == 4 else 0.9 if label == column else 0.1
            balance = 0.25 * y + 0.75 * (1 - y)
            loss += w * balance * abs(y - p[row, column])**2 * F.binary_cross_entropy(
                p[row, column], torch.tensor(y, dtype=torch.float64))
    torch.testing.assert_close(SmoothedFocalLoss(0.2)(logits, labels, **call), loss / 5.0)


def test_smoothed_cross_entropy(boxes):
    pytest.importorskip('mmdet')
    from benchmarks.label_smoothing import SmoothedCrossEntropyLoss
    from mmdet.models.losses import CrossEntropyLoss
    logits, labels, weight = boxes[0], boxes[1].clamp(max=3), boxes[2]
    call = dict(weight=weight, avg_factor=5.0)
    torch.testing.assert_close(
        SmoothedCrossEntropyLoss(0.0, loss_weight=2.0)(logits, labels, **call),
        CrossEntropyLoss(loss_weight=2.0)(logits, labels, **call))
    target = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
    torch.testing.assert_close(
        SmoothedCrossEntropyLoss(0.1)(logits, labels, **call),
        (weight * -(target * logits.log_softmax(1)).sum(1)).sum() / 5.0)


def test_softmax_metric():
    from benchmarks.small_classifier import SoftmaxMetric
    generator = np.random.default_rng(0)
    z = generator.normal(0, 2, (4000, 5))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = (p.cumsum(1) < generator.random((4000, 1))).sum(1)  # drawn as p has it
    metric = SoftmaxMetric()
    for scale in (1.0, 3.0):
        metric.results = []
        metric.process({}, [dict(logits=torch.tensor(scale * row), label=torch.tensor(label))
                            for row, label in zip(z, labels)])
        values = metric.compute_metrics(metric.results)
        assert values['error'] == pytest.approx((z.argmax(1) != labels).mean())
        assert values['NLL'] == pytest.approx(F.cross_entropy(
            torch.tensor(scale * z), torch.tensor(labels)).item(), rel=1e-5)
        assert values['ECE_T'] < 0.03 and values['NLL_T'] == pytest.approx(
            F.cross_entropy(torch.tensor(z), torch.tensor(labels)).item(), rel=0.01)
        assert (values['ECE'] < 0.03) == (scale == 1.0), 'overconfident three times over'


def test_small_classifier_trains(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    (tmp_path / 'data' / 'cifar10_small').mkdir(parents=True)
    np.savez(tmp_path / 'data/cifar10_small/cifar10_small.npz',
             classes=[str(n) for n in range(10)],
             **{f'{name}_{split}': value for split in ('train', 'test') for name, value in (
                 ('x', generator.integers(0, 256, (8, 32, 32, 3), np.uint8)),
                 ('y', np.arange(8)))})
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(BENCHMARKS / 'configs' / 'resnet_cifar10_small.py')
    cfg.merge_from_dict({
        'work_dir': 'work', 'train_dataloader.batch_size': 4, 'train_cfg.max_epochs': 1,
        'train_cfg.val_begin': 1, 'default_hooks.checkpoint.interval': -1, 'log_level': 'ERROR',
        'model.widths': (8, 8, 16), 'experiment_name': 'small_classifier',
        'visualizer.name': 'small_classifier'})
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    assert 0 <= runner.message_hub.get_scalar('val/softmax/error').current() <= 1
    assert runner.train_dataloader.dataset.metainfo['classes'][9] == '9'


def test_small_classifier_is_small_and_augments_the_training_alone():
    from benchmarks.small_classifier import SmallResNet
    model = SmallResNet(10)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    cfg = Config.fromfile(BENCHMARKS / 'configs' / 'resnet_cifar10_small.py')
    assert cfg.train_dataloader.dataset.augment and not cfg.val_dataloader.dataset.get('augment')


def test_mistakes_in_annotations_are_as_many_as_asked_and_always_the_same():
    from benchmarks.noisy_annotations import LoadNoisyAnnotations
    images = [dict(img_id=i, instances=[
        dict(bbox=[j, 0, j + 1, 1], bbox_label=(i + j) % 4, ignore_flag=0) for j in range(20)])
        for i in range(100)]

    def load(**options):
        noisy = LoadNoisyAnnotations(num_classes=4, with_bbox=True, **options)
        found = [noisy(dict(image)) for image in images]
        places = [each['gt_bboxes'].numpy()[:, 0].astype(int) for each in found]
        return places, [each['gt_bboxes_labels'] for each in found]

    truth = [(i + np.arange(20)) % 4 for i in range(100)]
    places, labels = load(wrong=.4)
    wrong = np.array(labels) != np.array(truth)
    assert wrong.mean() == pytest.approx(.4, abs=.03)
    shifts = np.bincount((np.array(labels) - np.array(truth))[wrong] % 4, minlength=4)
    assert (shifts[1:] / wrong.sum() == pytest.approx(1 / 3, abs=.05)) and shifts[0] == 0
    assert all(map(np.array_equal, labels, load(wrong=.4)[1])), 'in each epoch'
    assert not all(map(np.array_equal, labels, load(wrong=.4, seed=1)[1]))
    left, rest = load(wrong=.4, missing=.3)
    assert sum(map(len, left)) / 2000 == pytest.approx(.7, abs=.03)
    for mine, which, all_labels in zip(rest, left, labels):
        assert np.array_equal(mine, all_labels[which]), 'the rest is as without'
    assert all(map(np.array_equal, load()[1], truth))
    assert images[0]['instances'][0]['bbox_label'] == 0, 'the data set is left alone'


@pytest.mark.parametrize('family', ['retinanet', 'faster_rcnn'])
def test_channels_last_changes_the_layout_alone(family):
    from benchmarks.channels_last import ChannelsLastHook
    model = detectors.build(family)
    before = copy.deepcopy(model.state_dict())
    expected = taught(model)
    ChannelsLastHook().before_run(types.SimpleNamespace(model=model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    maps = model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(taught(model), expected, rtol=1e-3, atol=1e-5)


def taught(model):
    """The losses of a model that its past self teaches."""
    hook = PSKDHook(precision=None)
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.5
    with torch.no_grad():
        losses = detectors.losses(model)
    hook.detach()
    return losses
