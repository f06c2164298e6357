"""What holds for all tests."""
import gc
import logging
from unittest import mock

import pytest
import torch
from mmengine.config import config as mmengine_config

from tests.support.slow_tests import slow_tests

# Here a test builds a model or a run for each of its cases, which take another way through mmdet
# or mmpose, and the same way through mmskd as the first.
BUILDS_MODELS = ('test_engine', 'test_head_distill', 'test_heads', 'test_teachers')
# Here commands are run from one end to the other.
RUNS_TOOLS = ('test_tools', 'test_install')


def pytest_collection_modifyitems(items):
    """Mark what can be seen from where a test is and what it calls."""
    seen, known = set(), slow_tests()
    for item in items:
        code = getattr(getattr(item, 'function', None), '__code__', None)
        names = code.co_names if code else ()
        if {'dist_train', 'train_in_two'} & set(names) or (
                code and {'dist_train.sh', 'dist_test.sh'} & set(code.co_consts)):
            item.add_marker('two_processes')
        if 'DATA' in names or any('MMSKD_TEST_DATA' in str(mark.kwargs.get('reason'))
                                  for mark in item.iter_markers('skipif')):
            item.add_marker('data')
        case = item.nodeid.partition('[')[0]
        folders = item.path.parts
        if (any(item.get_closest_marker(mark) for mark in ('browser', 'two_processes', 'data'))
                or any(folder in folders for folder in RUNS_TOOLS)
                or item.path.name.endswith('_configs.py') or case in known
                or case in seen and any(folder in folders for folder in BUILDS_MODELS)):
            item.add_marker('slow')
        seen.add(case)


def pytest_collection_finish(session):
    """What was imported stays: no collection looks at it again.

    Each data set of MMEngine collects garbage when it is built, and half of a small training was
    that.
    """
    gc.collect()
    gc.freeze()


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
def forget_visualizers_and_closed_logs():
    """MMEngine keeps them for the process, and hands out the last one made as the current one.

    A test that makes a pose's would leave it to the next test's detector.
    """
    yield
    from mmengine.logging import MMLogger
    from mmengine.visualization import Visualizer
    for logger in MMLogger._instance_dict.values():
        for handler in [one for one in logger.handlers
                        if isinstance(one, logging.FileHandler) and one.stream is None]:
            logger.removeHandler(handler)  # closed: the file went with its test
    kinds = [Visualizer]
    while kinds:
        kind = kinds.pop()
        kind._instance_dict.clear()
        kinds += kind.__subclasses__()
