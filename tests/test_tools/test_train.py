import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mmskd.checkpoint import load_checkpoint_safely
from tests.support.processes import free_port

pytest.importorskip('mmdet')
needs_mmpose = pytest.mark.skipif(find_spec('mmpose') is None, reason='mmpose is not installed')

ROOT = Path(__file__).resolve().parents[2]
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
POSE = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'
PSKD = dict(type='mmskd.PSKDHook')


def pskd_hooks(cfg):
    return [hook for hook in cfg.custom_hooks if hook['type'] == 'mmskd.PSKDHook']


@pytest.mark.parametrize('project', ['mmdet', 'mmpose'])
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_has_every_flag_of_its_namesake(tool, project):
    if find_spec(project) is None:
        pytest.skip(f'{project} is not installed')
    theirs = Path(find_spec(project).origin).parent / '.mim' / 'tools' / f'{tool}.py'
    flags = re.findall(r"add_argument\(\s*'(--[\w-]+)'", theirs.read_text())
    code = (ROOT / 'tools' / f'{tool}.py').read_text()
    code += (ROOT / 'mmskd' / 'engine' / 'launch.py').read_text()
    assert flags and all(f"'{flag}'" in code for flag in flags)


# ------------------------------------------------------------------ what the flags do


def test_config_by_name_or_file(prepare):
    by_name = prepare('train', RETINANET)
    assert by_name.model.type == 'RetinaNet'
    assert by_name.work_dir == os.path.join('work_dirs', 'retinanet_r50_fpn_1x_coco')
    ours = prepare('train', 'mmskd::pskd_retinanet.py')
    assert ours.work_dir == os.path.join('work_dirs', 'pskd_retinanet')
    as_file = prepare('train', str(ROOT / 'configs' / 'pskd_retinanet.py'), '--work-dir', 'here')
    assert as_file.work_dir == 'here' and as_file.model == ours.model


def test_pskd_on_any_config(prepare):
    assert list(prepare('train', RETINANET, '--pskd').custom_hooks) == [PSKD]
    cfg = prepare('train', RETINANET, '--pskd', 'alpha_T=0.5', 'precision=bfloat16',
                  'interval=None', 'heads=[rpn_head]')
    assert list(cfg.custom_hooks) == [
        dict(PSKD, alpha_T=0.5, precision='bfloat16', interval=None, heads=['rpn_head'])]
    assert cfg.work_dir.endswith('_pskd'), 'not where the baseline writes'
    options = dict(alpha_T=0.8, form='kl', about='positives', schedule='cosine', begin=1, stop=10)
    cfg = prepare('train', RETINANET, '--pskd',
                  *(f'{key}={value}' for key, value in options.items()))
    assert list(cfg.custom_hooks) == [dict(PSKD, **options)]
    assert 'custom_hooks' not in prepare('train', RETINANET)


def test_pskd_keeps_the_hooks_that_are_there(prepare):
    name = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'
    stock = list(prepare('train', name).custom_hooks)
    assert list(prepare('train', name, '--pskd').custom_hooks) == [*stock, PSKD]


def test_pskd_changes_the_hook_that_is_there(prepare):
    hook, = pskd_hooks(prepare('train', 'mmskd::pskd_rtmdet.py', '--pskd', 'alpha_T=0.3'))
    assert hook['alpha_T'] == 0.3
    hook, = pskd_hooks(prepare('train', 'mmskd::pskd_rtmdet.py', '--pskd'))
    assert hook['alpha_T'] == 0.8


def test_fixed_seed_makes_resuming_exact(prepare, load_tool):
    streams = dict(type='mmskd.RandomStreamsHook')
    cfg = prepare('train', RETINANET, '--pskd', '--cfg-options', 'randomness.seed=0')
    assert list(cfg.custom_hooks) == [PSKD, streams]
    load_tool('train').make_resume_exact(cfg)
    assert list(cfg.custom_hooks) == [PSKD, streams], 'one is enough'


@pytest.mark.parametrize('argv, message', [
    (['--pskd', 'alpha=0.5'], 'no option alpha; there are alpha_T, interval'),
    (['--pskd', 'alpha_T=2'], 'alpha_T must be a number in [0, 1], got 2'),
    (['--resume', 'nowhere.pth'], 'no checkpoint nowhere.pth'),
    ([], 'data/coco/annotations/instances_train2017.json (train), which is not there; put the '
     'data set there, or link it: ln -s /path/to/the/data data/coco'),
    (['--no-validate', '--cfg-options', 'load_from=~/nowhere.pth'], 'no checkpoint ~/nowhere.pth'),
])
def test_errors_before_anything_is_built(argv, message, refusal, tiny):
    assert message in refusal('train', RETINANET, *argv)


@pytest.mark.parametrize('name, message', [
    ('retinanet.py', 'no config file retinanet.py; a config of a package is given as package::'),
    ('mmdet::retinanet/retinanet_r50_fpn_1x.py', f'did you mean {RETINANET}'),
    ('nopackage::a.py', 'package nopackage is not installed'),
])
def test_unknown_configs(name, message, refusal):
    assert message in refusal('train', name)


def test_pskd_before_the_config_is_explained(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('train', '--pskd', RETINANET)
    assert 'positional arguments go before --pskd' in capsys.readouterr().err


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as the tool asks."""
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cuda')


def test_mmdet_flags(prepare, gpu):
    cfg = prepare('train', RETINANET, '--amp', '--auto-scale-lr', '--no-validate', '--resume',
                  '--show-dir', 'drawn', '--work-dir', 'flag', '--cfg-options', 'work_dir=option',
                  'train_cfg.max_epochs=3')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.auto_scale_lr.enable and cfg.train_cfg.max_epochs == 3
    assert cfg.val_cfg is None and cfg.val_dataloader is None and cfg.val_evaluator is None
    assert cfg.resume and cfg.load_from is None
    assert cfg.default_hooks.visualization.draw
    assert cfg.default_hooks.visualization.test_out_dir == 'drawn'
    assert cfg.work_dir == 'flag', 'a flag wins over --cfg-options'


@needs_mmpose
def test_mmpose_flags(prepare, gpu):
    cfg = prepare('train', POSE, '--amp', '--auto-scale-lr', '--resume', 'x.pth', '--show',
                  '--work-dir', 'flag', '--cfg-options', 'work_dir=option',
                  'preprocess_cfg.type=PoseDataPreprocessor')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.auto_scale_lr.enable
    assert cfg.resume and cfg.load_from == 'x.pth'
    hook = cfg.default_hooks.visualization
    assert hook.enable and hook.show and hook.wait_time == 1 and hook.interval == 1
    assert cfg.model.data_preprocessor.type == 'PoseDataPreprocessor'
    assert cfg.work_dir == 'option', '--cfg-options win over a flag'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_without_a_gpu(prepare):
    wrapper = prepare('train', RETINANET, '--amp', '--cfg-options',
                      'optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=float16',
                      'optim_wrapper.clip_grad.max_norm=1').optim_wrapper
    assert wrapper.type == 'mmskd.CPUAmpOptimWrapper' and wrapper.clip_grad.max_norm == 1
    assert 'dtype' not in wrapper and 'loss_scale' not in wrapper


def test_profile(prepare, tiny, capsys, run_tool):
    with pytest.raises(ValueError, match='--profile: 0 iterations'):
        prepare('train', RETINANET, '--profile', '0')
    run_tool('train', 'tiny.py', '--pskd', '--profile', '3', '--no-validate', '--cfg-options',
             'train_cfg.max_epochs=3', '--work-dir', 'profiled')
    events = json.loads(Path('profiled/trace.json').read_text())['traceEvents']
    assert {'mmskd/teacher', 'mmskd/pairing', 'mmskd/loss', 'mmskd/refresh'} <= {
        event.get('name') for event in events}
    assert 'mmskd/teacher' in capsys.readouterr().out


def test_a_setting_of_a_part_that_is_not_there_is_refused(refusal, tiny):
    assert '--cfg-options: train_cgf.max_epochs: the config has no train_cgf, and nothing reads ' \
        'it; did you mean train_cfg?' in refusal('train', 'tiny.py', '--cfg-options',
                                                 'train_cgf.max_epochs=2')


@needs_mmpose
def test_mmpose_amp_refuses_other_wrappers(refusal, tiny):
    Path('other.py').write_text("_base_ = 'tiny_pose.py'\noptim_wrapper = dict(type='Other')")
    assert 'cannot replace the optimizer wrapper Other' in refusal('train', 'other.py', '--amp')


# ------------------------------------------------------------------ whole runs


def test_trains_and_resumes_with_pskd(run_tool, tiny, trained):
    options = ['--work-dir', 'work_dirs/pskd', '--cfg-options', 'train_cfg.max_epochs=2']
    run_tool('train', 'tiny.py', '--pskd', *options)
    checkpoint = load_checkpoint_safely('work_dirs/pskd/epoch_2.pth')
    stock = load_checkpoint_safely(trained)
    assert checkpoint['state_dict'].keys() == stock['state_dict'].keys()

    Path('work_dirs/pskd/epoch_2.pth').unlink()
    run_tool('train', 'tiny.py', '--pskd', *options, '--resume', 'work_dirs/pskd/epoch_1.pth')
    resumed = load_checkpoint_safely('work_dirs/pskd/epoch_2.pth')
    for key, value in checkpoint['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key


STOCK = """
import runpy, sys
from importlib.util import find_spec
from pathlib import Path
tools = Path(find_spec('mmdet').origin).parent / '.mim' / 'tools'
assert 'mmskd' not in sys.modules
for argv in (['train.py', 'stock.py'], ['test.py', 'stock.py', 'work_dirs/stock/epoch_1.pth']):
    sys.argv = [str(tools / argv[0]), *argv[1:]]
    runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_stock_tools_find_the_hook_and_read_the_checkpoint(tiny):
    """The scope in ``type='mmskd.PSKDHook'`` is all that they need."""
    base = ROOT / 'configs' / 'demo' / 'retinanet_shapes.py'
    Path('stock.py').write_text(
        f"_base_ = '{base}'\ntrain_cfg = dict(max_epochs=1)\n"
        "custom_hooks = [dict(type='mmskd.PSKDHook')]\n")
    done = subprocess.run([sys.executable, '-c', STOCK], capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert 'pskd_alpha' in output and 'Epoch(test)' in output


STOCK_POSE_TEST = """
import runpy, sys
from importlib.util import find_spec
from pathlib import Path
sys.argv = [str(Path(find_spec('mmpose').origin).parent / '.mim' / 'tools' / 'test.py'),
            'tiny_pose.py', sys.argv[1], '--out', 'stock.json',
             '--work-dir', 'work_dirs/stock_test']
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@needs_mmpose
def test_pose_through_both_stages_to_the_stock_tool(run_tool, tiny, capsys):
    """Baseline, teacher and student, fresh head: each checkpoint is the stock model's."""
    Path('teacher.py').write_text("_base_ = 'tiny_pose.py'\nmodel = dict(backbone=dict("
                                  "base_channels=16), head=dict(in_channels=128))")
    run_tool('train', 'teacher.py')
    run_tool('train', 'tiny_pose.py', '--distill-from', 'teacher.py',
             'work_dirs/teacher/epoch_1.pth')
    first = 'work_dirs/tiny_pose_distill/epoch_1.pth'
    run_tool('train', 'tiny_pose.py', '--head-distill', first, '--cfg-options',
             'train_cfg.max_epochs=5', 'train_cfg.val_interval=5')
    assert '1 instead of 5 epochs' in capsys.readouterr().out
    second = Path('work_dirs/tiny_pose_head_distill/epoch_1.pth')
    assert second.is_file() and not second.with_name('epoch_2.pth').exists()
    weights = [load_checkpoint_safely(path)['state_dict'] for path in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items()
               if key.startswith('backbone.'))

    run_tool('publish_model', second, 'published.pth')
    published, = Path().glob('published-*.pth')
    run_tool('test', 'tiny_pose.py', str(published), '--out', 'ours.json')
    # The data set of this config is ours, all else is MMPose's
    done = subprocess.run([sys.executable, '-c', STOCK_POSE_TEST, str(published)], text=True,
                          capture_output=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stdout + done.stderr
    import mmengine
    assert mmengine.load('stock.json') == mmengine.load('ours.json')


@needs_mmpose
def test_distillation_flags(prepare):
    cfg = prepare('train', POSE, '--distill-from', POSE, 'teacher.pth')
    assert cfg.custom_hooks[-1] == dict(type='mmskd.DistillHook', teacher=dict(
        config=POSE, checkpoint='teacher.pth'))
    assert cfg.work_dir.endswith('_distill')
    cfg = prepare('train', POSE, '--distill-from', POSE, 'teacher.pth', 'schedule=cosine',
                  'stop=200')
    assert cfg.custom_hooks[-1] == dict(type='mmskd.DistillHook', schedule='cosine', stop=200,
                                        teacher=dict(config=POSE, checkpoint='teacher.pth'))
    cfg = prepare('train', POSE, '--head-distill', 'trained.pth')
    assert cfg.custom_hooks[-1] == dict(type='mmskd.HeadDistillHook', checkpoint='trained.pth')
    assert cfg.work_dir.endswith('_head_distill') and cfg.train_cfg.max_epochs == 42
    assert cfg.param_scheduler[1].milestones == [34, 40]
    cfg = prepare('train', POSE, '--head-distill', 'trained.pth', 'gt_weight=1',
                  'reinit_head=False')
    assert cfg.custom_hooks[-1] == dict(type='mmskd.HeadDistillHook', checkpoint='trained.pth',
                                        gt_weight=1, reinit_head=False)


def test_a_fresh_head_on_a_trained_detector(run_tool, tiny, trained, capsys):
    run_tool('train', 'tiny.py', '--head-distill', trained, '--cfg-options',
             'train_cfg.max_epochs=5', 'train_cfg.val_interval=5')
    assert '1 instead of 5 epochs' in capsys.readouterr().out
    before, after = (load_checkpoint_safely(path)['state_dict']
                     for path in (trained, 'work_dirs/tiny_head_distill/epoch_1.pth'))
    # EMAHook is in the config: what is saved is its average, of what does not move
    assert before.keys() == after.keys()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same >= {key for key in before if not key.startswith('bbox_head.')}
    assert {key for key in before if key.startswith('bbox_head.') and key.endswith('.weight')
            } - same


def test_resume(run_tool, refusal, tiny, capsys):
    """It goes on from the newest whole checkpoint, or stops; it starts only if it may."""
    line = refusal('train', 'tiny.py', '--pskd', '--resume', '--work-dir', 'work_dirs/resume')
    assert 'there is no checkpoint in work_dirs/resume; --resume auto-or-start starts' in line
    options = ['--work-dir', 'work_dirs/resume', '--cfg-options', 'train_cfg.max_epochs=2']
    run_tool('train', 'tiny.py', '--pskd', '--resume', 'auto-or-start', *options)
    assert 'no checkpoint in work_dirs/resume; the training starts' in capsys.readouterr().out
    folder = Path('work_dirs/resume')
    whole = (folder / 'epoch_2.pth').read_bytes()
    (folder / 'epoch_2.pth').write_bytes(whole[:-1000])
    run_tool('train', 'tiny.py', '--pskd', '--resume', *options)
    printed = capsys.readouterr().out
    assert re.search(r'--resume: work_dirs/resume/epoch_2.pth cannot be read .* the end of it is '
                     'missing.*; it is passed over\n--resume: goes on from '
                     'work_dirs/resume/epoch_1.pth\n', printed)
    before = torch.load(io.BytesIO(whole), weights_only=True)['state_dict']
    after = load_checkpoint_safely('work_dirs/resume/epoch_2.pth')['state_dict']
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not (folder / 'epoch_3.pth').exists()

    for path in folder.glob('epoch_*.pth'):
        path.write_bytes(b'')
    for word in ([], ['auto-or-start']):
        line = refusal('train', 'tiny.py', '--pskd', '--work-dir', folder, '--resume', *word)
        assert 'no checkpoint in work_dirs/resume to go on from: ' in line
        assert 'epoch_1.pth cannot be read as a checkpoint: it is empty' in line
    assert 'holds no optimizer state' in refusal('train', 'tiny.py', '--resume', weights_of(before))


def weights_of(state_dict):
    """A checkpoint that is no run."""
    torch.save(dict(state_dict=state_dict, meta={}, message_hub={}), 'weights.pth')
    return 'weights.pth'


def test_resume_says_where_the_run_is(refusal, tiny):
    """With another method it is in another folder."""
    for name in ('tiny_pskd', 'tiny_head_distill'):
        folder = Path('work_dirs', name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'last_checkpoint').write_text('epoch_1.pth')
    line = refusal('train', 'tiny.py', '--resume')
    assert 'there is no checkpoint in work_dirs/tiny (work_dirs/tiny_pskd has one, of a run with '\
        '--pskd; work_dirs/tiny_head_distill has one, of a run with --head-distill' in line
    shutil.rmtree('work_dirs/tiny_pskd')
    line = refusal('train', 'tiny.py', '--pskd', '--resume')
    assert 'work_dirs/tiny_pskd (work_dirs/tiny_head_distill has one' in line
    shutil.rmtree('work_dirs/tiny_head_distill')


def test_every_run_saves_safely_and_stops_at_nan(prepare, tiny):
    safe = 'mmskd.SafeCheckpointHook'
    assert prepare('train',
                   RETINANET).default_hooks.finite_weights.type == 'mmskd.FiniteWeightsHook'
    assert 'finite_weights' not in prepare('train', RETINANET, '--keep-going').default_hooks
    hook = prepare('train', RETINANET).default_hooks.checkpoint
    assert hook.type == safe and hook.interval == 1
    Path('hooks.py').write_text(
        "_base_ = 'tiny.py'\nfrom mmengine.hooks import CheckpointHook\n"
        "custom_hooks = [dict(type='mmengine.CheckpointHook', interval=7, by_epoch=False),\n"
        "                dict(type=CheckpointHook), dict(type='EMAHook')]\n")
    cfg = prepare('train', 'hooks.py', '--cfg-options', 'default_hooks.checkpoint=None')
    assert cfg.default_hooks.checkpoint is None, 'who wants none gets none'
    assert [hook.type for hook in cfg.custom_hooks[:3]] == [safe, safe, 'EMAHook']
    cfg = prepare('train', 'tiny.py', '--cfg-options', 'default_hooks=None')
    assert cfg.default_hooks.checkpoint.type == safe


def test_restarted_processes_must_go_on(refusal, prepare, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '3')
    assert '--max-restarts=3: started again, ' in refusal('train', RETINANET)
    prepare('train', RETINANET, '--resume', 'auto-or-start')


def test_distill_from_a_file_is_found_from_everywhere(prepare, tiny):
    cfg = prepare('train', 'tiny.py', '--distill-from', 'tiny.py', 'teacher.pth')
    hook = [hook for hook in cfg.custom_hooks if hook['type'] == 'mmskd.DistillHook'][0]
    assert hook['teacher']['config'] == str(tiny / 'tiny.py')


@pytest.mark.parametrize(
    'argv, message',
    [(['--distill-from', 'gone.py', 'x.pth'], 'no config file gone.py'),
     (['--distill-from', RETINANET, 'gone.pth'], 'no checkpoint gone.pth'),
     (['--distill-from', RETINANET
       ], '--distill-from takes a config, a checkpoint, and then key=value'),
     (['--distill-from', RETINANET, __file__, 'decay=False'
       ], 'has no option decay; there are teacher, '),
     (['--distill-from', RETINANET, __file__, 'schedule=linear'], "schedule must be 'rising', "),
     (['--pskd', 'form=mix'], "form must be 'paper', 'kl', 'rescaled', 'added' or None, got 'mix'"),
     (['--head-distill', 'gone.pth'], 'no checkpoint gone.pth'),
     (['--head-distill', __file__, 'temperature=2'
       ], 'has no option temperature; there are checkpoint, gamma'),
     (['--head-distill', __file__, 'gamma=-1'], 'gamma must be a number, at least 0'), ])
def test_teachers_that_are_not_there(argv, message, refusal, tiny):
    assert message in refusal('train', 'tiny.py', *argv)


def test_what_goes_together_does(prepare, tiny):
    Path('uskd.py').write_text(
        "_base_ = 'tiny.py'\ncustom_hooks = [dict(type='mmskd.USKDHook', layer='a', "
        'channels=8, num_classes=5)]')
    cfg = prepare('train', 'uskd.py', '--pskd')
    assert [hook.type for hook in cfg.custom_hooks][:2] == ['mmskd.USKDHook', 'mmskd.PSKDHook']


def test_one_teacher_at_a_time(refusal, prepare, capsys):
    with pytest.raises(SystemExit):
        prepare('train', RETINANET, '--pskd', '--head-distill', 'x.pth')
    assert 'not allowed with' in capsys.readouterr().err
    line = refusal('train', 'mmskd::pskd_retinanet.py', '--distill-from', RETINANET, __file__)
    assert ('custom_hooks has PSKDHook and DistillHook, which do not teach one model together'
            in line)


class Evil:

    def __reduce__(self):
        return os.system, ('touch evil_was_here', )


@pytest.mark.parametrize('argv', [['--resume', 'evil.pth'],
                                  ['--cfg-options', 'load_from=evil.pth']])
def test_runs_nothing_of_a_crafted_checkpoint(argv, refusal, tiny):
    torch.save(dict(meta=dict(), state_dict=Evil()), 'evil.pth')
    line = refusal('train', 'tiny.py', '--work-dir', 'work_dirs/evil', *argv)
    assert 'evil.pth was not loaded: it asks for posix.system' in line
    assert not Path('evil_was_here').exists()


@pytest.mark.parametrize('setting', [
    'custom_hook=[dict(type="mmskd.PSKDHook")]', 'hook=dict(type="mmskd.PSKDHook")'])
def test_a_hook_that_nothing_reads(setting, refusal, tiny):
    Path('misplaced.py').write_text(f"_base_ = 'tiny.py'\n{setting}\n")
    assert (f'{setting.partition("=")[0]} is a hook that teaches, and nothing reads it there'
            in refusal('train', 'misplaced.py'))
    Path('placed.py').write_text("_base_ = 'misplaced.py'\n"
                                 "custom_hooks = [dict(type='mmskd.PSKDHook', alfa=1)]\n")
    assert 'custom_hooks[0]: PSKDHook: ' in refusal('train', 'placed.py')


def test_config_and_checkpoint_of_a_teacher_the_wrong_way_round(refusal, tiny):
    line = refusal('train', 'tiny.py', '--distill-from', 'x.pth', 'tiny.py')
    assert 'takes the config first: --distill-from tiny.py x.pth' in line


def test_a_setting_that_does_not_fit(refusal, tiny):
    line = refusal('train', 'tiny.py', '--cfg-options', 'custom_hooks.7.momentum=0.3')
    assert '--cfg-options: custom_hooks.7.momentum: ' in line


def test_resumes_no_other_model(refusal, tiny, trained):
    line = refusal('train', 'tiny.py', '--work-dir', 'work_dirs/other', '--resume', trained,
                   '--cfg-options', 'model.bbox_head.num_classes=9', 'experiment_name=resumed')
    assert 'epoch_1.pth does not fit RetinaNet: it has in another shape 2 weights' in line


@pytest.mark.skipif(find_spec('mmpose') is None, reason='mmpose is not installed')
def test_numbers_of_keypoints(refusal, tiny):
    line = refusal('train', 'tiny_pose.py', '--cfg-options', 'model.head.out_channels=17',
                   'experiment_name=keypoints')
    assert 'model.head.out_channels is 17, and the training data have 13 keypoints' in line


def test_stopped_by_the_user(tiny, run_tool, monkeypatch, capsys):
    from mmengine.runner import Runner
    monkeypatch.setattr(Runner, 'train', lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as ending:
        run_tool('train', 'tiny.py', '--work-dir', 'work_dirs/stopped')
    assert ending.value.code == 130
    assert 'train.py: stopped; --resume goes on' in capsys.readouterr().out


def test_starts_from_no_other_model(refusal, tiny):
    torch.save(dict(state_dict={'backbone.other': torch.zeros(1)}), 'other.pth')
    # With a name of its own: Runners of the same second share a logger, and its closed stream
    line = refusal('train', 'tiny.py', '--work-dir', 'work_dirs/other', '--cfg-options',
                   'load_from=other.pth', 'experiment_name=other')
    assert 'other.pth holds no weight of this model (RetinaNet)' in line


# ------------------------------------------------------------------ several processes


def run_script(name, *argv, **env):
    env = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', **env)
    done = subprocess.run(['bash', ROOT / 'tools' / name, *map(str, argv)], env=env,
                          capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_test_in_two_processes_on_the_cpu(tiny, run_tool):
    """A training with dist_train.sh is in test_two_processes.py."""
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    run_tool('train', 'tiny.py', '--work-dir', 'two processes', '--cfg-options', 'custom_hooks=[]')
    code, output = run_script('dist_test.sh', 'tiny.py', 'two processes/epoch_1.pth', 2,
                              '--work-dir', 'two processes', PORT=free_port())
    assert code == 0, output
    assert re.search(r'Epoch\(test\) \[1/1\] .*bbox_mAP', output)


@pytest.mark.parametrize('name', ['slurm_train', 'slurm_test'])
def test_slurm(name, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\necho "path $PYTHONPATH"\n')
    srun.chmod(0o755)
    code, output = run_script(f'{name}.sh', 'part', 'job', 'a config.py', 'a path', '--x', 'y z',
                              GPUS='4', GPUS_PER_NODE='2', SRUN_ARGS='--mem 1G\n--exclude=n[1-2] *',
                              PATH=f'{tmp_path}:{os.environ["PATH"]}')
    assert code == 0, output
    lines = output.splitlines()
    what = ['--work-dir=a path'] if name == 'slurm_train' else ['a path']
    script = ROOT / 'tools' / f'{name[6:]}.py'
    for expected in ([
            '-p', 'part', '--job-name=job', '--gres=gpu:2', '--ntasks=4', '--ntasks-per-node=2',
            '--cpus-per-task=5', '--kill-on-bad-exit=1', '--mem', '1G', '--exclude=n[1-2]', '*',
            sys.executable, '-u',
            str(script), 'a config.py', *what, '--launcher=slurm', '--x', 'y z'
    ], ):
        start = lines.index('-p')
        assert lines[start:start + len(expected)] == expected
    assert any(line.startswith(f'path {ROOT}') for line in lines)


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_scripts_say_how_they_are_called(name):
    code, output = run_script(f'{name}.sh')
    assert code == 2 and 'usage:' in output
