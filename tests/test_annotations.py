"""What a config asks of its annotations, and what they have."""
import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mmskd import annotations
from mmskd.annotations import category_names, check_data
from mmskd.errors import UsageError
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')
needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')


def write(path, names, images=(1, 2), **more):
    """A file in COCO's format, with these categories and images."""
    content = dict(
        info=dict(categories='of what is seen'), images=[dict(id=i, file_name=f'{i}.png')
                                                         for i in images],
        annotations=[], categories=[dict(id=10 + i, name=name, keypoints=['a', 'b'])
                                    for i, name in enumerate(names)], **more)
    Path(path).write_text(json.dumps(content, ensure_ascii=False))


def detector(classes=None, train='train.json', val='val.json', kind='CocoDataset', **cfg):
    metainfo = {} if classes is None else dict(metainfo=dict(classes=classes))
    data = {f'{split}_dataloader': dict(dataset=dict(type=kind, ann_file=path, **metainfo))
            for split, path in dict(train=train, val=val).items()}
    return Config(dict(default_scope='mmdet', **data, **cfg))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('train', 'val'):
        write(f'{name}.json', ['cat', 'dög', 'eel'])
    return tmp_path


def test_category_names(folder):
    assert category_names('train.json') == ['cat', 'dög', 'eel']
    Path('long.json').write_text('[' + '1, ' * 5_000_000 + '1]')
    assert category_names('long.json') is None
    Path('empty.json').write_text('')
    assert category_names('empty.json') is None


@needs_mmdet
@pytest.mark.parametrize('classes', [('cat', 'dög', 'eel'), ['eel'], None])
def test_classes_that_the_files_have(classes, folder):
    if classes is None:  # those of COCO
        from mmdet.datasets import CocoDataset
        for name in ('train', 'val'):
            write(f'{name}.json', CocoDataset.METAINFO['classes'])
    check_data(detector(classes), ['train', 'val'])


@needs_mmdet
@pytest.mark.parametrize('classes, message', [
    (('Cat', 'dög', 'eel'), 'train_dataloader: metainfo.classes has Cat, and train.json has no '
     'such category, but cat, dög, eel'),
    (('a', 'b', 'c', 'd'), 'has a, b, c and others'),
    (None, 'metainfo.classes has person'),
    (('cat'), r"is the text 'cat', .* is written \('cat', \), with a comma")])
def test_classes_that_they_do_not_have(classes, message, folder):
    with pytest.raises(UsageError, match=message):
        check_data(detector(classes), ['train', 'val'])


@needs_mmdet
def test_the_validation_is_looked_at_as_well(folder):
    write('val.json', ['cat', 'eel'])
    with pytest.raises(UsageError, match='val_dataloader: metainfo.classes has dög, and val.json'):
        check_data(detector(('cat', 'dög', 'eel')), ['train', 'val'])
    check_data(detector(('cat', 'dög', 'eel')), ['train'])


@needs_mmdet
def test_files_number_labels_alike(folder, monkeypatch):
    said = []
    monkeypatch.setattr(annotations, 'print_log', lambda line, *_: said.append(line))
    write('val.json', ['eel', 'cat', 'dög'])
    with pytest.raises(UsageError, match='val.json numbers the classes eel, cat, dög, and '
                                         'train.json cat, dög, eel'):
        check_data(detector(('cat', 'dög', 'eel')), ['train', 'val'])
    check_data(detector(('cat', 'eel'), val='train.json'), ['train', 'val'])
    assert not said
    check_data(detector(('eel', 'cat'), val='train.json'), ['train', 'val'])
    line, = said
    assert 'train.json has the categories in another order, cat, eel' in line


@needs_mmdet
def test_data_sets_that_number_labels_themselves_are_left_alone(folder):
    check_data(detector(('Cat', ), kind='LVISV1Dataset'), ['train', 'val'])
    check_data(detector(('Cat', ), kind='NobodysDataset'), ['train', 'val'])  # found when built


@needs_mmdet
def test_metrics_of_other_images(folder):
    classes = ('cat', 'dög', 'eel')
    write('other.json', classes, images=(2, 3))
    write('more.json', classes, images=(1, 2, 3))
    evaluator = [dict(type='CocoMetric', ann_file='other.json')]
    with pytest.raises(UsageError, match='val_evaluator: ann_file=other.json has no image 1.png '
                                         'with the id 1, which val_dataloader reads from val.json'):
        check_data(detector(classes, val_evaluator=evaluator), ['train', 'val'])
    for file in ('more.json', './val.json', 'gone.json'):
        evaluator[0]['ann_file'] = file
        check_data(detector(classes, val_evaluator=evaluator), ['train', 'val'])


@pytest.mark.parametrize('made', [False, True])
def test_a_link_can_be_typed_as_it_is_said(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if made:
        Path('data').mkdir()
    cfg = detector(train='data/coco/a.json')
    with pytest.raises(UsageError) as refusal:
        check_data(cfg, ['train'])
    line = str(refusal.value)
    assert line.endswith('ln -s /path/to/the/data data/coco')
    assert ('mkdir -p data && ' in line) is not made


POINTS = {i: dict(name=name, id=i, color=[0, 0, 0], type='', swap=swap)
          for i, (name, swap) in enumerate([('left', 'right'), ('right', 'left')])}


def pose(**metainfo):
    given = dict(dataset_name='x', keypoint_info=POINTS, skeleton_info={}, joint_weights=[1., 1.],
                 sigmas=[.1, .1])
    dataset = dict(type='CocoDataset', ann_file='train.json', metainfo={**given, **metainfo})
    return Config(dict(default_scope='mmpose', train_dataloader=dict(dataset=dataset)))


@needs_mmpose
@pytest.mark.parametrize('metainfo, message', [
    ({}, None),
    (dict(sigmas=[]), None),
    (dict(sigmas=[.1]), 'metainfo: sigmas has 1 values, for 2 keypoints'),
    (dict(joint_weights=[1.] * 3), 'joint_weights has 3 values'),
    (dict(skeleton_info={0: dict(link=('left', 'rihgt'), id=0, color=[0, 0, 0])}),
     "there is no keypoint or entry 'rihgt'"),
    (dict(keypoint_info=5), 'cannot be read: ')])
def test_descriptions_of_keypoints(metainfo, message, folder):
    if message is None:
        return check_data(pose(**metainfo), ['train'])
    with pytest.raises(UsageError, match=message):
        check_data(pose(**metainfo), ['train'])
