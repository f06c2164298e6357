"""Each measure beside its reference implementation, as far as those are installed."""
import json

import pytest

pytest.importorskip('pycocotools')


def test_the_references_agree(load_tool, monkeypatch):
    tool = load_tool('analysis/calibration_reference')
    monkeypatch.setattr(tool, 'N_IMAGES', 25)
    rows = tool.compare()
    assert {row.tau for row in rows} >= {0., .1, .5}
    assert {row.threshold for row in rows} >= {.05, .3, .5}
    exact = [row for row in rows if 'not ours' not in row.measure and 'tilt' not in row.measure]
    assert len(exact) >= 18  # with pycocotools alone
    for row in exact:
        assert row.value == pytest.approx(row.expected, abs=1e-7), row
    for row in rows:
        if 'tilt' in row.measure:
            assert row.value == pytest.approx(row.expected, abs=2e-4), row


def test_the_table_that_is_kept_says_the_same(load_tool):
    """results/calibration_reference.json, made with all references installed."""
    tool = load_tool('analysis/calibration_reference')
    path = tool.__file__.rpartition('tools')[0] + 'results/calibration_reference.json'
    with open(path) as file:
        table = json.load(file)
    assert {'uq-detr', 'netcal', 'torchmetrics', 'scikit-learn'} <= table['versions'].keys()
    for row in table['rows']:
        if 'not ours' not in row['measure']:
            tolerance = 2e-4 if 'tilt' in row['measure'] else 1e-9
            assert row['value'] == pytest.approx(row['expected'], abs=tolerance), row
