"""The benchmark runs, on next to nothing."""
import sys

import pytest

pytest.importorskip('mmdet')


def test_it_times_a_report_from_kept_predictions(load_tool, monkeypatch, capsys):
    from mmskd.evaluation.report import predictions
    from mmskd.evaluation.report.charts import chart
    monkeypatch.setattr(chart, 'save', lambda chart, folder: '')
    monkeypatch.setattr(predictions, '_predict', lambda *args: pytest.fail('predicted'))
    monkeypatch.setattr(sys, 'argv', ['report_speed.py', '--images', '8', '--classes', '3',
                                      '--detections', '20', '--runs', '2'])
    load_tool('benchmarks/report_speed').main()
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith('2 runs of 8 images, 3 classes, 56 objects and 160 detections: ')
