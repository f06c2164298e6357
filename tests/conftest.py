"""What holds for all tests."""
from unittest import mock

import pytest
import torch
from mmengine.config import config as mmengine_config


def pytest_configure(config):
    config.addinivalue_line('markers', 'browser: opens pages in Chromium; skipped where it is not')
    config.addinivalue_line('markers', 'cuda: needs a GPU; skipped without one')


def pytest_runtest_setup(item):
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('torch sees no GPU here')


@pytest.fixture(autouse=True, scope='session')
def unformatted_configs():
    """Each Runner formats its config with yapf, which takes longer than a small training.

    The forks' MMEngine does so in another way, and goes on doing it.
    """
    with mock.patch.object(mmengine_config, 'FormatCode', lambda text, **style: (text, True),
                           create=True):
        yield


@pytest.fixture(autouse=True)
def forget_visualizers():
    """MMEngine keeps them for the process, and hands out the last one made as the current one.

    A test that makes a pose's would leave it to the next test's detector.
    """
    yield
    from mmengine.visualization import Visualizer
    kinds = [Visualizer]
    while kinds:
        kind = kinds.pop()
        kind._instance_dict.clear()
        kinds += kind.__subclasses__()
