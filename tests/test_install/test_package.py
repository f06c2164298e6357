"""setup.py: what it requires (nothing), refuses, and puts under mmskd/.mim."""
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip('setuptools')


@pytest.fixture
def tree(tmp_path):
    """A small copy of the checkout: building writes beside setup.py."""
    tree = tmp_path / 'a tree'
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'MANIFEST.in', 'LICENSE',
                 'mmskd/__init__.py', 'mmskd/version.py', 'mmskd/environment.py'):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in ('configs/pskd_x.py', 'configs/deep/er.py', 'configs/__pycache__/pskd_x.pyc',
                 'tools/train.py', 'model-index.yml'):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text('x = 1\n')
    return tree


def build(tree, what):
    """``what`` is a hook of PEP 517 or PEP 660; pip calls them the same way."""
    code = ('import sys; from setuptools import build_meta\n'
            'if not hasattr(build_meta, sys.argv[1]): sys.exit(77)\n'
            'print(getattr(build_meta, sys.argv[1])("out"))')
    (tree / 'out').mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, '-c', code, what], cwd=tree, capture_output=True,
                          text=True)
    if done.returncode == 77:
        pytest.skip(f'this setuptools has no {what}')
    assert done.returncode == 0, done.stdout + done.stderr
    return tree / 'out' / done.stdout.splitlines()[-1]


def in_wheel(path):
    with zipfile.ZipFile(path) as file:
        metadata = next(name for name in file.namelist() if name.endswith('/METADATA'))
        return file.namelist(), file.read(metadata).decode()


def test_wheel_has_configs_and_requires_nothing(tree):
    names, metadata = in_wheel(build(tree, 'build_wheel'))
    mim = {name for name in names if '.mim/' in name}
    assert mim == {'mmskd/.mim/configs/pskd_x.py', 'mmskd/.mim/configs/deep/er.py',
                   'mmskd/.mim/tools/train.py', 'mmskd/.mim/model-index.yml'}
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist')]
    assert all('extra ==' in line for line in required), required
    assert not (tree / 'mmskd' / '.mim').exists(), 'a wheel leaves nothing in the checkout'


def test_editable_links_configs(tree):
    build(tree, 'build_editable')
    mim = tree / 'mmskd' / '.mim'
    assert (mim / 'configs' / 'pskd_x.py').is_file()
    assert (mim / 'model-index.yml').is_file()
    assert os.readlink(mim / 'tools') == os.path.join('..', '..', 'tools')

    build(tree, 'build_editable')  # again, over its own links
    names, _ = in_wheel(build(tree, 'build_wheel'))  # and a wheel does not follow them
    assert sum(name.endswith('pskd_x.py') for name in names) == 1


def test_sdist_builds_the_same_wheel(tree, tmp_path):
    direct, _ = in_wheel(build(tree, 'build_wheel'))
    with tarfile.open(build(tree, 'build_sdist')) as file:
        file.extractall(tmp_path / 'unpacked')
    source, = (tmp_path / 'unpacked').iterdir()
    assert sorted(in_wheel(build(source, 'build_wheel'))[0]) == sorted(direct)


@pytest.mark.parametrize('version', ['(3, 8, 18)', '(3, 13, 0)'])
def test_setup_refuses_other_pythons(version):
    code = (f'import sys, runpy; sys.version_info = {version}; sys.argv = ["setup.py", "--name"]; '
            'runpy.run_path("setup.py", run_name="__main__")')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'mmskd needs Python 3.9 to 3.12, this is Python 3.' in done.stderr
