"""What holds for all tests."""
import pytest


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
