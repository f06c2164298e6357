"""A study with a trainer that only pretends, and one small real run."""
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

from mmskd.errors import UsageError

FAKE_TRAIN = r'''
import json, os, signal, sys, time
from pathlib import Path
config, folder = Path(sys.argv[1]), Path(sys.argv[sys.argv.index('--work-dir') + 1])
cfg = {}
exec(config.read_text(), cfg)
log = Path(cfg['log'])
def say(what):
    with log.open('a') as file:
        file.write(f'{what} {folder.parent.name}/{folder.name} {" ".join(sys.argv[4:])}\n')
say('begin')
print('training')
if cfg['fault'] == 'crash':
    print('Traceback'); sys.exit('ValueError: no such thing')
first = 0
if '--resume' in sys.argv:
    first = int((folder / 'last_checkpoint').read_text())
started = f'{len(list(folder.glob("2*"))):04d}'.replace('0', '2', 1)
scalars = folder / started / 'vis_data' / 'scalars.json'
scalars.parent.mkdir(parents=True)
(scalars.parent / 'config.py').write_text(f'{config.read_text()}\nresume = {bool(first)}')
length = cfg['train_cfg']['max_epochs']
for epoch in range(first + 1, length + 1):
    loss = float('nan') if cfg['fault'] == 'nan' and epoch == length else 1.0
    lines = [dict(loss=loss, epoch=epoch, step=2 * epoch)]
    if not (cfg['fault'] == 'short' and epoch == length):
        score = cfg['gain'] + 0.1 * epoch + cfg['randomness']['seed']
        lines.append({'score': score, 'none': -1, 'step': epoch})
    with scalars.open('a') as file:
        file.write(''.join(json.dumps(line) + '\n' for line in lines))
    (folder / f'epoch_{epoch}.pth').touch()
    (folder / 'last_checkpoint').write_text(str(epoch))
    if cfg['fault'] == 'hang' and epoch == 1 and not first:
        say('hang')
        time.sleep(100)
say('end')
'''
FAKE_TEST = r'''
import json, sys
from pathlib import Path
config, checkpoint, folder = sys.argv[1], sys.argv[2], Path(sys.argv[4])
cfg = {}
exec(Path(config).read_text(), cfg)
(folder / 'stamp').mkdir(parents=True)
(folder / 'stamp' / 'stamp.json').write_text(json.dumps(dict(score=7.0, of=checkpoint)))
'''
CONFIG = '''
default_scope = 'mmdet'
model = dict(type='RetinaNet')
train_cfg = dict(max_epochs=3)
custom_hooks = [dict(type='First')]
gain = 0.0
fault = ''
log = {log!r}
train_dataloader = dict(dataset=dict(data_root={root!r}, ann_file='train.json'))
'''
STUDY = '''
configs: {small: small.py}
methods:
  baseline:
  better: {options: {gain: 0.5}, hooks: [{type: Second}], flags: --flag key=1}
seeds: [0, 1]
metrics: [score, none]
average_last: 2
'''


@pytest.fixture
def study(load_tool):
    return load_tool('benchmarks/study')


@pytest.fixture
def folder(study, tmp_path, monkeypatch):
    """A folder with a study, its config and data, and a trainer that pretends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, 'POLL_SECONDS', 0.01)
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(FAKE_TRAIN)
    (tmp_path / 'tools' / 'test.py').write_text(FAKE_TEST)
    for module in (study, sys.modules['study_definition']):
        monkeypatch.setattr(module, 'TOOLS', tmp_path / 'tools')
    (tmp_path / 'train.json').write_text('{}')
    (tmp_path / 'small.py').write_text(CONFIG.format(
        log=str(tmp_path / 'log'), root=str(tmp_path)))
    (tmp_path / 'try.yaml').write_text(STUDY)
    return tmp_path


@pytest.fixture
def run(study, folder, monkeypatch):
    def run(*argv):
        monkeypatch.setattr(sys, 'argv', ['study.py', 'try.yaml', *argv])
        study.main()
        results = folder / 'results/studies/try.json'
        return json.loads(results.read_text()) if results.exists() else None

    return run


def begun(folder):
    """What was trained since the last call of this, in order."""
    log = folder / 'log'
    lines = log.read_text().splitlines() if log.exists() else []
    log.write_text('')
    return [line.partition(' ')[2].strip() for line in lines if line.startswith('begin')]


def edit(folder, old, new, name='try.yaml'):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def test_every_combination_is_trained_and_written_down(run, folder):
    results = run()
    # Seed by seed, so that what is there of a study that is cut short has pairs
    assert begun(folder) == ['baseline/0', 'better/0 --flag key=1', 'baseline/1',
                             'better/1 --flag key=1']
    assert results['study'] == 'try' and results['definition']['average_last'] == 2
    runs = {(one['method'], one['seed']): one for one in results['runs']}
    assert len(runs) == 4
    one = runs['better', 1]
    assert one['status'] == 'done' and one['flags'] == '--flag key=1' and one['config'] == 'small'
    assert one['metrics']['score'] == pytest.approx(dict(last=1.8, mean=1.75))
    assert one['metrics']['none'] == dict(last=None, mean=None), '-1 is no value'
    assert one['curve'] == [[1, pytest.approx(1.6)], [2, pytest.approx(1.7)],
                            [3, pytest.approx(1.8)]]
    assert one['seconds'] > 0 and one['cpu_seconds'] > 0 and one['starts'] == 1
    assert len(one['config_hash']) == 16 and len({r['config_hash'] for r in runs.values()}) == 4
    packages = results['environments'][one['environment']]['packages']
    assert packages['torch'] and packages['mmengine']
    dumped = (folder / 'work_dirs/studies/try/small/better/1/study/small.py').read_text()
    assert "type='First'" in dumped and "type='Second'" in dumped and 'seed=1' in dumped


def test_what_is_done_is_left_alone(run, folder, capsys):
    first = run()
    begun(folder)
    assert run() == first and begun(folder) == []
    edit(folder, 'seeds: [0, 1]', 'seeds: [0, 1, 2]')
    run('--list')
    assert 'small/baseline/1: done' in capsys.readouterr().out and begun(folder) == []
    assert len(run()['runs']) == 6
    assert begun(folder) == ['baseline/2', 'better/2 --flag key=1']


def test_an_interrupted_run_goes_on(study, run, folder, monkeypatch):
    edit(folder, 'seeds: [0, 1]', 'seeds: [0]\noptions: {fault: hang}')
    edit(folder, '  better: {options: {gain: 0.5}, hooks: [{type: Second}], flags: --flag key=1}\n',
         '')
    log, sleep = folder / 'log', study.time.sleep
    log.touch()
    interrupted = []

    def interrupt_when_it_hangs(seconds):
        if 'hang' in log.read_text() and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(study.time, 'sleep', interrupt_when_it_hangs)
    with pytest.raises(KeyboardInterrupt):
        run()
    edit(folder, 'fault: hang', 'fault: hang, gain: 0.7')
    with pytest.raises(SystemExit, match='work_dirs/studies/try/small/baseline/0 has small/baselin'
                                         'e/0 from another config, method, teacher or data: --re'):
        run()
    edit(folder, ', gain: 0.7', '')
    spent_file = folder / 'work_dirs/studies/try/small/baseline/0/study/spent.json'
    spent = json.loads(spent_file.read_text())
    assert (spent['starts'], spent['ends']) == (1, 1), 'the process was ended, and that noted'
    assert not (folder / 'results').exists()
    one, = run()['runs']
    assert begun(folder) == ['baseline/0', 'baseline/0 --resume']
    assert one['status'] == 'done' and one['starts'] == 2 and len(one['curve']) == 3
    assert one['seconds'] > spent['seconds']


def test_time_of_a_killed_training_is_not_made_up(run, folder):
    spent = folder / 'work_dirs/studies/try/small/baseline/0/study/spent.json'
    spent.parent.mkdir(parents=True)
    spent.write_text(json.dumps(dict(starts=1, ends=0, seconds=0., cpu_seconds=0.)))
    first, second = run()['runs'][:2]
    assert first['status'] == 'done' and first['seconds'] is None and first['starts'] == 2
    assert second['seconds'] is not None


@pytest.mark.parametrize('fault, status, reason', [
    ('crash', 'failed', 'exit code 1: ValueError: no such thing'),
    ('nan', 'diverged', 'the loss is no number from iteration 6 on'),
    ('short', 'failed', '3 was not validated, the last is 2')])
def test_failures_are_recorded_and_tried_again_on_demand(fault, status, reason, run, folder):
    edit(folder, '{gain: 0.5}', f'{{gain: 0.5, fault: {fault}}}')
    results = run()
    assert [(one['method'], one['status']) for one in results['runs']] == [
        ('baseline', 'done'), ('baseline', 'done'), ('better', status), ('better', status)]
    bad = results['runs'][2]
    assert bad['reason'] == reason and 'metrics' not in bad
    begun(folder)
    run()
    assert begun(folder) == []
    run('--retry')
    assert begun(folder) == ['better/0 --flag key=1', 'better/1 --flag key=1'], 'from nothing'
    assert (folder / 'work_dirs/studies/try/small/better/0.old0').is_dir()


def test_a_metric_that_is_missing_fails(run, folder):
    edit(folder, 'metrics: [score, none]', 'metrics: [none]')
    assert {(one['status'], one['reason']) for one in run()['runs']} == {
        ('failed', 'the last validation gave no none')}


def test_students_wait_for_their_teachers(run, folder):
    edit(folder, 'methods:\n', "methods:\n  taught: {flags: '--from {config[small]} "
         "{checkpoint[baseline]} {checkpoint[small/better/0]} {seed}'}\n")
    results = run('--jobs', '2')
    runs = begun(folder)
    taught = [line for line in runs if line.startswith('taught')]
    where = 'work_dirs/studies/try/small'
    assert taught == [
        f'taught/{seed} --from small.py {where}/baseline/{seed}/epoch_3.pth '
        f'{where}/better/0/epoch_3.pth {seed}' for seed in (0, 1)]
    noted = [one['flags'] for one in results['runs'] if one['method'] == 'taught']
    assert noted == [f'--from small.py small/baseline/{seed} small/better/0 {seed}'
                     for seed in (0, 1)], 'no file of this machine'
    assert runs.index(taught[0]) > max(runs.index('baseline/0'),
                                       runs.index('better/0 --flag key=1'))


def test_a_teacher_whose_checkpoint_is_gone_is_trained_again_where_it_is_needed(run, folder):
    """As on another machine, which has the json and no checkpoints."""
    edit(folder, 'methods:\n',
         "methods:\n  taught: {flags: 'x {checkpoint[small/better/0]}'}\n")
    first = run()
    shutil.rmtree(folder / 'work_dirs')
    begun(folder)
    assert run() == first and begun(folder) == [], 'nobody needs it'
    edit(folder, 'seeds: [0, 1]', 'seeds: [0, 1, 2]')
    run()
    begun_again = [line.split()[0] for line in begun(folder)]
    assert sorted(begun_again) == ['baseline/2', 'better/0', 'better/2', 'taught/2']
    assert begun_again.index('better/0') < begun_again.index('taught/2')


def test_a_hook_of_the_config_may_name_a_teacher(run, folder):
    edit(folder, 'hooks: [{type: Second}]',
         "hooks: [{type: Second, teacher: ['{config[small]}', '{checkpoint[baseline]}']}]")
    run()
    dumped = (folder / 'work_dirs/studies/try/small/better/1/study/small.py').read_text()
    assert "'work_dirs/studies/try/small/baseline/1/epoch_3.pth'" in dumped
    begun(folder)
    run('--work-dir', 'elsewhere')
    assert begun(folder) == [], 'where the checkpoint lies does not make it another run'


def test_a_teacher_may_be_an_onnx_file(run, folder):
    """It is written once, by the config of its run; and the study ends in a line if it cannot be.
    """
    exporter = folder / 'tools' / 'export_onnx.py'
    exporter.write_text('import sys; sys.exit("export_onnx.py: heatmaps")')
    edit(folder, 'methods:\n', "methods:\n  taught: {flags: '--from {onnx[small/baseline/0]}'}\n")
    with pytest.raises(
            SystemExit,
            match='epoch_3.pth is not written as epoch_3.onnx: export_onnx.py: heatmaps'):
        run()
    begun(folder)
    exporter.write_text(
        'import sys\nfrom pathlib import Path\nconfig, checkpoint, out = map(Path, sys.argv[1:])\n'
        'assert "gain" in config.read_text() and checkpoint.suffix == ".pth"\n'
        'out.write_text("file")\n')
    run()
    file = folder / 'work_dirs/studies/try/small/baseline/0/epoch_3.onnx'
    taught = [line for line in begun(folder) if line.startswith('taught')]
    assert taught == [f'taught/{seed} --from {file.relative_to(folder)}' for seed in (0, 1)]
    assert file.read_text() == 'file' and not list(file.parent.glob('.*.onnx'))
    exporter.unlink()
    run('--list')


def test_students_of_another_teacher_are_not_taken_for_these(study, run, folder, monkeypatch):
    """Also where the redo was interrupted after the teacher."""
    edit(folder, 'methods:\n', "methods:\n  taught: {flags: 'x {checkpoint[better]}'}\n")
    edit(folder, 'seeds: [0, 1]', 'seeds: [0]')
    run()
    edit(folder, 'gain: 0.5', 'gain: 0.6')
    start = study.Job.start
    monkeypatch.setattr(study.Job, 'start',
                        lambda job: 1 / 0 if job.key.method == 'taught' else start(job))
    with pytest.raises(ZeroDivisionError):
        run('--redo')
    monkeypatch.setattr(study.Job, 'start', start)
    begun(folder)
    with pytest.raises(SystemExit, match='has small/taught/0 from another .*teacher'):
        run()
    run('--redo')
    assert [line.split()[0] for line in begun(folder)] == ['taught/0']


def test_a_teacher_that_failed_is_not_learned_from(run, folder):
    edit(folder, 'methods:\n', "methods:\n  taught: {flags: 'x {checkpoint[better]}'}\n")
    edit(folder, '{gain: 0.5}', '{fault: crash}')
    taught = [one for one in run()['runs'] if one['method'] == 'taught']
    assert [one['reason'] for one in taught] == [
        f'it starts from small/better/{seed}, which failed' for seed in (0, 1)]
    assert not any(line.startswith('taught') for line in begun(folder))
    edit(folder, '{fault: crash}', '{gain: 0.5}')
    run('--retry', '--redo')
    assert [line.split()[0] for line in begun(folder)] == ['better/0', 'taught/0', 'better/1',
                                                          'taught/1']


@pytest.mark.parametrize('jobs', [1, 2, 3])
def test_so_many_at_a_time(jobs, run, folder):
    run('--jobs', str(jobs))
    running = most = 0
    for line in (folder / 'log').read_text().splitlines():
        running += 1 if line.startswith('begin') else -1
        most = max(most, running)
    assert most <= jobs and running == 0


@pytest.mark.parametrize('change', [
    lambda folder: edit(folder, 'gain: 0.5', 'gain: 0.6'),
    lambda folder: edit(folder, 'key=1', 'key=2'),
    lambda folder: edit(folder, 'type=\'First\'', 'type=\'Other\'', 'small.py'),
    lambda folder: (folder / 'train.json').write_text('{"images": []}')],
    ids=['option', 'flag', 'config', 'data'])
@pytest.mark.parametrize('wrapped', [False, True])
def test_runs_of_something_else_are_not_taken_for_these(wrapped, change, run, folder):
    if wrapped:
        edit(folder, 'dataset=dict(', "dataset=dict(type='RepeatDataset', dataset=dict(",
             'small.py')
        edit(folder, "ann_file='train.json'", "ann_file='train.json')", 'small.py')
    run()
    begun(folder)
    change(folder)
    with pytest.raises(SystemExit, match='study.py: .*has small/b.*/0 from another config, method,'
                                         ' teacher or data: --redo'):
        run()
    assert begun(folder) == []
    results = run('--redo')
    assert any('better/0' in line for line in begun(folder))
    assert {one['starts'] for one in results['runs']} == {1}, 'trained from nothing'


def test_test_split_once_at_the_end(run, folder):
    edit(folder, 'average_last: 2', 'average_last: 2\ntest: true')
    one = run()['runs'][0]
    assert one['metrics']['score'] == pytest.approx(dict(last=0.3, mean=0.25, test=7.0))
    assert one['metrics']['none']['test'] is None
    assert one['starts'] == 1, 'the time of the test is not that of the training'
    written, = (folder / 'work_dirs/studies/try/small/baseline/0/test').glob('*/*.json')
    assert json.loads(written.read_text())['of'].endswith('baseline/0/epoch_3.pth')


def test_a_method_that_is_chosen_later_is_tested_without_another_training(run, folder):
    before = run()['runs']
    begun(folder)
    edit(folder, 'average_last: 2', 'average_last: 2\ntest: [better]')
    for _ in range(2):  # the second time there is nothing to do: the folder of a test is made once
        after = run()['runs']
        assert begun(folder) == []
    for old, new in zip(before, after):
        if new['method'] == 'better':
            assert new['metrics']['score'].pop('test') == 7.0
            assert new['metrics']['none'].pop('test') is None
        assert new == old, 'with the time, commit and environment of the training'


def test_a_file_is_whole_whenever_it_is_read(study, tmp_path, monkeypatch):
    path = tmp_path / 'folder' / 'file.json'
    study.write_json(dict(a=1), path)
    monkeypatch.setattr(study.os, 'replace', lambda *args: 1 / 0)  # killed before the end
    with pytest.raises(ZeroDivisionError):
        study.write_json(dict(a=2), path)
    assert json.loads(path.read_text()) == dict(a=1)
    with pytest.raises(ValueError):  # nan is no json
        study.write_json(dict(a=float('nan')), path)
    assert json.loads(path.read_text()) == dict(a=1)


def test_one_study_at_a_time(study, tmp_path):
    pytest.importorskip('fcntl')
    with study.locked(tmp_path) as lock:
        with pytest.raises(UsageError, match=f'another study, or a training.* in {tmp_path}'):
            with study.locked(tmp_path):
                pass
        # A training holds it as well, and outlives the study
        child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE,
                                 pass_fds=[lock])
    with pytest.raises(UsageError):
        with study.locked(tmp_path):
            pass
    child.communicate(b'\n')
    with study.locked(tmp_path):
        pass


def test_time_left(study):
    class Known:
        content = dict(runs=[dict(config='a', status='done', seconds=100.),
                             dict(config='a', status='done', seconds=200.),
                             dict(config='b', status='failed', seconds=1.)])

    class Nothing:
        content = dict(runs=[])

    key = study.Key
    left = study.Progression(Known, jobs=2).seconds_left
    assert left([key('a', 'x', 0)], {}) == pytest.approx(75)
    # Of b, only the run at hand is known: half of it in 500 s
    assert left([key('b', 'x', 0)], {key('b', 'y', 0): (500., 0.5)}) == pytest.approx(750)
    assert study.Progression(Nothing, 1).seconds_left([key('a', 'x', 0)], {}) is None
    assert study.clock(5400.5) == 'about 1 h 31 min left'
    assert study.clock(None) == 'time left not known yet'


def test_a_training_that_may_stop_itself_is_done_when_it_has(run, folder):
    edit(folder, 'seeds: [0, 1]', 'seeds: [0]\noptions: {fault: short}')
    assert {one['status'] for one in run()['runs']} == {'failed'}
    edit(folder, "type='First'", "type='EarlyStoppingHook'", 'small.py')
    assert {(one['status'], len(one['curve'])) for one in run('--redo', '--retry')['runs']} == {
        ('done', 2)}


@pytest.mark.parametrize('old, new, message', [
    ('metrics:', 'metriks:', 'try.yaml: there is no metriks; there are description, configs'),
    ('metrics: [score, none]', '', 'try.yaml: metrics is missing'),
    ('configs: {small: small.py}', 'configs: {small: gone.py}', 'there is no config file gone.py'),
    ('seeds: [0, 1]', 'seeds: [0, 1]\ntest: [best]', "test: .best. is not true, nor a list"),
    ('seeds: [0, 1]', 'against: {small: big}', 'against: .big. is not one of the configs'),
    ('flags: --flag', 'flag: --flag', 'methods.better: there is no flag; there are flags'),
    ('flags: --flag key=1', 'flags: "{checkpoint[better]}"', 'checkpoint of its own'),
    ('flags: --flag key=1', 'flags: "{checkpoint[other]}"', 'checkpoint of small/other/0, which '
     'the grid does not hold'),
    ('flags: --flag key=1', 'flags: "{chekpoint}"', 'methods.better: .*cannot be filled in'),
    ('seeds: [0, 1]', 'grid: [{configs: [big]}]', 'grid.configs: .big. is not a list of'),
    ('seeds: [0, 1]', 'grid: [{seed: [1]}]', 'grid: there is no seed; there are configs'),
    ('seeds: [0, 1]', 'baseline: worse', 'baseline: .worse. is not one of the methods'),
    ('seeds: [0, 1]', 'seeds: [0', 'try.yaml is no yaml'),
    ('metrics: [score, none]', 'metrics: score', "metrics must be a list of names, as ..score"),
    ('average_last: 2', 'average_last: 0', 'average_last must be a whole number, at least 1'),
    ('average_last: 2', 'average_last:', 'average_last must be a whole number, .* got None'),
    ('  better:', '  off:', r'methods must be .*\(put them in quotes\), got False'),
    ('configs: {small:', 'configs: {18:', r'configs must be .*quotes\), got 18'),
    ('  better:', '  baseline:', 'try.yaml is no yaml: baseline stands here twice'),
    ('seeds: [0, 1]', 'seeds: ["0", 1]', "seeds must be a whole number, at least 0, got '0'"),
    ('seeds: [0, 1]', 'seeds: 3', 'seeds must be a list of whole numbers, got 3'),
    ('seeds: [0, 1]', 'seeds: []', 'seeds must be a list of whole numbers'),
    ('seeds: [0, 1]', 'seeds:', 'seeds must be a list of whole numbers, got None'),
    ('seeds: [0, 1]', 'grid: [{configs: small}]', "grid.configs: 'small' is not a list"),
    ('seeds: [0, 1]', 'grid: [{methods: }]', 'grid.methods: None is not a list'),
    ('seeds: [0, 1]', 'grid: {seeds: [1]}', 'grid must be a list'),
    ('configs: {small: small.py}', 'configs: [small.py]', 'configs must be a mapping of names'),
    ('configs: {small: small.py}', 'configs: {small: }', 'configs.small must be a string'),
    ('options: {gain: 0.5}', 'options: [gain]', 'methods.better.options must be a mapping'),
    ('options: {gain: 0.5}', 'options: {gian: 0.5}',
     'methods.better: options: gian: the config has no gian, .*; did you mean gain'),
    ('flags: --flag key=1', 'flags: [--flag]', 'methods.better.flags must be what could stand'),
    ('flags: --flag key=1', "flags: --flag it's", 'methods.better.flags must be what could st'),
    ('flags: --flag key=1', 'flags: "{checkpoint}"', 'cannot be filled in .it takes a name'),
    ('flags: --flag key=1', 'flags: "{checkpoint[small/baseline/0/x]}"', 'more than three parts'),
    ('average_last: 2', 'average_last: 2\noptions: {train_dataloader.dataset.ann_file: gone.json}',
     'gone.json is not there; tools/prepare_data.py'),
])
def test_what_a_study_cannot_be(old, new, message, run, folder):
    edit(folder, old, new)
    with pytest.raises(SystemExit, match=f'study.py: .*{message}'):
        run()
    assert begun(folder) == []


def test_flags_may_be_empty(run, folder):
    edit(folder, 'flags: --flag key=1', 'flags:')
    assert {one['flags'] for one in run()['runs']} == {''}


def test_other_errors(run, folder):
    with pytest.raises(SystemExit, match='--jobs 0: at least 1'):
        run('--jobs', '0')
    (folder / 'other.json').write_text('{"study": "other", "runs": []}')
    with pytest.raises(SystemExit, match='does not hold the results of a study'):
        run('--out', 'other.json')
    (folder / 'other.json').write_text('{"study": "other", "definition": {}, "runs": []}')
    with pytest.raises(SystemExit, match='holds the results of the study other, not of try'):
        run('--out', 'other.json')
    (folder / 'other.json').write_text('[]')
    with pytest.raises(SystemExit, match='does not hold the results of a study'):
        run('--out', 'other.json')


def test_means_of_another_number_of_validations_are_not_mixed(run, folder):
    run()
    edit(folder, 'average_last: 2', 'average_last: 3')
    with pytest.raises(SystemExit, match='try.json holds means of the last 2 validations, and '
                                         'average_last is 3: name another file with --out'):
        run()


def test_a_real_run(study, run_tool, tiny, monkeypatch):
    """What tools/train.py and tools/test.py write is understood; both run in this process."""
    pytest.importorskip('mmdet')
    pytest.importorskip('resource')

    def call(command, **options):
        run_tool(Path(command[1]).stem, *command[2:])
        return types.SimpleNamespace(pid=1, returncode=None)

    monkeypatch.setattr(study, 'subprocess', types.SimpleNamespace(
        Popen=call, run=subprocess.run, STDOUT=None, DEVNULL=None))
    usage = types.SimpleNamespace(ru_utime=1., ru_stime=0.)
    monkeypatch.setattr(study.os, 'wait4', lambda *args: (1, 0, usage))
    (tiny / 'real.yaml').write_text(
        'configs: {tiny: tiny.py}\nmethods:\n  pskd: {flags: --pskd alpha_T=0.5}\n'
        'options: {train_cfg.val_interval: 1}\nmetrics: [coco/bbox_mAP]\ntest: true\n')
    asked = study.Study(Path('real.yaml'))
    results = study.Results(Path('real.json'), asked)
    study.Scheduler(asked, results, Path('studied'), 1, Console(quiet=True)).run(asked.runs, [])
    one, = json.loads(Path('real.json').read_text())['runs']
    assert one['status'] == 'done', one['reason']
    assert 0 <= one['metrics']['coco/bbox_mAP']['last'] == one['metrics']['coco/bbox_mAP']['test']
    assert len(one['commit'] or 'x' * 40) == 40
    assert 'PSKDHook' in Path('studied/tiny/pskd/0/tiny.py').read_text()
