import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest

from mmskd.datasets import write_demo_data

pytest.importorskip('mmdet')

PATH = Path(__file__).parents[2] / 'tools' / 'demo.py'


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_log(folder, lines):
    (folder / 'vis_data').mkdir(parents=True)
    (folder / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')


def train_line(step, loss, time):
    return dict(loss=loss, time=time, step=step, pskd_alpha=0.1)


def val_line(epoch, value):
    keys = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'calibration/NLL', 'calibration/ECE')
    return dict(dict.fromkeys(keys, value), step=epoch)


@pytest.fixture
def runs(demo, tmp_path):
    """Two runs that have logged all their epochs, one of them in two pieces."""
    write_demo_data(tmp_path / 'data', train=17, val=3)  # 3 iterations of 8 images
    runs = [demo.Run(name, tmp_path / 'data', tmp_path / 'work') for name in demo.RUNS]
    for run in runs:
        write_log(run.folder / '20260101_000000',
                  [train_line(3, 2.0, 0.5), train_line(6, 9.0, 9.0)] + [val_line(1, 0.1)])
        write_log(run.folder / '20260102_000000',
                  [train_line(6, 1.0, 1.5), val_line(run.max_epochs, 0.25)])
        run.checkpoint.touch()
    return runs


def test_a_resumed_run_is_read_as_one(runs):
    train, val = runs[0].logs()
    assert {step: line['loss'] for step, line in train.items()} == {3: 2.0, 6: 1.0}
    assert sorted(val) == [1, runs[0].max_epochs]
    assert runs[0].is_finished()
    assert runs[0].seconds_per_epoch() == pytest.approx(3 * (0.5 + 1.5) / 2)


def test_a_line_that_is_being_written_is_skipped(runs):
    with open(runs[0].folder / '20260102_000000' / 'vis_data' / 'scalars.json', 'a') as log:
        log.write('{"loss": 0.5, "st')
    assert sorted(runs[0].logs()[0]) == [3, 6]


@pytest.mark.parametrize('missing', ['checkpoint', 'validation'])
def test_an_interrupted_run_is_not_finished(runs, missing):
    run = runs[0]
    if missing == 'checkpoint':
        run.checkpoint.unlink()
    else:
        (run.folder / '20260102_000000' / 'vis_data' / 'scalars.json').unlink()
    assert not run.is_finished()


def test_table_and_curves_are_of_the_logs(demo, runs, tmp_path):
    table = demo.summary(runs)
    assert list(table.columns[0].cells) == ['baseline', 'PS-KD']
    assert [list(column.cells)[0] for column in table.columns[1:]] == [
        '0.250', '0.250', '3.0', '0.250', '0.250']
    demo.draw_curves(runs, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 0


def test_a_validation_without_detections(demo, runs, tmp_path):
    """COCO's metric then returns nothing at all."""
    for run in runs:
        for epoch, folder in ((1, '20260103_000000'), (run.max_epochs, '20260104_000000')):
            write_log(run.folder / folder, [dict(time=0.1, step=epoch)])
    table = demo.summary(runs)
    assert [list(column.cells)[1] for column in table.columns[1:]] == [
        'none', 'none', '3.0', 'none', 'none']
    demo.draw_curves(runs, tmp_path / 'curves.png')

    class Ended:
        """A training that ends after one look at it."""
        polls = iter([None, 0])

        def poll(self):
            return next(self.polls)

    console = demo.Console(record=True, file=io.StringIO())
    runs[0].follow(Ended(), console)
    assert 'mAP none' in console.export_text()


def test_time_left(demo, monkeypatch):
    now = iter([10.0, 12.0, 20.0])
    monkeypatch.setattr(demo.time, 'monotonic', lambda: next(now))
    left = demo.TimeLeft(total=100)
    assert left(0) == 'starting'
    assert left(20) == 'estimating the time left'  # a resumed run starts at 20
    assert left(30) == 'about 14 s left'
    assert left(70) == 'about 6 s left'
    assert left(100) == 'finishing'


def test_a_failed_training_stops_with_its_output(demo, runs, monkeypatch, tmp_path):
    failing = tmp_path / 'train.py'
    failing.write_text('raise SystemExit("no such luck")')
    monkeypatch.setattr(demo, 'TOOLS', tmp_path)
    with pytest.raises(SystemExit, match='(?s)no such luck.*exit code 1.*--fresh'):
        runs[0].train(demo.Console(quiet=True), fresh=True)


def test_the_last_line_names_the_report(demo, runs, monkeypatch, capsys, tmp_path):
    def write_report(folders, out_dir, quiet):
        assert folders == [run.folder for run in runs] and quiet
        return out_dir / 'report.html'

    monkeypatch.setattr(demo, 'write_report', write_report)
    monkeypatch.setattr(demo, 'draw_detections', lambda *args: None)
    monkeypatch.setattr(demo.signal, 'signal', lambda *args: None)
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--data-dir', str(tmp_path / 'data'), '--work-dir',
                                      str(tmp_path / 'work'), '--quiet'])
    monkeypatch.chdir(tmp_path)
    demo.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(' work/report/report.html')
    assert '  work/curves.png' in lines
