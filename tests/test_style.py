"""ruff and mypy find nothing, by the rules in pyproject.toml."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize('command', [['ruff', 'check', '--no-cache', '--output-format=concise'],
                                     ['mypy', '--cache-dir=/dev/null', '--no-color-output']],
                         ids=lambda command: command[0])
def test_finds_nothing(command):
    pytest.importorskip(command[0])
    done = subprocess.run([sys.executable, '-m', *command], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
