"""A few of each of tools/stress, drawn by a seed, in one process that imports once."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpose')

ROOT = Path(__file__).resolve().parents[2]
COUNTS = dict(kill=1, misuse=5, attack=4, soak=12, disk=1)
ALL = """
import importlib, os, sys
sys.path.insert(0, sys.argv[1])
arguments, results = sys.argv[2:], os.path.abspath('results.json')
for name, count in zip(arguments[::2], arguments[1::2]):
    sys.argv = [name + '.py', '--seed', '1', '--count', count, '--results', results]
    try:
        importlib.import_module(name).main()
    except SystemExit as ending:
        print(name, 'ends with', ending.code)
"""
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


def mounting(folder: Path) -> list:
    """What a command begins with that may mount a file system; nothing if none can."""
    mount = ['mount', '-t', 'tmpfs', 'tmpfs', str(folder)]
    for command in (['unshare', '--mount'], ['unshare', '--mount', '--user', '--map-root-user']):
        if shutil.which('unshare') and shutil.which('mount'):
            if subprocess.run([*command, *mount], capture_output=True).returncode == 0:
                return command
    return []


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stress')
    before = mounting(tmp_path_factory.mktemp('mounted'))
    names = [name for name in COUNTS if before or name != 'disk']
    environment = dict(os.environ, OMP_NUM_THREADS='1', MMSKD_INSIDE_A_MOUNT_NAMESPACE='1',
                       PYTHONPATH=f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    done = subprocess.run(
        [*before, sys.executable, '-W', 'ignore', '-c', ALL, str(ROOT / 'tools' / 'stress'),
         *(word for name in names for word in (name, str(COUNTS[name])))],
        cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / 'results.json').read_text())


@pytest.mark.parametrize('name', COUNTS)
def test_a_few(name, results):
    if name not in results:
        assert name == 'disk'
        pytest.skip('no file system can be mounted here')
    assert results[name]['failures'] == []
    assert next(iter(results[name]['counts'].values())) == COUNTS[name]


def test_no_failure_is_kept():
    found = json.loads((ROOT / 'results' / 'reliability.json').read_text())
    assert found.keys() <= COUNTS.keys() and not any(run['failures'] for run in found.values())
