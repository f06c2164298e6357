"""mmskd/environment.py: which packages and versions mmskd accepts, and what it says."""
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

GOOD = {'torch': '2.9.1+cu128', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0',
        'mmpose': '1.3.2'}


@pytest.fixture
def environment():
    # By path: importing mmskd runs the check already.
    return runpy.run_path(str(ROOT / 'mmskd' / 'environment.py'))


def problems_with(environment, monkeypatch, forks=(), **versions):
    versions = {**GOOD, **versions}
    found = environment['find_problems']
    monkeypatch.setitem(found.__globals__, 'find_version',
                        lambda module: (versions[module], module in forks))
    return found()


@pytest.mark.parametrize('forks, versions', [
    ((), {}),
    ((), {'mmdet': None}),
    ((), {'mmpose': None}),
    ((), {'torch': '2.0.0', 'mmengine': '0.10.0', 'mmcv': '2.0.1', 'mmdet': '3.0.0',
          'mmpose': '1.0.0'}),
    (('mmengine', 'mmcv', 'mmdet'), {'mmengine': '0.10.12', 'mmcv': '2.3.6', 'mmdet': '3.5.1'}),
    ((), {'torch': ''}),  # a module that does not tell its version is not accused
])
def test_good_environments(environment, monkeypatch, forks, versions):
    assert problems_with(environment, monkeypatch, forks, **versions) == []


@pytest.mark.parametrize('module, version', [
    ('torch', '1.13.1'), ('torch', None),
    ('mmengine', '0.9.1'), ('mmengine', None),
    ('mmcv', '1.7.2'), ('mmcv', '2.0.0rc4'), ('mmcv', '2.2.0'), ('mmcv', None),
    ('mmdet', '2.28.2'), ('mmdet', '4.0.0'),
    ('mmpose', '0.29.0'), ('mmpose', '2.0.0'),
])
def test_bad_versions_are_named_with_a_cure(environment, monkeypatch, module, version):
    problem, = problems_with(environment, monkeypatch, **{module: version})
    assert problem.startswith(module)
    assert (version or 'not installed') in problem
    assert 'pip install' in problem


@pytest.mark.parametrize('version', [(3, 8, 18), (3, 13, 0)])
def test_python_version(environment, monkeypatch, version):
    monkeypatch.setattr(sys, 'version_info', version)
    problem, = problems_with(environment, monkeypatch)
    assert problem.startswith('Python 3.') and '3.9 to 3.12' in problem


def test_versions_are_read_without_importing(environment, monkeypatch, tmp_path):
    for name, text in {'stock_x': "__version__ = '2.2.0'\n",
                       'typed_x': "__version__: str = '1.5.0'\n",
                       'silent_x': ''}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text('raise RuntimeError("imported")')
        (tmp_path / name / 'version.py').write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    find_version = environment['find_version']
    assert find_version('stock_x') == ('2.2.0', False)
    assert find_version('typed_x') == ('1.5.0', False)
    assert find_version('silent_x') == ('', False)
    assert find_version('absent_x') == (None, False)


def test_a_fork_is_recognised(environment, monkeypatch, tmp_path):
    # The forks' version.py asks the installed distribution.
    (tmp_path / 'forked_x').mkdir()
    (tmp_path / 'forked_x' / '__init__.py').write_text('')
    (tmp_path / 'forked_x' / 'version.py').write_text(
        "from importlib.metadata import version\n__version__ = version('onedl-x')\n")
    info = tmp_path / 'onedl_x-2.3.6.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: onedl-x\nVersion: 2.3.6\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(environment['FORKS'], 'forked_x', 'onedl-x')
    assert environment['find_version']('forked_x') == ('2.3.6', True)


def test_import_error_lists_everything(environment, monkeypatch):
    check = environment['check_environment']
    monkeypatch.setitem(check.__globals__, 'find_version', lambda module: (None, False))
    with pytest.raises(ImportError) as raised:
        check()
    for name in ('torch', 'mmengine', 'mmcv', sys.executable):
        assert name in str(raised.value)


def test_this_environment_is_good(environment):
    assert environment['find_problems']() == []


def test_importing_mmskd_imports_neither_mmdet_nor_mmpose():
    code = ('import sys, mmskd; print(mmskd.__version__); '
            'sys.exit(bool({"mmdet", "mmpose"} & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
