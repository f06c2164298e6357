"""Says whether the packages that mmskd plugs into are there, in versions that it knows.

mmskd's installation never touches torch or OpenMMLab's packages, so it looks at them when it is
imported. The look is quick: versions are read without importing mmcv, mmdet or mmpose. The set-up
script runs this file by itself, so it needs nothing but the standard library.
"""
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

PYTHON = ((3, 9), (3, 12))

# module: (needed, oldest version, first version that is too new, command that brings a good one).
# The maintained forks (onedl-*) have the same module names.
PACKAGES = {
    'torch': (True, (2, 0), None, "pip install 'torch==2.9.1' 'torchvision==0.24.1'"),
    'mmengine': (True, (0, 10), None, "pip install 'mmengine==0.10.7'"),
    'mmcv': (True, (2, 0, 1), (2, 2),
             "pip install --no-build-isolation --no-deps 'mmcv==2.1.0'"),
    'mmdet': (False, (3, 0), (4, 0), "pip install 'mmdet==3.3.0'"),
    'mmpose': (False, (1, 0), (2, 0), "pip install --no-deps 'mmpose==1.3.2'"),
}
FORKS = {'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection'}


def find_version(module):
    """Version of a module as ``(text, is_fork)``; None if absent, '' if it does not tell."""
    loaded = getattr(sys.modules.get(module), '__version__', None)
    spec = None if loaded else find_spec(module)
    if not loaded and spec is None:
        return None, False
    # What would be imported, not what was installed last: a fork and the original can both be on
    # record, and a clone on PYTHONPATH is not on record at all.
    folder = os.path.dirname((spec or sys.modules[module].__spec__).origin or '')
    try:
        with open(os.path.join(folder, 'version.py'), encoding='utf-8') as file:
            text = file.read()
    except OSError:
        text = ''
    fork = FORKS.get(module)
    is_fork = fork is not None and fork in text
    literal = re.search(r'''^__version__[^=\n]*=\s*['"]([^'"]+)['"]''', text, re.MULTILINE)
    if loaded or literal:
        return loaded or literal.group(1), is_fork
    for name in ((fork, module) if is_fork else (module, fork)):
        try:
            return version(name or module), is_fork or name == fork
        except PackageNotFoundError:
            pass
    return '', is_fork


def numbers(text):
    """'2.9.1+cpu' as (2, 9, 1); empty when there is no number to compare."""
    found = re.match(r'(\d+)\.(\d+)(?:\.(\d+))?', text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def dotted(parts):
    """(2, 9, 1) as '2.9.1'."""
    return '.'.join(str(part) for part in parts)


def find_problems():
    """One line for each thing that mmskd cannot work with; an empty list if all is well."""
    problems = []
    oldest, newest = PYTHON
    if not oldest <= sys.version_info[:2] <= newest:
        problems.append(f'Python {dotted(sys.version_info[:3])} found, mmskd needs '
                        f'{dotted(oldest)} to {dotted(newest)}: make the environment with one of '
                        'these')
    for module, (needed, low, high, command) in PACKAGES.items():
        text, is_fork = find_version(module)
        if text is None:
            if needed:
                problems.append(f'{module} is not installed: {command}')
            continue
        found = numbers(text)
        if not found:
            continue
        # The forks do not limit mmcv, their packages go on where the originals stopped.
        too_new = high and not (is_fork and module == 'mmcv') and found >= high
        if found < low or too_new:
            wanted = f'>= {dotted(low)}' + (f', < {dotted(high)}' if high else '')
            problems.append(f'{module} {text} found, mmskd needs {wanted}: {command}')
    return problems


def check_environment():
    """Raise an ImportError that lists what is wrong and the command that mends it."""
    problems = find_problems()
    if problems:
        raise ImportError('mmskd cannot work in this environment '
                          f'({sys.executable}):\n  ' + '\n  '.join(problems))
