"""The examples in docstrings give what they say."""
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = ['.'.join(path.relative_to(ROOT).with_suffix('').parts)
                 for path in sorted((ROOT / 'mmskd').rglob('*.py'))
                 if '>>> ' in path.read_text(encoding='utf-8')]


@pytest.mark.parametrize('name', WITH_EXAMPLES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert tried and not failed
