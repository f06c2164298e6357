import argparse
import importlib.util
import io
import json
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest

from mmskd.datasets import write_demo_data

pytest.importorskip('mmpose')

PATH = Path(__file__).parents[2] / 'tools' / 'demo.py'


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('figures')
    write_demo_data(folder, kind='stick-figures', train=12, val=4)
    return folder


@pytest.fixture
def args(data_dir, tmp_path):
    return argparse.Namespace(data_dir=data_dir, work_dir=tmp_path / 'work', seed=3, seeds=2)


def write_log(folder, lines):
    (folder / 'vis_data').mkdir(parents=True)
    (folder / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')


def finish(demo, run, value):
    """As if the run had been trained, in two pieces."""
    values = {key: value for key, _ in demo.METRICS.values()}
    write_log(
        run.folder / '20260101_000000',
        [dict(loss=2., step=1), dict(loss=9., step=2),
         dict(values, step=1)])
    write_log(run.folder / '20260102_000000',
              [dict(loss=1., step=2), dict(values, step=run.max_epochs)])
    run.checkpoint.touch()


@pytest.fixture
def finished(demo, args):
    """The teacher, and two seeds of each arm: PS-KD is a bit worse each time, DWPose better."""
    teacher = demo.Run('teacher', args.seed, args)
    finish(demo, teacher, 0.9)
    runs = [demo.Run(arm, seed, args, teacher) for seed in (3, 4) for arm in demo.ARMS]
    for run, value in zip(runs, (0.5, 0.7, 0.49, 0.6, 0.81, 0.592)):
        finish(demo, run, value)
    return teacher, runs


def test_a_resumed_run_is_read_as_one(demo, finished):
    train, val = finished[1][0].logs()
    assert {step: line['loss'] for step, line in train.items()} == {1: 2., 2: 1.}
    assert sorted(val) == [1, finished[1][0].max_epochs]
    assert finished[1][0].is_finished() and finished[1][0].done() == 2


def test_a_line_that_is_being_written_is_skipped(finished):
    run = finished[1][0]
    with open(run.folder / '20260102_000000' / 'vis_data' / 'scalars.json', 'a') as log:
        log.write('{"loss": 0.5, "st')
    assert sorted(run.logs()[0]) == [1, 2]


@pytest.mark.parametrize('missing', ['checkpoint', 'validation'])
def test_an_interrupted_run_is_not_finished(finished, missing):
    run = finished[1][0]
    if missing == 'checkpoint':
        run.checkpoint.unlink()
    else:
        (run.folder / '20260102_000000' / 'vis_data' / 'scalars.json').unlink()
    assert not run.is_finished()


def test_the_arms_are_a_config_and_a_flag(demo, finished):
    teacher, runs = finished
    flags = {run.arm: [word for word in run.command() if word.startswith('--') and word not in (
        '--work-dir', '--resume', '--cfg-options')] for run in runs}
    assert flags == {'baseline': [], 'PS-KD': ['--pskd'], 'DWPose': ['--distill-from']}
    assert all(str(demo.ARMS[run.arm]) in run.command() for run in runs)
    assert str(teacher.checkpoint) in runs[-2].command()
    assert 'randomness.seed=4' in runs[-2].command()


def test_table_and_verdicts_are_of_the_logs(demo, finished):
    results = demo.collect(*finished, seconds=1.)
    assert results['arms']['DWPose'] == {
        '3': dict.fromkeys(demo.METRICS, 0.7),
        '4': dict.fromkeys(demo.METRICS, 0.81)
    }
    table = demo.summary(results)
    assert list(table.columns[0].cells) == [*demo.ARMS, '(teacher)']
    assert list(table.columns[1].cells)[-1] == '0.900'
    # t of 2 values: 12.706 times half their distance
    assert list(table.columns[1].cells)[0] == '0.550 ± 0.635'
    dwpose, pskd = demo.verdicts(results)
    assert pskd.startswith('PS-KD against the baseline: PCK -0.009 ± 0.013 (no clear difference)')
    assert dwpose.startswith('DWPose against the baseline: PCK +0.205 ± 0.064 (better)')
    assert 'EPE +0.205 ± 0.064 (worse)' in dwpose, 'a larger error is worse'


def test_one_seed_gives_no_verdict(demo, finished):
    teacher, runs = finished
    results = demo.collect(teacher, runs[:3], seconds=1.)
    assert '±' not in ''.join(demo.verdicts(results)) and 'better' not in ''.join(
        demo.verdicts(results))


def test_time_left(demo, monkeypatch):
    now = iter([10.0, 12.0, 20.0])
    monkeypatch.setattr(demo.time, 'monotonic', lambda: next(now))
    left = demo.TimeLeft(total=100)
    assert left(0) == 'starting'
    assert left(20) == 'estimating the time left'  # a resumed run starts at 20
    assert left(30) == 'about 14 s left'
    assert left(70) == 'about 6 s left'
    assert left(100) == 'finishing'


def fake_training(demo, monkeypatch, tmp_path, script):
    tools = tmp_path / 'tools'
    tools.mkdir()
    (tools / 'train.py').write_text(script)
    monkeypatch.setattr(demo, 'TOOLS', tools)
    monkeypatch.setattr(demo.time, 'sleep', lambda seconds: None)
    return demo.Console(record=True, file=io.StringIO(), width=200)


def test_a_failed_training_stops_with_its_output(demo, finished, monkeypatch, tmp_path):
    console = fake_training(demo, monkeypatch, tmp_path, 'raise SystemExit("no such luck")')
    with pytest.raises(SystemExit, match='(?s)no such luck.*exit code 1.*--fresh'):
        demo.train(finished[1][:1], 1, console, fresh=True)


# A training that notes who else is training, and leaves behind what a run does
TRAINING = '''
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index('--work-dir') + 1])
if '--distill-from' in sys.argv:
    assert Path(sys.argv[sys.argv.index('--distill-from') + 2]).is_file(), 'before its teacher'
busy = folder.parent / f'{folder.name}.busy'
busy.touch()
(folder.parent / 'most').open('a').write(f'{len(list(folder.parent.glob("*.busy")))} ')
logs = folder / '20260101_000000' / 'vis_data'
logs.mkdir(parents=True)
lines = dict(loss=1., step=1), dict(step=EPOCHS)
logs.joinpath('scalars.json').write_text(chr(10).join(map(json.dumps, lines)))
folder.joinpath('epoch_EPOCHS.pth').touch()
busy.unlink()
'''


def test_the_teacher_comes_first_and_no_more_run_than_there_are_jobs(demo, args, monkeypatch,
                                                                     tmp_path):
    teacher = demo.Run('teacher', 3, args)
    teacher.max_epochs = demo.Run('baseline', 3, args).max_epochs
    teacher.checkpoint = teacher.folder / f'epoch_{teacher.max_epochs}.pth'
    runs = [teacher, *(demo.Run(arm, 3, args, teacher) for arm in ('DWPose', 'baseline'))]
    console = fake_training(demo, monkeypatch, tmp_path,
                            TRAINING.replace('EPOCHS', str(teacher.max_epochs)))
    assert demo.train(runs, 2, console, fresh=False) > 0
    assert all(run.is_finished() for run in runs)
    assert max(map(int, (args.work_dir / 'most').read_text().split())) <= 2
    assert 'of 3 runs done' in console.export_text()
    assert demo.train(runs, 2, console, fresh=False) == 0., 'complete runs are used as they are'


def test_the_last_line_names_the_report(demo, finished, args, monkeypatch, capsys, tmp_path):
    def write_report(folders, out_dir, quiet):
        assert folders == [run.folder for run in finished[1]] and quiet
        return out_dir / 'report.html'

    monkeypatch.setattr(demo, 'write_report', write_report)
    monkeypatch.setattr(demo, 'draw_figures', lambda *args: None)
    monkeypatch.setattr(demo.signal, 'signal', lambda *args: None)
    monkeypatch.setattr(sys, 'argv', [
        'demo.py', '--data-dir',
        str(args.data_dir), '--work-dir',
        str(args.work_dir), '--seed', '3', '--seeds', '2', '--quiet'
    ])
    monkeypatch.chdir(tmp_path)
    demo.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(' work/report/report.html')
    assert '  work/demo.json' in lines and any('DWPose against' in line for line in lines)
    assert json.loads((args.work_dir / 'demo.json').read_text())['seeds'] == [3, 4]


def test_the_picture_says_whose_figures_are_whose(demo, monkeypatch, tmp_path):
    points = np.random.default_rng(0).uniform(0, 40, (4, 3, 2))
    seen = argparse.Namespace(
        images=np.array([0, 1, 1, 1]), image_ids=[5, 7], image_paths=['few.png', 'many.png'],
        gt_keypoints=points, keypoints=points + 1, links=[(0, 1), (1, 2)])
    drawn, figures = [], []

    class Figure(matplotlib.figure.Figure):
        def savefig(self, *args, **options):
            figures.append(self)
            super().savefig(*args, **options)

    monkeypatch.setattr(demo, 'Figure', Figure)
    monkeypatch.setattr(demo, 'Logs', lambda folder: folder)
    monkeypatch.setattr(demo, 'predictions_of', lambda logs, quiet: seen)
    monkeypatch.setattr(demo.pictures, 'load_image',
                        lambda path: drawn.append(path) or np.zeros((40, 40, 3), np.uint8))
    arms = 'baseline', 'DWPose', 'PS-KD'
    demo.draw_figures([argparse.Namespace(arm=arm, folder=None) for arm in arms],
                      tmp_path / 'figures.png')
    assert drawn == ['many.png', 'few.png'], 'the most crowded first'
    titles = [axis.get_title() for axis in figures[0].axes]
    assert titles == ['labels', *arms, '', '', '', '']
    assert (tmp_path / 'figures.png').stat().st_size > 1000


def test_the_configs_differ_by_labels_and_a_hook(demo):
    """What is compared is the teaching."""
    stock, taught, teacher = (demo.read(path).to_dict() for path in (
        demo.ARMS['baseline'], demo.ARMS['DWPose'], demo.TEACHER))
    *hooks, hook = taught.pop('custom_hooks')
    assert hooks == stock.pop(
        'custom_hooks') and hook['type'] == 'mmskd.DistillHook' and hook['gt_weight'] == 0
    labelled, all_of_them = (cfg['train_dataloader'].pop('dataset') for cfg in (stock, taught))
    assert taught == stock and demo.ARMS['PS-KD'] == demo.ARMS['baseline']
    few, many = labelled['dataset'].pop('indices'), all_of_them.pop('indices')
    assert labelled['times'] * len(few) == len(many) and labelled['dataset'] == all_of_them
    assert teacher['train_dataloader']['dataset'] == all_of_them and teacher['codec'] == stock[
        'codec']


def test_how_many_figures_an_epoch_has(demo, data_dir):
    counts = [demo.figures_in(demo.read(path).train_dataloader.dataset, data_dir)
              for path in (*demo.ARMS.values(), demo.TEACHER)]
    content = json.loads((data_dir / 'annotations' / 'train.json').read_text())
    assert counts == [800, 800, 800, len(content['annotations'])]
