"""Configs of NKD, USKD and PS-KD on classifiers: what they add, and, where mmpretrain is installed,
to what.
"""
import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmskd.config import load_config
from mmskd.registry import HOOKS, MODELS

ROOT = Path(__file__).resolve().parents[1]
ALL = sorted(path for folder in ('nkd', 'uskd', 'pskd')
             for path in (ROOT / 'configs' / folder).glob('*.py'))
DETECTORS = [path for path in ALL if 'rcnn' in path.stem]
CONFIGS = [path for path in ALL if path not in DETECTORS]
STUDENTS = [path for path in CONFIGS if path.name.startswith(('nkd_', 'uskd_', 'pskd_'))]
needs_mmpretrain = pytest.mark.skipif(
    find_spec('mmpretrain') is None, reason='mmpretrain is not installed')


def by_name(path):
    return path.stem


@pytest.mark.parametrize('path', STUDENTS, ids=by_name)
def test_hook_builds(path):
    """Without the base, which may be a package that is not there."""
    hook, = runpy.run_path(str(path))['custom_hooks']
    built = HOOKS.build(hook)
    assert type(built).__name__ == dict(nkd='NKDHook', uskd='USKDHook',
                                        pskd='PSKDHook')[path.parent.name]
    cifar = 'cifar100' in path.stem
    if path.parent.name == 'nkd':
        loss = MODELS.build(built.loss_cfgs[0])
        assert (loss.gamma, loss.tau) == ((3.5, 3.) if cifar else (1.5, 1.))
    elif path.parent.name == 'uskd':
        assert (built.loss.alpha, built.loss.beta, built.loss.mu) == \
            ((0.1, 0.1, 0.1) if cifar else (1., 0.1, 0.005))
        assert built.num_classes == (100 if cifar else 1000)


@pytest.mark.parametrize('folder', ['nkd', 'uskd', 'pskd'])
def test_metafile_lists_what_is_there(folder):
    entries = yaml.safe_load((ROOT / f'configs/{folder}/metafile.yml').read_text())['Models']
    assert sorted(entry['Config'] for entry in entries) == [
        f'configs/{folder}/{path.name}' for path in ALL if path.parent.name == folder]
    assert all(entry['Name'] == Path(entry['Config']).stem for entry in entries)
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert f'configs/{folder}/metafile.yml' in index


@pytest.mark.parametrize('path', CONFIGS, ids=by_name)
def test_bases_are_there(path):
    while not (base := re.search(r"_base_ = '(.*)'",
                                 path.read_text()).group(1)).startswith('mmpretrain::'):
        path = path.parent / base
        assert path.is_file()
    assert base.endswith('.py')


@needs_mmpretrain
@pytest.mark.parametrize('path', STUDENTS, ids=by_name)
def test_student_is_a_stock_model_that_the_hook_attaches_to(path):
    from mmpretrain.registry import MODELS
    cfg = load_config(str(path))
    hook, = cfg.custom_hooks
    base = re.search(r"_base_ = '(mmpretrain::.*)'", path.read_text())
    if base:
        stock = load_config(base.group(1))
        assert not stock.get('custom_hooks'), 'a hook of the stock config is lost'
        cfg.pop('custom_hooks')
        assert plain(cfg) == plain(stock)
    if path.parent.name == 'nkd':
        teacher = load_config(hook.teacher.config)
        assert teacher.model.head.num_classes == cfg.model.head.num_classes
    attach(hook, cfg.model, MODELS, 'mmpretrain')


@pytest.mark.skipif(find_spec('mmdet') is None, reason='mmdet is not installed')
@pytest.mark.parametrize('path', DETECTORS, ids=by_name)
def test_detector_is_a_stock_model_that_the_hook_attaches_to(path):
    from mmengine.registry import MODELS
    cfg = load_config(str(path))
    hook, = cfg.custom_hooks
    attach(hook, cfg.model, MODELS, 'mmdet')


def attach(hook, model, registry, scope):
    """Build the hook, its teacher without the checkpoint, and attach it to the model, which nothing
    pretrains.
    """
    model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(scope):
        model = registry.build(model)
        if 'teacher' in hook:
            teacher = load_config(hook.teacher.config).model
            teacher.backbone.init_cfg = None
            hook = dict(hook, teacher=registry.build(teacher))
    built = HOOKS.build(dict(hook))
    built.attach(model)
    built.detach()


def plain(node):
    """A config without the ``_scope_`` that mmengine notes in what comes from another package."""
    node = node.to_dict() if isinstance(node, Config) else node
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    return [plain(child) for child in node] if isinstance(node, (list, tuple)) else node
