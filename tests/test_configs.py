"""Every config parses, its model builds, and it is the stock config and one hook more."""
import os
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm

from mmskd.config import load_config

pytest.importorskip('mmdet')

ROOT = Path(__file__).resolve().parents[1] / 'configs'
PSKD_HOOK = dict(type='mmskd.PSKDHook', alpha_T=0.8)
FAMILIES = sorted(path.name for path in ROOT.glob('pskd_*.py'))
BCCD = sorted(path.name for path in (ROOT / 'bccd').glob('*.py'))
DATA = os.environ.get('MMSKD_TEST_DATA')
needs_bccd = pytest.mark.skipif(
    not DATA or not Path(DATA, 'bccd').is_dir(), reason='MMSKD_TEST_DATA has no bccd')


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


@pytest.mark.parametrize('name', BCCD)
def test_bccd_builds(name):
    cfg = load_config(f'mmskd::bccd/{name}')
    hooks = [PSKD_HOOK] if name.startswith('pskd_') else []
    assert list(cfg.get('custom_hooks', [])) == hooks
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.data_root + dataset.ann_file == f'data/bccd/annotations/{split}.json'
        if split != 'train':
            coco, calibration = cfg[f'{split}_evaluator']
            assert coco.type == 'CocoMetric' and calibration.type == 'mmskd.DetCalibrationMetric'
            assert coco.ann_file == calibration.ann_file == dataset.data_root + dataset.ann_file
    model = build_model(cfg)
    assert 'Pretrained' not in str(model.backbone.init_cfg), 'from scratch, nothing is downloaded'
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()
    norms = [module for module in model.backbone.modules() if isinstance(module, _BatchNorm)]
    assert norms and all(norm.training for norm in norms)


def test_bccd_pair_differs_by_the_hook_only():
    for name in ('retinanet', 'faster_rcnn'):
        pskd = load_config(f'mmskd::bccd/pskd_{name}_r18_bccd.py')
        pskd.pop('custom_hooks')
        assert plain(pskd) == plain(load_config(f'mmskd::bccd/{name}_r18_bccd.py'))


@needs_bccd
@pytest.mark.parametrize('name', [
    name for name in BCCD if name.startswith('pskd_') or f'pskd_{name}' not in BCCD])
def test_bccd_trains_an_iteration(name, tmp_path, monkeypatch):
    from mmengine.runner import Runner
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').symlink_to(Path(DATA).resolve())
    cfg = load_config(f'mmskd::bccd/{name}')
    cfg.work_dir = 'work'
    cfg.merge_from_dict({
        'train_dataloader.dataset.indices': 8, 'val_dataloader.dataset.indices': 2,
        'train_dataloader.num_workers': 0, 'val_dataloader.num_workers': 0,
        'train_cfg.max_epochs': 1, 'param_scheduler': [],
        'val_evaluator': [dict(type='mmskd.DetCalibrationMetric',
                               ann_file='data/bccd/annotations/val.json')],
    })
    runner = Runner.from_cfg(Config(cfg.to_dict()))
    runner.train()
    assert runner.iter == 1
    loss, _ = runner.message_hub.get_scalar('train/loss').data
    assert 0 < loss[0] < 10
    assert runner.val_dataloader.dataset.metainfo['classes'] == ('RBC', 'WBC', 'Platelets')
