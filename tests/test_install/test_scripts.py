"""The set-up and its callers: the order in which environments are looked for, the reason given when
something is missing, and which steps are done again. No test here downloads or compiles."""
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / 'tools').glob('*.sh')) + [ROOT / '.ci' / 'run']

pytestmark = pytest.mark.skipif(not shutil.which('bash') or os.name != 'posix',
                                reason='shell scripts')

# Stands for a Python, its venv module and its pip: enough for the set-up to go through its steps.
# $FAKE/log gets what pip was asked for, a file $FAKE/fail the word at which pip fails.
FAKE_PYTHON = r'''#!/bin/bash
case "$*" in
    "-m venv "*)
        mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && [ ! -e "$FAKE/no_venv" ] ;;
    "-m pip "*)
        echo "${*:4}" >> "$FAKE/log"
        [ "$2 $3" = 'pip install' ] || exit 0
        if [ -e "$FAKE/fail" ] && [[ "$*" == *"$(cat "$FAKE/fail")"* ]]; then
            cat "$FAKE/output" 2>/dev/null
            exit 1
        fi
        cat "$FAKE/building" 2>/dev/null
        for n in 1 2 3 4 5 6 7; do echo "  [$n/7] c++ file_$n.cpp"; done ;;
    *"environment.py ops")
        if [ -e "$FAKE/old_wheel" ]; then
            [ -e "$FAKE/building" ] || rm "$FAKE/old_wheel"
            echo 'built for another torch?'
            exit 1
        fi ;;
    *"< (3, 10)"*) echo "${FAKE_IS_39:-False}" ;;
    *sysconfig*) echo "$FAKE/Python.h" ;;
    *print*version_info*) echo 'Python 3.11.2' ;;
esac
'''


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Checkout:
    """A copy of the scripts in a folder with a space, on a machine of which each part is fake."""

    def __init__(self, tmp_path):
        self.root = tmp_path / 'a checkout'
        for name in ('tools/setup_env.sh', 'tools/run_tests.sh', 'tools/demo.sh',
                     'mmskd/environment.py'):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.bin = tmp_path / 'bin'
        self.fake = tmp_path / 'fake'
        self.fake.mkdir()
        (self.fake / 'Python.h').write_text('')
        self.python = write_program(tmp_path / 'base' / 'python', FAKE_PYTHON)
        # An active environment would be used before a new one is made.
        for name in ('python', 'python3', 'python3.9', 'python3.10', 'python3.11', 'python3.12'):
            write_program(self.bin / name, '#!/bin/bash\nexit 1\n')
        write_program(self.bin / 'c++', '#!/bin/bash\ncat > /dev/null\n')
        self.set_free_gb(100)
        self.venv = self.root / '.venv'

    def set_free_gb(self, free):
        write_program(self.bin / 'df', '#!/bin/bash\necho Filesystem\n'
                      f'echo "/dev/x 1 1 {free * 1024 * 1024} 1% /"\n')

    def run(self, script='tools/setup_env.sh', *args, **env):
        env = {'MMSKD_BASE_PYTHON': str(self.python), 'FAKE': str(self.fake), **env}
        inherited = {name: value for name, value in os.environ.items()
                     if not name.startswith('MMSKD_') and name not in ('CXX', 'PYTHONPATH')}
        inherited['PATH'] = f'{self.bin}{os.pathsep}{os.environ["PATH"]}'
        return subprocess.run(['bash', str(self.root / script), *args], env={**inherited, **env},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=120)

    def pip_calls(self):
        """What pip was asked for since the last call of this."""
        log = self.fake / 'log'
        calls = log.read_text().splitlines() if log.exists() else []
        log.write_text('')
        return calls

    def edit_pin(self, old, new):
        script = self.root / 'tools' / 'setup_env.sh'
        text = script.read_text()
        assert old in text
        script.write_text(text.replace(old, new, 1))


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def assert_stops(done, *words):
    assert done.returncode == 1, done.stderr
    assert done.stdout == ''
    for word in words:
        assert word in done.stderr, done.stderr


# --- syntax -------------------------------------------------------------------------------------
@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    done = subprocess.run(['bash', '-n', str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- a named environment ------------------------------------------------------------------------
def test_named_python_that_is_none(checkout):
    assert_stops(checkout.run(MMSKD_PYTHON='/no/such/python'),
                 'MMSKD_PYTHON=/no/such/python is not a program')


def test_named_python_that_crashes(checkout):
    broken = write_program(checkout.bin / 'broken', '#!/bin/bash\nexit 139\n')
    assert_stops(checkout.run(MMSKD_PYTHON=str(broken)),
                 f'MMSKD_PYTHON={broken} cannot be used: Python ended with exit code 139')


def test_named_python_without_torch(checkout):
    # -S: no site-packages
    bare = write_program(checkout.bin / 'bare', f'#!/bin/bash\nexec "{sys.executable}" -S "$@"\n')
    assert_stops(checkout.run(MMSKD_PYTHON=str(bare)), 'cannot be used: import torch: Module')
    assert not checkout.venv.exists()


def test_named_python_that_works(checkout):
    done = checkout.run(MMSKD_PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{sys.executable}\n'
    assert not checkout.venv.exists()


def test_callers_stop_with_the_reason(checkout):
    for script in ('tools/run_tests.sh', 'tools/demo.sh'):
        assert_stops(checkout.run(script, MMSKD_PYTHON='/no/such/python'), 'is not a program')


def test_callers_run_in_the_named_environment(checkout):
    tests = checkout.root / 'tests'
    tests.mkdir()
    (tests / 'test_a.py').write_text('def test_a(): pass\n')
    (tests / 'test_b.py').write_text('def test_b(): assert 0\n')
    show = 'import os, sys; print(sys.argv[1:], os.environ["PYTHONPATH"].split(os.pathsep)[0])'
    (checkout.root / 'tools' / 'demo.py').write_text(show)
    # As good as the real one, and quick.
    python = write_program(checkout.bin / 'quick', '#!/bin/bash\n[ "$1" != -W ] || exit 0\n'
                           f'exec "{sys.executable}" "$@"\n')
    env = {'MMSKD_PYTHON': str(python)}

    done = checkout.run('tools/run_tests.sh', '-q', '-p', 'no:cacheprovider', **env)
    assert done.returncode == 1 and '1 failed, 1 passed' in done.stdout  # pytest's exit code
    done = checkout.run('tools/run_tests.sh', '-q', 'tests/test_a.py', **env)
    assert done.returncode == 0 and '1 passed' in done.stdout
    write_program(checkout.bin / 'nproc', '#!/bin/bash\necho 64\n')
    done = checkout.run('tools/run_tests.sh', **env)  # without arguments on several cores
    assert 'pytest tests -n 4 --dist worksteal' in done.stdout and '4 workers' in done.stdout
    assert done.returncode == 1 and '1 failed, 1 passed' in done.stdout.splitlines()[-1]
    done = checkout.run('tools/demo.sh', '--out', 'a b', **env)
    assert done.stdout.strip() == f"['--out', 'a b'] {checkout.root}"


# --- what is missing on the machine -------------------------------------------------------------
def test_unknown_stack(checkout):
    assert_stops(checkout.run(MMSKD_STACK='other'), 'MMSKD_STACK=other is unknown', 'onedl')


def test_wrong_python(checkout):
    old = write_program(checkout.bin / 'old', '#!/bin/bash\n'
                        'case "$*" in *print*) echo "Python 3.13.0" ;; *) exit 1 ;; esac\n')
    assert_stops(checkout.run(MMSKD_BASE_PYTHON=str(old)), 'is Python 3.13.0, Python 3.9 to 3.12')
    assert_stops(checkout.run(MMSKD_BASE_PYTHON=''), 'no Python 3.9 to 3.12 on PATH')
    assert_stops(checkout.run(MMSKD_BASE_PYTHON='', MMSKD_STACK='onedl'), 'no Python 3.10 to 3.12')


def test_no_compiler(checkout):
    assert_stops(checkout.run(CXX='no-such-c++'), 'no C++ compiler (no-such-c++ is not on PATH)',
                 'g++')
    write_program(checkout.bin / 'c++', '#!/bin/bash\ncat > /dev/null\nexit 1\n')
    assert_stops(checkout.run(), 'cannot compile C++17')


def test_no_headers(checkout):
    (checkout.fake / 'Python.h').unlink()
    assert_stops(checkout.run(), 'Python.h', 'python3-dev')


def test_no_disk(checkout):
    checkout.set_free_gb(4)
    assert_stops(checkout.run(), '4 GB free', '12 GB are needed')
    assert checkout.pip_calls() == []


@pytest.mark.parametrize('output, reason', [
    ("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
     'ERROR: Could not find a version that satisfies the requirement x (from versions: none)',
     "no connection to pip's package index"),
    ('ERROR: No matching distribution found for torch==2.9.1', 'does not have a version'),
    ('ERROR: Could not install packages: [Errno 28] No space left on device', 'disk is full'),
    ('c++: fatal error: Killed signal terminated program cc1plus', 'not enough memory'),
    ("file.cpp:1:1: error: 'x' was not declared\nninja: build stopped", 'compiler reported'),
])
def test_failing_pip_is_explained(checkout, output, reason):
    (checkout.fake / 'fail').write_text('torch==')
    (checkout.fake / 'output').write_text(output + '\n')
    assert_stops(checkout.run(), reason, str(checkout.venv / '.mmskd' / 'torch.log'))


def test_environment_of_somebody_else(checkout):
    write_program(checkout.venv / 'bin' / 'python', '#!/bin/bash\nexit 1\n')
    assert_stops(checkout.run(), 'was not made by this script and does not work')
    assert [path.name for path in checkout.venv.iterdir()] == ['bin']
    write_program(checkout.venv / 'bin' / 'python', '#!/bin/bash\n')
    done = checkout.run()
    assert done.stdout == f'{checkout.venv}/bin/python\n'
    assert [path.name for path in checkout.venv.iterdir()] == ['bin']


# --- steps --------------------------------------------------------------------------------------
def words(calls, *expected):
    """One pip call for each expected word, in this order."""
    assert len(calls) == len(expected), calls
    for call, word in zip(calls, expected):
        assert word in call, calls


def test_from_nothing_and_again(checkout):
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{checkout.venv}/bin/python\n'
    calls = checkout.pip_calls()
    words(calls, 'setuptools==', 'torch==', 'mmengine==', 'mmcv==', 'mmdet==', '-e ')
    assert 'torchvision==' in calls[1]
    for call in calls[:3]:
        assert 'numpy<2' in call  # else pip moves it
    assert 'opencv-python<4.12' in calls[2]
    for call in calls[3:]:
        assert '--no-deps' in call and '--no-build-isolation' in call

    done = checkout.run()
    assert done.stdout == f'{checkout.venv}/bin/python\n'
    assert checkout.pip_calls() == []


def test_interrupted_goes_on(checkout):
    (checkout.fake / 'fail').write_text('mmcv==')
    assert checkout.run().returncode == 1
    words(checkout.pip_calls(), 'setuptools==', 'torch==', 'mmengine==', 'mmcv==')
    (checkout.fake / 'fail').unlink()
    checkout.set_free_gb(5)  # torch is there, the rest needs little
    assert checkout.run().returncode == 0
    words(checkout.pip_calls(), 'mmcv==', 'mmdet==', '-e ')


def test_interrupted_while_making_the_venv(checkout):
    (checkout.fake / 'no_venv').write_text('')
    assert_stops(checkout.run(), '-m venv failed')
    (checkout.fake / 'no_venv').unlink()
    assert checkout.run().returncode == 0
    assert len(checkout.pip_calls()) == 6


def test_changed_pins_redo_what_depends_on_them(checkout):
    assert checkout.run().returncode == 0
    checkout.pip_calls()
    checkout.edit_pin('mmdet==3.3.0', 'mmdet==3.2.0')
    assert checkout.run().returncode == 0
    words(checkout.pip_calls(), 'mmdet==3.2.0')
    checkout.edit_pin('torch==2.9.1 torchvision==0.24.1', 'torch==2.9.0 torchvision==0.24.0')
    assert checkout.run().returncode == 0
    words(checkout.pip_calls(), 'torch==2.9.0', 'mmcv==')


def test_wheel_of_another_torch_is_built_again(checkout):
    (checkout.fake / 'old_wheel').write_text('')
    assert checkout.run().returncode == 0
    mmcv = [call for call in checkout.pip_calls() if ' mmcv==' in call]
    assert len(mmcv) == 2
    assert '--no-cache-dir' not in mmcv[0] and '--no-cache-dir' in mmcv[1]


def test_built_here_and_not_working_is_no_case_for_the_cache(checkout):
    (checkout.fake / 'old_wheel').write_text('')
    (checkout.fake / 'building').write_text('Building wheel for mmcv (setup.py): started\n')
    assert_stops(checkout.run(), 'built for another torch', 'mmcv.log')
    assert len([call for call in checkout.pip_calls() if ' mmcv==' in call]) == 1


def test_stacks_have_their_own_environments(checkout):
    assert checkout.run(MMSKD_STACK='onedl').returncode == 0
    words(checkout.pip_calls(), 'setuptools==', 'torch==', 'onedl-mmengine==', 'onedl-mmcv==',
          'onedl-mmdetection==', '-e ')
    assert (checkout.root / '.venv-onedl').is_dir() and not checkout.venv.exists()


def test_python39_gets_a_torch_that_knows_it(checkout):
    assert checkout.run(FAKE_IS_39='True').returncode == 0
    assert 'torch==2.8.0 torchvision==0.23.0' in checkout.pip_calls()[1]


def test_sourced_leaves_the_path(checkout):
    code = ('source "$1/tools/setup_env.sh" && echo "$MMSKD_PYTHON $PYTHONPATH"; '
            'MMSKD_STACK=other; export MMSKD_STACK; '
            'source "$1/tools/setup_env.sh" || echo "alive ${MMSKD_PYTHON-unset}"')
    write_program(checkout.root / 'source.sh', f'set -- "{checkout.root}"\n{code}\n')
    done = checkout.run('source.sh')
    assert done.stdout.splitlines() == [
        f'{checkout.venv}/bin/python {checkout.root}', 'alive unset']
