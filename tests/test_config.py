from pathlib import Path

import mmengine
import pytest
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.hub import get_config

from mmskd.config import config_root, find_config, load_config, project_of, register_config_scope
from mmskd.optional import HAS_MMDET

ROOT = Path(__file__).resolve().parents[1]
needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on the path, without configs."""
    home = tmp_path / 'site' / 'apackage'
    home.mkdir(parents=True)
    (home / '__init__.py').touch()
    monkeypatch.syspath_prepend(str(home.parent))
    return home


def test_config_root_of_checkout_and_installed_package(package):
    with pytest.raises(FileNotFoundError, match='apackage has no folder with configs'):
        config_root('apackage')
    (package.parent / 'configs').mkdir()
    assert config_root('apackage') == package.parent / 'configs'
    (package / '.mim' / 'configs').mkdir(parents=True)
    assert config_root('apackage') == package / '.mim' / 'configs'
    with pytest.raises(ModuleNotFoundError, match='nopackage is not installed'):
        config_root('nopackage')


def test_find_config(package):
    folder = package / '.mim' / 'configs' / 'sub'
    folder.mkdir(parents=True)
    (folder / 'model_a.py').write_text('x = 1')
    assert find_config('apackage::sub/model_a.py') == folder / 'model_a.py'
    assert find_config(str(folder / 'model_a.py')) == folder / 'model_a.py'
    assert load_config('apackage::sub/model_a.py').x == 1
    for name, message in {
            'apackage::sub/model_b.py': 'did you mean apackage::sub/model_a.py?',
            'apackage::zzz': 'did you mean the files in',
            'apackage::': 'no config apackage::',
            'a.b::c.py': 'not of the form',
            'a::b::c.py': 'not of the form',
            'sub/model_a.py': 'is given as package::path',
    }.items():
        with pytest.raises(FileNotFoundError, match='there is no|not of the form') as error:
            find_config(name)
        assert message in str(error.value)


@pytest.mark.parametrize('cfg, project', [
    (dict(default_scope='mmpose', model=dict(type='mmdet.X')), 'mmpose'),
    (dict(default_scope='mmdet'), 'mmdet'),
    (dict(model=dict(type='mmpose.X')), 'mmpose'),
    (dict(model=dict(type='X', _scope_='mmpose')), 'mmpose'),
    (dict(default_scope='mmyolo', model=dict(type='X')), 'mmdet'),
    (dict(), 'mmdet'),
])
def test_project_of(cfg, project):
    assert project_of(Config(cfg)) == project


@needs_mmdet
def test_project_of_a_config_with_classes():
    from mmdet.models import RetinaNet
    assert project_of(Config(dict(default_scope=None, model=dict(type=RetinaNet)))) == 'mmdet'


# ------------------------------------------------------------------ as a base


def write(folder, text, name='child.py'):
    (folder / name).write_text(text)
    return str(folder / name)


@needs_mmdet
def test_base_without_a_folder_builds(tmp_path):
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope
    cfg = Config.fromfile(write(tmp_path, "_base_ = 'mmskd::pskd_retinanet.py'\nlr = 1"))
    assert cfg.custom_hooks[0]['type'] == 'mmskd.PSKDHook' and cfg.lr == 1
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        assert type(MODELS.build(cfg.model)).__name__ == 'RetinaNet'


@needs_mmdet
def test_hooks_of_a_base_are_built_in_a_child(tmp_path):
    """mmengine gives what a child takes over from ``_base_`` the scope of the base."""
    from mmengine.registry import HOOKS, DefaultScope
    cfg = Config.fromfile(write(tmp_path, """
_base_ = 'mmskd::pskd_rtmdet.py'
custom_hooks = [*_base_.custom_hooks, dict(type='EmptyCacheHook')]
"""))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = [type(HOOKS.build(hook)).__name__ for hook in cfg.custom_hooks]
    assert built == ['EMAHook', 'PipelineSwitchHook', 'PSKDHook', 'EmptyCacheHook']


@needs_mmdet
def test_base_among_others_and_in_other_formats(tmp_path):
    write(tmp_path, 'extra = 1', 'extra.py')
    child = write(tmp_path, "_base_ = ['mmskd::bccd/pskd_retinanet_r18_bccd.py', 'extra.py']")
    cfg = Config.fromfile(child)
    assert cfg.extra == 1 and cfg.model.bbox_head.num_classes == 3
    child = write(tmp_path, "_base_: 'mmskd::pskd_detr.py'", 'child.yml')
    assert Config.fromfile(child).model.type == 'DETR'


@needs_mmdet
def test_hub_get_config():
    cfg = get_config('mmskd::pskd_retinanet.py')
    assert cfg.filename == str(find_config('mmskd::pskd_retinanet.py'))
    assert cfg.model.pop('_scope_') == 'mmdet' and cfg.model == get_config(RETINANET).model
    assert get_config('mmskd::bccd/retinanet_r18_bccd.py').model.backbone.depth == 18
    with pytest.raises(AssertionError, match='Weights'):
        get_config('mmskd::pskd_retinanet.py', pretrained=True)


def test_unknown_names_are_explained(tmp_path):
    child = write(tmp_path, "_base_ = 'mmskd::pskd_retinanett.py'")
    for read in (lambda: Config.fromfile(child), lambda: get_config('mmskd::pskd_retinanett.py')):
        with pytest.raises(FileNotFoundError, match='did you mean mmskd::pskd_retinanet.py'):
            read()


def test_registering_again_changes_nothing():
    from mmengine.hub import hub
    functions = [(Config, '_get_cfg_path'), (hub, '_get_package_and_cfg_path'),
                 (hub, '_get_cfg_metainfo')]
    before = [getattr(owner, name) for owner, name in functions]
    register_config_scope()
    assert [getattr(owner, name) for owner, name in functions] == before


@needs_mmdet
def test_other_names_go_on_as_before():
    from mmengine.hub import hub
    for owner, name, args in ((Config, '_get_cfg_path', (RETINANET, 'child.py')),
                              (Config, '_get_cfg_path', ('base.py', 'folder/child.py')),
                              (hub, '_get_package_and_cfg_path', (RETINANET, )),
                              (hub, '_get_cfg_metainfo',
                               (str(config_root('mmdet').parents[1]), RETINANET[7:]))):
        function = getattr(owner, name)
        assert function(*args) == function.__wrapped__(*args)
    with pytest.raises(ValueError, match='just like'):
        hub._get_package_and_cfg_path('mmdet::no_folder.py')


# ------------------------------------------------------------------ model-index.yml


def test_every_config_is_in_the_index_and_every_entry_a_config(tmp_path):
    (tmp_path / '.mim').mkdir()
    for name in ('configs', 'model-index.yml'):
        (tmp_path / '.mim' / name).symlink_to(ROOT / name)
    configs = {
        str(path.relative_to(ROOT / 'configs'))
        for path in (ROOT / 'configs').rglob('*.py') if not {'_base_', 'demo'} & set(path.parts)
    }
    index = mmengine.load(ROOT / 'model-index.yml')
    files = [mmengine.load(ROOT / name) for name in index['Import']]
    collections = {entry['Name'] for file in files for entry in file['Collections']}
    models = [entry for file in files for entry in file['Models']]
    assert {entry['Config'].partition('/')[2] for entry in models} == configs
    for entry in models:
        path = entry['Config'].partition('/')[2]
        assert _get_cfg_metainfo(str(tmp_path), path) == entry
        assert entry['Name'] == Path(path).stem and entry['In Collection'] in collections
    for file in files:
        assert all((ROOT / entry['README']).is_file() for entry in file['Collections'])


def test_readme_links_every_config():
    text = (ROOT / 'configs' / 'README.md').read_text()
    for path in (ROOT / 'configs').rglob('*.py'):
        if not {'_base_', 'demo'} & set(path.parts):
            assert f'({path.relative_to(ROOT / "configs")})' in text
