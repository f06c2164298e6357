"""Teachers from files: what is built, what it knows of its answers, where its config is."""
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmskd.errors import UsageError
from mmskd.models.heads import TaughtHead, choose_heads
from mmskd.models.teachers import freeze
from mmskd.models.teachers.fixed import build_teacher, resolve_teacher_config
from mmskd.models.teachers.metainfo import answer_names, metainfo_of_checkpoint, metainfo_of_config
from mmskd.models.teachers.probe import probe_features
from mmskd.models.teachers.question import check_teacher
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

if HAS_MMPOSE:
    from tests.support import pose_runs

needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')


def taught(student):
    return [TaughtHead(adapter) for adapter in choose_heads(student)]


# ------------------------------------------------------------------ names of the answers


@pytest.fixture(scope='module')
def fourteen(tmp_path_factory):
    """Teachers on AIC and on CrowdPose: 14 keypoints, as the stock configs have them, on a small
    backbone. The checkpoints do not say on what they were trained."""
    import mmpose.models  # noqa: F401
    folder, found = tmp_path_factory.mktemp('fourteen'), {}
    small = pose_runs.model('heatmap')
    small['head'].update(out_channels=14)
    for data in ('aic', 'crowdpose'):
        base = (f'mmpose::body_2d_keypoint/topdown_heatmap/{data}/'
                f'td-hm_hrnet-w32_8xb64-210e_{data}-256x192.py')
        config = folder / f'{data}.py'
        config.write_text(f'_base_ = {base!r}\nmodel = {dict(small, _delete_=True)!r}\n')
        with DefaultScope.overwrite_default_scope('mmpose'):
            state = MODELS.build(Config.fromfile(str(config)).model).state_dict()
        torch.save(dict(state_dict=state), folder / f'{data}.pth')
        found[data] = dict(config=str(config), checkpoint=str(folder / f'{data}.pth'))
    return found


@needs_mmpose
def test_keypoints_of_aic_and_crowdpose_are_not_each_others(fourteen):
    student = build_teacher(**fourteen['aic'])
    teacher = build_teacher(**fourteen['crowdpose'])
    assert len(answer_names(teacher.dataset_meta, True)) == 14
    heads = taught(student)
    check_teacher(student, build_teacher(**fourteen['aic']), heads)
    with pytest.raises(UsageError, match="number 0 is 'right_shoulder' in the student, "
                                         "'left_shoulder' in the teacher"):
        check_teacher(student, teacher, heads)


@needs_mmpose
def test_a_checkpoint_knows_better_than_a_config(fourteen, tmp_path):
    checkpoint = torch.load(fourteen['aic']['checkpoint'], weights_only=True)
    checkpoint['meta'] = dict(dataset_meta=dict(keypoint_id2name={0: 'nose', 1: 'tail'}))
    torch.save(checkpoint, tmp_path / 'x.pth')
    teacher = build_teacher(fourteen['aic']['config'], str(tmp_path / 'x.pth'))
    assert answer_names(teacher.dataset_meta, True) == ['nose', 'tail']


@pytest.mark.parametrize('meta,names', [
    (dict(dataset_meta=dict(classes=('a', 'b'))), ['a', 'b']),
    (dict(dataset_meta=dict(CLASSES=['a'])), ['a']),  # of the first MMDetection 3
    (dict(CLASSES=('a', 'b')), ['a', 'b']),  # of MMDetection 2
    (dict(mmpose_version='0.29.0'), None),
    ({}, None),
])
def test_what_a_checkpoint_says(meta, names):
    assert answer_names(metainfo_of_checkpoint(meta), False) == names


CATS = dict(type='CocoDataset', ann_file='gone.json', metainfo=dict(classes=('cat', 'lynx')))
COCO17 = dict(type='mmpose.CocoDataset', ann_file='gone.json')


@needs_mmdet
@pytest.mark.parametrize('loader', ['train_dataloader', 'test_dataloader'])
@pytest.mark.parametrize('wrap', [
    lambda data: data,
    lambda data: dict(type='RepeatDataset', times=2, dataset=data),
    lambda data: dict(type='MultiImageMixDataset', pipeline=[], dataset=data),
    lambda data: dict(type='ConcatDataset', datasets=[data, dict(data, metainfo={})]),
], ids=['plain', 'repeated', 'mixed', 'concatenated'])
def test_what_a_config_says_of_classes(loader, wrap):
    """Without reading the data, which need not be here."""
    cfg = Config({loader: dict(dataset=wrap(CATS))})
    assert answer_names(metainfo_of_config(cfg, 'mmdet'), False) == ['cat', 'lynx']


@needs_mmpose
@pytest.mark.parametrize('dataset,count', [
    (COCO17, 17),
    (dict(COCO17, metainfo=dict(from_file='configs/_base_/datasets/aic.py')), 14),
    (dict(type='CombinedDataset', datasets=[COCO17],
          metainfo=dict(from_file='configs/_base_/datasets/coco_wholebody.py')), 133),
    (dict(type='RepeatDataset', times=2, dataset=COCO17), 17),
])
def test_what_a_config_says_of_keypoints(dataset, count):
    import mmpose.datasets  # noqa: F401
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    assert len(answer_names(metainfo_of_config(cfg, 'mmpose'), True)) == count


@needs_mmpose
@pytest.mark.parametrize('dataset', [
    dict(COCO17, metainfo=dict(from_file='gone.py')), dict(type='NoSuchDataset'), dict(a=1)])
def test_names_that_cannot_be_told_are_none(dataset):
    for loaders in (dict(train_dataloader=dict(dataset=dataset)), {}, dict(train_dataloader=None)):
        assert metainfo_of_config(Config(loaders), 'mmpose') == {}


# ------------------------------------------------------------------ where the config is


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / 'beside').mkdir()
    for place in ('beside/teacher.py', 'teacher.py', 'other.py'):
        (tmp_path / place).write_text('')
    monkeypatch.chdir(tmp_path)
    found = {name: resolve_teacher_config(dict(config=name), 'beside')
             for name in ('teacher.py', 'other.py', 'gone.py', 'mmpose::x/teacher.py')}
    assert found == {
        'teacher.py': str(tmp_path / 'beside' / 'teacher.py'),
        'other.py': str(tmp_path / 'other.py'), 'gone.py': 'gone.py',
        'mmpose::x/teacher.py': 'mmpose::x/teacher.py'}
    assert resolve_teacher_config(dict(config=found['teacher.py'])) == found['teacher.py']
    assert resolve_teacher_config(dict(config='teacher.py')) == str(tmp_path / 'teacher.py')


@needs_mmpose
def test_a_dumped_config_finds_its_teacher(fourteen, tmp_path):
    """It lies in the work dir, where no relative path leads to the teacher."""
    folder = os.path.dirname(fourteen['aic']['config'])
    run = Config(dict(custom_hooks=[dict(teacher=dict(fourteen['aic'], config='aic.py'))]))
    with pytest.raises(FileNotFoundError, match='no config file aic.py'):
        build_teacher(**run.custom_hooks[0].teacher, folder=str(tmp_path))
    run.custom_hooks[0].teacher.config = resolve_teacher_config(
        run.custom_hooks[0].teacher, folder)
    run.dump(str(tmp_path / 'run.py'))
    again = Config.fromfile(str(tmp_path / 'run.py'))
    teacher = build_teacher(**again.custom_hooks[0].teacher, folder=str(tmp_path))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


# ------------------------------------------------------------------ teachers of other kinds


class ReturnsNone(nn.Module):
    """As LD's and LAD's detectors do."""

    def train(self, mode=True):
        super().train(mode)


def test_a_model_whose_eval_returns_nothing_is_frozen():
    model = ReturnsNone()
    model.layer = nn.Sequential(nn.Linear(1, 1))
    assert freeze(model) is model
    assert not model.layer.training and not model.layer[0].weight.requires_grad


class Oracle(nn.Module):
    """A pose estimator of a user's own that computes its answer without a parameter."""

    class Head(nn.Module):

        def forward(self, features):
            return features[-1].mean(1, keepdim=True).repeat(1, len(pose_runs.KEYPOINTS), 1, 1)

    def __init__(self):
        super().__init__()
        self.backbone = nn.AvgPool2d(4)
        self.head = self.Head()

    def extract_feat(self, images):
        return self.backbone(images),


@needs_mmpose
def test_a_teacher_without_parameters():
    import mmpose.models  # noqa: F401
    with DefaultScope.overwrite_default_scope('mmpose'):
        student = MODELS.build(pose_runs.model('heatmap')).double()
    teacher = freeze(Oracle())
    check_teacher(student, teacher, taught(student))
    assert probe_features(teacher, like=student)[0].dtype is torch.float64
