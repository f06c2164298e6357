"""Imports run one way: .importlinter says which."""
from pathlib import Path

import pytest

cli = pytest.importorskip('importlinter.cli')


def test_imports_run_one_way():
    config = Path(__file__).resolve().parents[1] / '.importlinter'
    assert cli.lint_imports(config_filename=str(config), no_cache=True) == 0
