"""The code and the commands in the documentation run."""
import ast
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mmskd.config import find_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted([
    ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'configs' / 'README.md', *DOCS.glob('*.md')
])


def fenced(page: Path, language: str) -> list:
    """The blocks of a language on a page."""
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)


def blocks(page: str) -> list:
    """The Python code on a page of the documentation."""
    return fenced(DOCS / page, 'python')


def snippets() -> list:
    """Each block of Python, with a name that says where it is."""
    return [pytest.param(block, id=f'{page.stem}-{i}') for page in PAGES
            for i, block in enumerate(fenced(page, 'python'))]


def commands() -> list:
    """Each line of shell that starts one of the tools."""
    found = {}
    for page in PAGES:
        for block in fenced(page, 'bash'):
            for line in block.replace('\\\n', ' ').splitlines():
                words = shlex.split(line, comments=True)
                tool = next((word for word in words if word.startswith(('tools/', '.ci/'))
                             and 'dataset_converters' not in word), None)  # those are MMPose's
                if tool and (words[0] in ('python', 'bash', 'torchrun') or '=' in words[0]):
                    found[' '.join(words)] = pytest.param(tool,
                                                          words[words.index(tool) + 1:],
                                                          id=' '.join(words)[:70])
    return list(found.values())


def installed(name: str) -> bool:
    """Whether a config's package is here: mmpretrain's are named, and not needed."""
    return find_spec(name.partition('::')[0]) is not None


def parsed(block: str) -> ast.AST:
    """The tree of a block, which may be a part of a call's arguments."""
    try:
        return ast.parse(block)
    except SyntaxError:
        return ast.parse(f'dict({block})')


@pytest.mark.parametrize('block', snippets())
def test_what_a_snippet_names_is_there(block, tmp_path):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpose')
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    import mmskd.registry as registries
    tree = parsed(block)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(compile(ast.Module([node], []), 'docs', 'exec'), {})
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(
                r'\w+::', node.value):
            if installed(node.value):
                find_config(node.value)
        kind = getattr(node.func, 'id', '') if isinstance(node, ast.Call) else ''
        if kind == 'dict' and "type='mmskd." in ast.unparse(node).split('(', 2)[1]:
            options = eval(compile(ast.Expression(node), 'docs', 'eval'),
                           dict.fromkeys(['ann_file', 'data_root'], ''))
            scope, _, name = options['type'].partition('.')
            registry, = (each for each in (registries.HOOKS, registries.MODELS, registries.METRICS,
                                           registries.DATASETS) if each.get(name) is not None)
            if registry is registries.METRICS:  # would read annotations
                inspect.signature(registry.get(name)).bind(
                    **{key: options[key]
                       for key in options if key != 'type'})
            elif registry is registries.HOOKS or name.endswith('Loss'):
                with DefaultScope.overwrite_default_scope('mmskd'):
                    registry.build(options)
    base = re.search(r'^_base_ = (.*)', block, re.M)
    if base and all(installed(name) for name in re.findall(r"'(\w+)::", base[1])):
        (tmp_path / 'my_config.py').write_text(block)
        (tmp_path / 'my_keypoints_info.py').touch()
        assert Config.fromfile(tmp_path / 'my_config.py').model


def test_each_option_that_a_table_names_is_one():
    from mmskd.engine import hooks
    tables = {}
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        for name, rows in re.findall(r'^\| option of `mmskd\.(\w+)` \|.*\n\| ---.*\n((?:\|.*\n)+)',
                                     text, re.M):
            cells = ''.join(row.split('|')[1] for row in rows.splitlines())
            tables.setdefault(name, []).extend(re.findall(r'`(\w+)`', cells))
    assert {'DistillHook', 'HeadDistillHook', 'USKDHook', 'NKDHook'} <= set(tables)
    for name, options in tables.items():
        assert not set(options) - set(inspect.signature(getattr(hooks, name)).parameters), name


@pytest.mark.parametrize('tool,arguments', commands())
def test_a_command_is_understood(tool, arguments, monkeypatch):
    assert (ROOT / tool).exists()
    if not tool.endswith('.py'):
        return
    for name in arguments:
        if re.match(r'(mmdet|mmpose)::', name):
            pytest.importorskip(name.partition('::')[0])
            find_config(name)
    path = ROOT / tool
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    spec = importlib.util.spec_from_file_location(f'command_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, 'parse_args'):
        module.parse_args()


def test_the_readme_attaches_to_a_bare_model():
    pytest.importorskip('mmdet')
    from tests.support import detectors
    block, = (each for each in fenced(ROOT / 'README.md', 'python') if 'hook.attach(model)' in each)
    model = detectors.build('retinanet')
    inputs, data_samples = detectors.batch()
    names = dict(model=model, inputs=inputs, data_samples=data_samples)
    exec(compile(block, 'README.md', 'exec'), names)
    assert detectors.total(names['losses'], 'loss_cls').isfinite()


def test_the_faq_reads_our_configs_where_nothing_has_imported_mmskd(tmp_path):
    """As the unmodified tools/train.py of MMDetection reads them."""
    pytest.importorskip('mmdet')
    block, = (each for each in blocks('faq.md') if '_base_' in each)
    (tmp_path / 'my_config.py').write_text(block)
    read = ('import sys; from mmengine.config import Config; assert "mmskd" not in sys.modules; '
            'print(Config.fromfile("my_config.py").custom_hooks[-1].type)')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', read],
                          cwd=tmp_path,
                          capture_output=True,
                          text=True)
    assert done.stdout.strip() == 'mmskd.PSKDHook', done.stderr


@pytest.fixture(scope='module')
def own():
    """What a user's own files define."""
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS

    from mmskd.registry import MODELS as MMSKD_MODELS
    names = {}
    for block in blocks('extend.md'):
        exec(compile(block, 'docs/extend.md', 'exec'), names)
    yield names
    for name in ('PolyLoss', 'BoxesFirstHead'):
        MODELS._module_dict.pop(name)
    MMSKD_MODELS._module_dict.pop('ScriptedTeacher')


@pytest.mark.parametrize('family,options', [
    ('faster_rcnn', {'roi_head.bbox_head.loss_cls': dict(_delete_=True, type='PolyLoss')}),
    ('retinanet', {'bbox_head.type': 'BoxesFirstHead'})], ids=['loss', 'head'])
def test_a_users_own_loss_and_head_are_taught(own, family, options):
    from mmskd.engine.hooks import PSKDHook
    from tests.support import detectors
    model = detectors.build(family, **options)
    stock = detectors.total(detectors.losses(model), 'loss_cls')
    hook = PSKDHook()
    hook.attach(model)
    hook.refresh_teacher()
    hook.alpha_t = 0.
    assert torch.equal(detectors.total(detectors.losses(model), 'loss_cls'), stock)
    with torch.no_grad():
        for parameter in hook.teacher.parameters():
            parameter.mul_(1.1)
    hook.alpha_t = 0.8
    assert not torch.equal(detectors.total(detectors.losses(model), 'loss_cls'), stock)
    head, = hook.heads_taught
    assert head.calls == head.paired > 0
    hook.detach()
    assert torch.equal(detectors.total(detectors.losses(model), 'loss_cls'), stock)


def test_a_users_own_teacher_teaches(own, tmp_path):
    pytest.importorskip('mmpose')
    from mmskd.engine.hooks import DistillHook
    from tests.support import poses
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Conv2d(3, 2, 1))
    torch.nn.init.constant_(model[1].bias, 5.)  # heatmaps without a bump above 0 say nothing
    torch.jit.script(model).save(str(tmp_path / 'pose.pt'))
    student = poses.build('rtmpose')
    student.dataset_meta = dict(keypoint_id2name=dict(enumerate('abcdefghijklmnopq')))
    hook = DistillHook(teacher=dict(type='mmskd.ScriptedTeacher', file=str(tmp_path / 'pose.pt'),
                                    names=['c', 'nobody'], keypoints='by_name'))
    hook.attach(student)
    assert poses.losses(student)['loss_logit'] > 0
    assert len(hook._teacher.untaught) == 16
