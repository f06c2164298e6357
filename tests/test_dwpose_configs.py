"""Every DWPose config is a stock config of MMPose and one hook more, and its pair fits together."""
import os
import re
from functools import lru_cache
from pathlib import Path

import mmengine
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmskd.config import config_root, find_config, load_config
from mmskd.checkpoint import load_checkpoint_safely
from mmskd.optional import HAS_MMDET

pytest.importorskip('mmpose')

ROOT = Path(__file__).resolve().parents[1] / 'configs' / 'dwpose'
STAGE1 = sorted(path.name for path in ROOT.glob('dwpose_s1_*.py'))
STAGE2 = sorted(path.name for path in ROOT.glob('dwpose_s2_*.py'))
SHARE = 5  # stage 2 takes a fifth of the epochs
SIMCC_LOSSES = [dict(type='mmskd.FeatureDistillLoss', weight=7e-5),
                dict(type='mmskd.SimCCDistillLoss', weight=0.1)]
HEATMAP_LOSSES = [dict(type='mmskd.HeatmapDistillLoss', weight=1.0)]


@lru_cache(maxsize=None)
def read(name):
    return load_config(name)


def ours(name):
    return read(str(ROOT / name))


def plain(node):
    """A config without the ``_scope_`` that mmengine notes in what comes from another package."""
    node = node.to_dict() if isinstance(node, Config) else node
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    return [plain(child) for child in node] if isinstance(node, (list, tuple)) else node


def base_of(name):
    return re.search(r"^_base_ = '(.*?)'", (ROOT / name).read_text(), re.M).group(1)


def stock_of(name):
    """The name of the stock config that a config is made of, through that of stage 1."""
    base = base_of(name)
    return base if base.startswith('mmpose::') else stock_of(base)


def distill_hook(name):
    return ours(name).custom_hooks[-1]


def teacher_of(name):
    return distill_hook(name).teacher


@lru_cache(maxsize=None)
def published():
    """Pairs of config and checkpoint that MMPose names in its metafiles and DWPose configs."""
    root = config_root('mmpose')
    pairs = set()
    for entry in mmengine.load(root.parent / 'model-index.yml')['Import']:
        for model in mmengine.load(root.parent / entry)['Models']:
            pairs.add((model['Config'], model.get('Weights')))
    for path in (root / 'wholebody_2d_keypoint' / 'dwpose').rglob('*.py'):
        model = Config.fromfile(path).model
        pairs.add((model.teacher_cfg, model.teacher_pretrained))
    return pairs


def is_published(config, checkpoint):
    return (config.replace('mmpose::', 'configs/'), checkpoint) in published()


def build(cfg):
    from mmpose.registry import MODELS
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def test_pairs_are_there():
    pairs = [re.match(r'dwpose_s1_(?:td-hm_)?(\S+?)_(\S+?)_\S+?_(\S+)\.py', name).groups()
             for name in STAGE1]
    wholebody = 'coco-ubody-wholebody-256x192'
    for teacher, student in ('xl', 'lm', 'ls', 'lt'):
        assert (f'rtmpose-{teacher}', f'rtmpose-{student}', wholebody) in pairs
        assert any(f'_rtmpose-{student}_' in name and wholebody in name for name in STAGE2)
    assert ('rtmpose-x', 'rtmpose-l', 'coco-ubody-wholebody-384x288') in pairs
    assert ('rtmpose-l', 'rtmpose-m', 'coco-wholebody-256x192') in pairs
    assert ('rtmpose-x', 'rtmpose-l', 'coco-wholebody-384x288') in pairs
    assert {pair[0].partition('-')[0] for pair in pairs} == {
        'rtmpose', 'rtmw', 'hrnet', 'ViTPose'}
    assert sorted(STAGE1 + STAGE2) == sorted(path.name for path in ROOT.glob('*.py'))


@pytest.mark.parametrize('name', STAGE1)
def test_stage1_is_the_stock_config_and_one_hook(name):
    stock, cfg = plain(read(stock_of(name))), plain(ours(name))
    hook = cfg['custom_hooks'].pop()
    assert cfg.pop('custom_hooks') == stock.pop('custom_hooks'), 'a stock hook is lost'
    if '_rtmpose-' in name:
        assert 'clip_grad' not in stock['optim_wrapper']
        assert cfg['optim_wrapper'].pop('clip_grad') == dict(max_norm=1., norm_type=2)
    assert cfg == stock
    assert hook == dict(
        type='mmskd.DistillHook', teacher=plain(teacher_of(name)),
        losses=HEATMAP_LOSSES if 'td-hm' in name else SIMCC_LOSSES)
    assert set(hook['teacher']) == {'config', 'checkpoint'}


@pytest.mark.parametrize('name', STAGE1)
def test_name_says_teacher_and_student(name):
    kind, teacher, student = re.match(r'dwpose_s1_(td-hm_)?(\S+?)_(\S+)\.py', name).groups('')
    assert Path(stock_of(name)).stem == kind + student
    assert Path(teacher_of(name).config).stem.startswith(f'{kind}{teacher}_')
    assert teacher != student.partition('_')[0]


@pytest.mark.parametrize('name', STAGE1)
def test_pair_speaks_of_the_same_bins(name):
    """Keypoints, input, bins or heatmap: else the teacher's prediction means something else."""
    teacher, student = read(teacher_of(name).config), ours(name)
    assert plain(teacher.codec) == plain(student.codec)
    assert teacher.model.type == student.model.type == 'TopdownPoseEstimator'
    for key in ('type', 'out_channels', 'input_size', 'simcc_split_ratio', 'decoder', 'loss'):
        assert plain(teacher.model.head.get(key)) == plain(student.model.head.get(key)), key
    assert plain(teacher.model.data_preprocessor) == plain(student.model.data_preprocessor)
    assert plain(teacher.model.backbone) != plain(student.model.backbone)
    assert teacher.val_dataloader.dataset.type == student.val_dataloader.dataset.type


@pytest.mark.parametrize('name', STAGE1)
def test_teacher_is_published(name):
    teacher = teacher_of(name)
    assert is_published(teacher.config, teacher.checkpoint)


@pytest.mark.parametrize('name', STAGE2)
def test_stage2_takes_a_fifth_of_everything(name):
    stock, cfg = plain(read(stock_of(name))), plain(ours(name))
    epochs = stock['train_cfg']['max_epochs'] // SHARE
    assert cfg['train_cfg'] == dict(stock['train_cfg'], max_epochs=epochs, val_interval=6)
    checkpoint = cfg['default_hooks']['checkpoint']
    assert checkpoint == dict(stock['default_hooks']['checkpoint'], interval=6)
    assert epochs % 6 == 0, 'the last epoch is validated and saved as any other'
    assert f'-{epochs}e_' in name

    warm_up, cosine = cfg['param_scheduler']
    stock_warm_up, stock_cosine = stock['param_scheduler']
    assert warm_up == stock_warm_up and not warm_up['by_epoch']
    times = {key: stock_cosine[key] // SHARE for key in ('begin', 'end', 'T_max')}
    assert cosine == dict(stock_cosine, **times) and cosine['end'] == epochs

    *hooks, distill = cfg['custom_hooks']
    for hook in stock['custom_hooks']:
        if 'switch_epoch' in hook:
            hook['switch_epoch'] //= SHARE
            assert 0 < hook['switch_epoch'] < epochs
    assert hooks == stock['custom_hooks']
    assert distill == dict(type='mmskd.HeadDistillHook', checkpoint=distill['checkpoint'])


@pytest.mark.parametrize('name', STAGE2)
def test_stage2_changes_nothing_but_the_schedule(name):
    stock, cfg = plain(read(stock_of(name))), plain(ours(name))
    if '_rtmpose-' in name:
        assert cfg['optim_wrapper'].pop('clip_grad') == dict(max_norm=1., norm_type=2)
    for key in ('max_epochs', 'stage2_num_epochs', 'train_cfg', 'default_hooks',
                'param_scheduler', 'custom_hooks'):
        cfg.pop(key), stock.pop(key)
    assert cfg == stock


@pytest.mark.parametrize('name', STAGE2)
def test_stage2_goes_on_from_its_stage1(name):
    checkpoint = distill_hook(name).checkpoint
    if checkpoint.startswith('https://'):
        assert is_published(stock_of(name), checkpoint)
        return
    folder, stage1, file = checkpoint.split('/')
    assert (folder, f'{stage1}.py') == ('work_dirs', base_of(name))
    epochs = ours(f'{stage1}.py').train_cfg.max_epochs
    assert file == f'epoch_{epochs}.pth'
    assert epochs % ours(f'{stage1}.py').default_hooks.checkpoint.interval == 0, 'it is saved'


def test_bases_exist_by_name():
    for name in STAGE1 + STAGE2:
        assert find_config(stock_of(name)).is_file()
    for name in STAGE1:
        assert find_config(teacher_of(name).config).is_file()


@pytest.mark.skipif(not HAS_MMDET, reason="RTMPose's backbone and data pipeline are mmdet's")
@pytest.mark.parametrize('name', [
    'dwpose_s1_rtmpose-l_rtmpose-t_8xb64-270e_coco-ubody-wholebody-256x192.py',
    'dwpose_s2_rtmw-m_8xb1024-54e_cocktail14-256x192.py',
    'dwpose_s2_rtmpose-s_8xb256-84e_coco-256x192.py',
    'dwpose_s1_td-hm_hrnet-w48_hrnet-w32_8xb64-210e_coco-256x192.py',
])
def test_student_builds(name):
    import torch
    with torch.device('meta'):
        model, stock = build(ours(name)), build(read(stock_of(name)))
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in stock.state_dict().items()}


@pytest.mark.skipif(not HAS_MMDET, reason="RTMPose's backbone and data pipeline are mmdet's")
@pytest.mark.parametrize('name', STAGE1 + STAGE2)
def test_stock_hooks_build(name):
    """Also those that a config takes over from its base with other times."""
    from mmpose.registry import HOOKS
    cfg = ours(name)
    stock = read(stock_of(name)).custom_hooks
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = [type(HOOKS.build(hook)).__name__ for hook in plain(cfg.custom_hooks)[:-1]]
    assert built == [hook.type.rpartition('.')[2] for hook in stock]


# ------------------------------------------------------------------ a real step at full size


DATA = os.environ.get('MMSKD_TEST_DATA')
WHOLEBODY = Path(DATA or '', 'coco_wholebody_tiny')
STAGES = ('dwpose_s1_rtmpose-l_rtmpose-m_8xb64-270e_coco-wholebody-256x192.py',
          'dwpose_s2_rtmpose-m_8xb64-54e_coco-wholebody-256x192.py')


def four_images(cfg, work_dir):
    """A config that trains one step on the four images, from random weights and without a download."""
    pipeline = [step for step in cfg.train_dataloader.dataset.pipeline
                if step.type not in ('Albumentation', 'PhotometricDistortion')]
    cfg.merge_from_dict(dict(
        work_dir=str(work_dir), experiment_name=work_dir.name, launcher='none',
        train_dataloader=dict(
            batch_size=4, num_workers=0, persistent_workers=False,
            dataset=dict(data_root=str(WHOLEBODY), ann_file='annotations/wholebody.json',
                         data_prefix=dict(img='images/'), indices=4)),
        train_cfg=dict(max_epochs=1, val_interval=10), param_scheduler=[]))
    cfg.train_dataloader.dataset.pipeline = pipeline
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.norm_cfg.type = 'BN'
    cfg.visualizer.name = work_dir.name
    return cfg


@pytest.mark.skipif(not HAS_MMDET, reason="RTMPose's backbone and data pipeline are mmdet's")
@pytest.mark.skipif(not WHOLEBODY.is_dir(), reason='MMSKD_TEST_DATA has no coco_wholebody_tiny')
def test_both_stages_take_a_real_step_with_133_keypoints(tmp_path):
    import torch
    from mmengine.registry import MODELS
    from mmengine.runner import Runner
    with DefaultScope.overwrite_default_scope('mmpose'):
        teacher = MODELS.build(load_config(teacher_of(STAGES[0]).config).model)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'rtmpose-l.pth')

    for name, keys in zip(STAGES, ({'loss_kpt', 'loss_feature', 'loss_logit'}, {'loss_logit'})):
        cfg = four_images(load_config(str(ROOT / name)), tmp_path / name[:9])
        hook = cfg.custom_hooks[-1]
        if 's1' in name:
            hook.teacher.checkpoint = str(tmp_path / 'rtmpose-l.pth')
        else:
            hook.checkpoint = str(tmp_path / 'dwpose_s1' / 'epoch_1.pth')
        runner = Runner.from_cfg(cfg)
        runner.train()
        assert runner.iter == 1 and runner.model.head.out_channels == 133
        losses = {key: runner.message_hub.get_scalar(f'train/{key}').current() for key in keys}
        assert all(0 < value < 1e5 for value in losses.values()), losses
        saved = load_checkpoint_safely(str(tmp_path / name[:9] / 'epoch_1.pth'))['state_dict']
        with DefaultScope.overwrite_default_scope('mmpose'):
            stock = MODELS.build(load_config(stock_of(name)).model)
        stock.load_state_dict(saved, strict=True)
