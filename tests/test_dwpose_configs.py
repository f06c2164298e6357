"""Every DWPose config is a stock config of MMPose and one hook more, and its pair fits together."""
import copy
import json
import os
import random
import re
import warnings
from functools import cache
from pathlib import Path

import mmengine
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmskd.annotations import check_data, data_sets
from mmskd.checkpoint import load_checkpoint_safely
from mmskd.config import config_root, find_config, load_config
from mmskd.engine.schedule import shorten_schedule
from mmskd.optional import HAS_MMDET

pytest.importorskip('mmpose')

ROOT = Path(__file__).resolve().parents[1] / 'configs' / 'dwpose'
STAGE1 = sorted(path.name for path in ROOT.glob('dwpose_s1_*.py'))
STAGE2 = sorted(path.name for path in ROOT.glob('dwpose_s2_*.py'))
SHARE = 0.2  # of the schedule of stage 1, in stage 2
UBODY_VAL = dict(data_root='data/', ann_file='coco/annotations/coco_wholebody_val_v1.0.json')
SIMCC_LOSSES = [dict(type='mmskd.FeatureDistillLoss', weight=7e-5),
                dict(type='mmskd.SimCCDistillLoss', weight=0.1)]
DATA = os.environ.get('MMSKD_TEST_DATA')
HEATMAP_LOSSES = [dict(type='mmskd.HeatmapDistillLoss', weight=1.0)]


@cache
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


@cache
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
    if '_coco-ubody-' in name:
        for split in ('val', 'test'):
            stock[f'{split}_dataloader']['dataset'].update(UBODY_VAL)
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


@pytest.mark.skipif(not HAS_MMDET, reason="RTMPose's hooks are mmdet's")
@pytest.mark.parametrize('name', STAGE2)
def test_stage2_is_what_the_flag_makes_of_stage1(name):
    """``--head-distill CHECKPOINT``, written down."""
    base = base_of(name)
    made, cfg = copy.deepcopy(read(base) if '::' in base else ours(base)), plain(ours(name))
    made.custom_hooks = [hook for hook in made.custom_hooks if hook.type != 'mmskd.DistillHook']
    said = shorten_schedule(made, SHARE)
    assert 'not scaled' not in said
    *others, distill = cfg.pop('custom_hooks')
    assert others == plain(made.pop('custom_hooks'))
    assert distill == dict(type='mmskd.HeadDistillHook', checkpoint=distill['checkpoint'])
    made = plain(made)
    if '::' in base:
        made['optim_wrapper']['clip_grad'] = dict(max_norm=1., norm_type=2)
    for key in ('max_epochs', 'stage2_num_epochs'):  # variables of the files, which nobody reads
        assert cfg.pop(key) == made.pop(key) * SHARE
    assert cfg == made
    epochs, checkpoint = cfg['train_cfg']['max_epochs'], cfg['default_hooks']['checkpoint']
    assert f'-{epochs}e_' in name
    assert epochs % checkpoint['interval'] == epochs % cfg['train_cfg']['val_interval'] == 0


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


# ------------------------------------------------------------------------------------ the data


SCENES = ('Magic_show', 'Entertainment', 'ConductMusic', 'Online_class', 'TalkShow', 'Speech',
          'Fitness', 'Interview', 'Olympic', 'TVShow', 'Singing', 'SignLanguage', 'Movie',
          'LiveVlog', 'VideoConference')
WHERE = {  # as docs/dwpose.md has it
    'coco': [f'coco/annotations/person_keypoints_{split}2017.json' for split in ('train', 'val')],
    'coco-wholebody': [
        f'coco/annotations/coco_wholebody_{split}_v1.0.json' for split in ('train', 'val')],
    'ubody': [f'UBody/annotations/{scene}/train_annotations.json' for scene in SCENES],
}
NOT_RTMW = [name for name in STAGE1 + STAGE2 if 'cocktail14' not in name]


def files_of(name, split):
    """Annotations, folders of images and boxes that a config reads, from the working folder."""
    found = []
    for dataset in data_sets(ours(name)[f'{split}_dataloader']):
        root = dataset.get('data_root') or ''
        found.append((os.path.join(root, dataset['ann_file']),
                      os.path.join(root, dataset['data_prefix']['img']), dataset.get('bbox_file')))
    return found


@pytest.mark.parametrize('name', NOT_RTMW)
def test_data_lies_where_the_docs_say(name, tmp_path, monkeypatch):
    kinds = ['coco-wholebody'] if 'wholebody' in name else ['coco']
    kinds += ['ubody'] if 'ubody' in name else []
    annotations = [f'data/{file}' for kind in kinds for file in WHERE[kind]]
    trained = files_of(name, 'train')
    assert {annotation for annotation, _, _ in trained} == {
        file for file in annotations if '_val' not in file}
    for annotation, images, _ in trained:
        assert images == ('data/UBody/images/' if 'UBody' in annotation else 'data/coco/train2017/')
    for split in ('val', 'test'):
        (annotation, images, boxes), = files_of(name, split)
        assert annotation in annotations and '_val' in annotation
        assert images == 'data/coco/val2017/'
        # ViTPose's and HRNet's configs are evaluated on detected boxes as well
        assert boxes == ('data/coco/person_detection_results/'
                         'COCO_val2017_detections_AP_H_56_person.json') or boxes is None
        assert ours(name)[f'{split}_evaluator'].ann_file == annotation
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='which is not there'):
        check_data(ours(name), ['train', 'val', 'test'])
    for file in annotations:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text('{}')
    check_data(ours(name), ['train', 'val', 'test'])


@pytest.mark.parametrize('name', [name for name in STAGE1 if 'cocktail14' in name])
def test_rtmws_data_lies_as_the_docs_say(name):
    """The annotations of MMPose's own layout, the images in two folders beside."""
    for annotation, images, _ in files_of(name, 'train') + files_of(name, 'val'):
        assert annotation.startswith('data/')
        assert images.startswith(('data/pose/', 'data/detection/coco/', 'data/interhand2.6m/'))


def pipelines_of(name):
    """Each pipeline that a config trains with, before and after the switch, of each set of data."""
    cfg = ours(name)
    dataset = cfg.train_dataloader.dataset
    after = [hook.switch_pipeline for hook in cfg.custom_hooks if 'switch_pipeline' in hook]
    for kind, own in parts_of(dict(dataset, pipeline=[])):
        for pipeline in (dataset.pipeline, *after):
            yield kind, own, pipeline, cfg.codec


def parts_of(dataset):
    """The kind of each set of data in one that combines them, and the steps it goes through."""
    if 'datasets' not in dataset:
        yield dataset['type'], list(dataset['pipeline'])
    for part in dataset.get('datasets', ()):
        for kind, own in parts_of(part):
            yield kind, [*own, *dataset['pipeline']]


def all_pipelines():
    """Those of all configs, each once."""
    found = {}
    for name in STAGE1 + STAGE2:
        for kind, own, pipeline, codec in pipelines_of(name):
            found.setdefault(json.dumps([kind, own, pipeline]), (name, kind, own, pipeline, codec))
    return list(found.values())


@cache
def parsed(file):
    from mmpose.datasets.datasets.utils import parse_pose_metainfo
    return parse_pose_metainfo(dict(from_file=file))


def pose_meta(metainfo):
    """What a data set, and then what combines it with others, writes into each sample."""
    meta = parsed(metainfo['from_file'])
    keys = ('upper_body_ids', 'lower_body_ids', 'flip_pairs', 'dataset_keypoint_weights',
            'flip_indices', 'skeleton_links', 'dataset_name', 'num_keypoints')
    return {key: meta[key] for key in keys if key in meta}


def generated_sample(kind, folder):
    """What a data set of that kind would read of a picture with one person."""
    import cv2
    from mmpose.registry import DATASETS
    image = np.random.default_rng(0).integers(1, 256, (160, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'image.png'), image)
    meta = pose_meta(DATASETS.get(kind).METAINFO)
    points = np.random.default_rng(1).uniform((30, 20), (90, 140), (1, meta['num_keypoints'], 2))
    visible = np.ones((1, meta['num_keypoints']), dtype=np.float32)
    return dict(
        img_id=1, id=1, img_path=str(folder / 'image.png'), bbox=np.array([[20., 10., 100., 150.]]),
        bbox_score=np.ones(1), iscrowd=0, area=11200., category_id=1,
        keypoints=points.astype(np.float32), keypoints_visible=visible,
        segmentation=None, raw_ann_info={}, **meta)


@pytest.mark.skipif(not HAS_MMDET, reason="RTMPose's backbone and data pipeline are mmdet's")
def test_every_pipeline_runs(tmp_path):
    """As it is, on a generated picture, with all that it needs installed."""
    from mmcv.transforms import Compose
    from mmpose.registry import DATASETS, TRANSFORMS
    from mmpose.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    albumentations = 0
    with DefaultScope.overwrite_default_scope('mmpose'):
        for name, kind, own, pipeline, codec in all_pipelines():
            np.random.seed(0), random.seed(0)
            sample = generated_sample(kind, tmp_path)
            sample = Compose([TRANSFORMS.build(step) for step in own])(sample)
            sample.update(pose_meta(ours(name).train_dataloader.dataset.get('metainfo') or
                                    DATASETS.get(kind).METAINFO))
            packed = Compose([TRANSFORMS.build(step) for step in pipeline])(sample)
            width, height = codec.input_size
            assert packed['inputs'].shape == (3, height, width), name
            points = packed['data_samples'].gt_instance_labels.keypoint_weights.shape[-1]
            assert points == ours(name).model.head.out_channels, name
            drops = any(step.type == 'Albumentation' for step in pipeline)
            assert drops == ('_rtm' in name), name
            albumentations += drops
    assert albumentations > 10


@pytest.mark.skipif(not HAS_MMDET, reason="RTMPose's backbone and data pipeline are mmdet's")
def test_albumentations_drops_out_what_rtmpose_says():
    """2.x would warn that it does not know these options, and drop out something else."""
    from mmpose.registry import TRANSFORMS
    step = next(step for step in ours(STAGES[0]).train_dataloader.dataset.pipeline
                if step.type == 'Albumentation')
    step = dict(step, type='mmpose.Albumentation')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', '.*not pixel-level.*')
        transform = TRANSFORMS.build(step)
    random.seed(0)
    for _ in range(20):
        hole = (transform(dict(img=np.full((256, 192, 3), 255, np.uint8)))['img'] == 0).all(-1)
        rows, columns = hole.any(1).sum() / 256, hole.any(0).sum() / 192
        assert 0.19 <= rows <= 0.41 and 0.19 <= columns <= 0.41, 'one hole of a fifth to two fifths'
        assert hole.sum() == hole.any(1).sum() * hole.any(0).sum()


# ------------------------------------------------------------------ a real step at full size


WHOLEBODY = Path(DATA or '', 'coco_wholebody_tiny')
STAGES = ('dwpose_s1_rtmpose-l_rtmpose-m_8xb64-270e_coco-wholebody-256x192.py',
          'dwpose_s2_rtmpose-m_8xb64-54e_coco-wholebody-256x192.py')


def four_images(cfg, work_dir):
    """A config that trains one step on the four images, from random weights and without a download.
    """
    cfg.merge_from_dict(dict(
        work_dir=str(work_dir), experiment_name=work_dir.name, launcher='none',
        train_dataloader=dict(
            batch_size=4, num_workers=0, persistent_workers=False,
            dataset=dict(data_root=str(WHOLEBODY), ann_file='annotations/wholebody.json',
                         data_prefix=dict(img='images/'), indices=4)),
        train_cfg=dict(max_epochs=1, val_interval=10), param_scheduler=[]))
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
