"""What pyproject.toml cannot say.

The configs and tools go along, where OpenMMLab's `mim` looks for them.
"""
import os
import shutil
import sys

if not (3, 9) <= sys.version_info[:2] <= (3, 12):
    found = '.'.join(map(str, sys.version_info[:2]))
    sys.exit('mmskd needs Python 3.9 to 3.12, this is Python ' + found +
             ' (' + sys.executable + ')')

from setuptools import setup  # noqa: E402
from setuptools.command.build_py import build_py  # noqa: E402
from setuptools.command.develop import develop  # noqa: E402

ROOT = os.path.dirname(os.path.abspath(__file__))

# What `mmskd::...` in a config and OpenMMLab's `mim` look for in mmskd/.mim.
MIM = ('configs', 'tools', 'model-index.yml')


def copy(source, target):
    if os.path.isdir(source):
        shutil.copytree(source, target,
                        ignore=shutil.ignore_patterns('__pycache__', '*.py[cod]'))
    else:
        shutil.copy2(source, target)


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def add_mim(package, link):
    """Put the files of MIM into ``package/.mim``, as links or as copies."""
    folder = os.path.join(package, '.mim')
    os.makedirs(folder, exist_ok=True)
    for name in MIM:
        source, target = os.path.join(ROOT, name), os.path.join(folder, name)
        remove(target)
        if not os.path.exists(source):
            continue
        if link:
            try:
                # Relative, so that the checkout can be moved.
                os.symlink(os.path.join('..', '..', name), target)
                continue
            except OSError:
                pass  # a file system without links
        copy(source, target)


class BuildPy(build_py):
    """Runs for wheels, and (with ``editable_mode``) for `pip install -e` as PEP 660 has it."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            add_mim(os.path.join(ROOT, 'mmskd'), link=True)
        else:
            add_mim(os.path.join(self.build_lib, 'mmskd'), link=False)


class Develop(develop):
    """Runs for `pip install -e` as it was before PEP 660."""

    def run(self):
        add_mim(os.path.join(ROOT, 'mmskd'), link=True)
        super().run()


setup(cmdclass={'build_py': BuildPy, 'develop': Develop})
