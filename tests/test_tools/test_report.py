"""The command line; what the report holds is tested in test_evaluation/test_report."""
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

from mmskd.evaluation.report.charts import chart as charts  # noqa: E402


@pytest.fixture(autouse=True)
def blank_charts(monkeypatch):
    monkeypatch.setattr(charts, 'save', lambda chart, folder: '')


def test_a_run_of_the_training_tool(run_tool, tiny, trained, capsys):
    run_tool('analysis/report', 'work_dirs/trained', '--out-dir', 'out folder')
    assert capsys.readouterr().out.splitlines()[-1] == str(Path('out folder', 'report.html'))
    text = Path('out folder/report.html').read_text()
    assert 'epoch_1.pth' in text and 'id="reliability_0"' in text
    assert 'class="note"' not in text, 'nothing is missing'


def test_quiet_prints_nothing(run_tool, tiny, trained, capfd):
    run_tool('analysis/report', 'work_dirs/trained', '--split', 'test', '--out-dir', 'out',
             '--quiet')
    assert capfd.readouterr().out == ''


@pytest.mark.parametrize('argv, message', [
    (['nowhere'], 'there is no folder nowhere'),
    (['data'], 'data holds no config'),
])
def test_errors(run_tool, tiny, argv, message):
    with pytest.raises(SystemExit) as error:
        run_tool('analysis/report', *argv)
    assert message in str(error.value)
