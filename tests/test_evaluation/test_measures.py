import pytest

from mmskd.evaluation.measures import MEASURES, measure_of


@pytest.mark.parametrize('key, name', [
    ('calibration/LaECE_0', 'LaECE_0'), ('LaECE_0', 'LaECE_0'), ('calibration/LaECE', 'LaECE'),
    ('calibration/cell_LaECE_0', 'LaECE_0'), ('calibration/cell_LaECE_0_own_thr', 'LaECE_0'),
    ('calibration/LRP_FN_own_thr', 'LRP_FN'), ('calibration/red cell_LRP', 'LRP'),
    ('calibration/cell_oLRP', 'oLRP'), ('calibration/small_ECE', 'ECE'), ('mine/OCE', 'OCE'),
    ('calibration/detections_own_thr', 'detections')])
def test_a_key_is_of_a_measure(key, name):
    assert measure_of(key, 'detection') is MEASURES['detection'][name]


@pytest.mark.parametrize('key', ['coco/bbox_mAP', 'calibration/cell', 'loss', 'my_ECE', '', 'ECE_x',
                                 'calibration/OCE_low', 'calibration/NLL_mapped'])
def test_a_key_of_something_else(key):
    assert measure_of(key, 'detection') is None


def test_what_compares_models_depends_on_the_task():
    assert measure_of('calibration/mean_ECE', 'pose').comparable
    assert not measure_of('calibration/ECE', 'detection').comparable
    for task in MEASURES.values():
        for measure in task.values():
            assert measure.better in ('lower', 'higher') or not measure.comparable
