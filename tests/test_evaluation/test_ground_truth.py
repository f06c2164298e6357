"""What is on the images, for data sets as MMDetection reads them."""
import json

import numpy as np
import pytest

pytest.importorskip('mmdet')
from mmengine.registry import DATASETS, DefaultScope  # noqa: E402

from mmskd.errors import UsageError  # noqa: E402
from mmskd.evaluation.ground_truth import (
    image_files,
    label_names,
    objects_from_annotations,
    objects_of,  # noqa: E402
    read_annotations,
)

# Neither sorted nor in the order of the config's classes
CATEGORIES = [dict(id=7, name='cat'), dict(id=3, name='cell'), dict(id=5, name='car')]


def write(path, n_images=3, categories=CATEGORIES, first_id=0):
    """Annotations: on image i a cat, a crowd of cells, an ignored car and a sliver of a cat."""
    anns = []
    for i in range(n_images):
        for category, box, fields in (
                (7, [10 + i, 10, 20, 30], dict(area=123.)), (3, [40, 40, 50, 20], dict(iscrowd=1)),
                (5, [5, 60, 10, 10], dict(ignore=1)), (7, [1, 1, .5, 9], {})):
            anns.append(dict(dict(id=len(anns), image_id=first_id + i, category_id=category,
                                  bbox=box, area=box[2] * box[3], iscrowd=0), **fields))
    path.write_text(json.dumps(dict(
        images=[dict(id=first_id + i, file_name=f'{first_id + i}.jpg', width=100, height=100)
                for i in range(n_images)], annotations=anns, categories=categories)))
    return str(path)


def dataset(ann_file, kind='CocoDataset', classes=('cell', 'cat', 'car'), **kwargs):
    return dict(type=kind, ann_file=ann_file, data_prefix=dict(img='images/'), test_mode=True,
                metainfo=dict(classes=classes), pipeline=[], **kwargs)


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(cfg)


def test_a_coco_file_says_more_than_the_samples(tmp_path):
    data = build(dataset(write(tmp_path / 'a.json')))
    assert label_names(data) == ['cat', 'cell', 'car'], 'in the order of the file'
    assert data.metainfo['classes'] == ('cell', 'cat', 'car')
    objects = objects_of(data)
    assert len(data.get_data_info(0)['instances']) == 2, 'mmdet leaves two out'
    assert objects.images.tolist() == sorted([0, 1, 2] * 4)
    assert objects.labels.tolist() == [0, 1, 2, 0] * 3
    assert objects.ignored.tolist() == [False, True, True, False] * 3
    assert objects.crowds.tolist() == [False, True, False, False] * 3
    assert objects.areas[:4].tolist() == [123, 1000, 100, 4.5]
    np.testing.assert_allclose(objects.boxes[4], [11, 10, 31, 40])
    assert image_files(data) == ['images/0.jpg', 'images/1.jpg', 'images/2.jpg']


def test_only_the_classes_of_the_config(tmp_path):
    data = build(dataset(write(tmp_path / 'a.json'), classes=('car', 'cat')))
    assert label_names(data) == ['cat', 'car']
    assert objects_of(data).labels.tolist() == [0, 1, 0] * 3


def test_files_that_repeat_ids_are_kept_apart(tmp_path):
    files = write(tmp_path / 'a.json'), write(tmp_path / 'b.json', n_images=2)
    both = build(dict(type='ConcatDataset', datasets=[dataset(path) for path in files]))
    objects = objects_of(both)
    assert objects.images.max() == 4 and np.bincount(objects.images).tolist() == [4] * 5
    apart = [objects_of(build(dataset(path))) for path in files]
    np.testing.assert_array_equal(objects.boxes, np.concatenate([of.boxes for of in apart]))
    # The same file twice
    twice = build(dict(type='ConcatDataset', datasets=[dataset(files[0])] * 2))
    assert np.bincount(objects_of(twice).images).tolist() == [4] * 6
    repeated = build(dict(type='RepeatDataset', dataset=dataset(files[0]), times=2))
    assert np.bincount(objects_of(repeated).images).tolist() == [4] * 6
    assert label_names(repeated) == label_names(twice) == ['cat', 'cell', 'car']


def test_files_that_number_their_classes_differently_are_refused(tmp_path):
    files = write(tmp_path / 'a.json'), write(tmp_path / 'b.json', categories=CATEGORIES[::-1])
    both = build(dict(type='ConcatDataset', datasets=[dataset(path) for path in files]))
    with pytest.raises(UsageError, match='b.json numbers its classes'):
        label_names(both)


def test_a_data_set_that_sorts_its_categories(tmp_path):
    """Labels follow what the data set does, not only the file."""
    path = write(tmp_path / 'a.json')
    data = build(dataset(path, 'Objects365V1Dataset'))
    assert label_names(data) == ['cell', 'car', 'cat'], 'by id'
    assert objects_of(data).labels.tolist() == [2, 0, 1, 2] * 3


def test_a_data_set_that_is_not_of_a_coco_file(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'val.txt').write_text('000001\n')
    (tmp_path / 'Annotations' / '000001.xml').write_text(
        '<annotation><size><width>100</width><height>90</height></size>' + ''.join(
            f'<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>11</xmin>'
            '<ymin>21</ymin><xmax>31</xmax><ymax>51</ymax></bndbox></object>'
            for name, difficult in (('dog', 0), ('cat', 1))) + '</annotation>')
    data = build(dict(type='VOCDataset', data_root=str(tmp_path), ann_file='val.txt',
                      data_prefix=dict(sub_data_root=''), test_mode=True, pipeline=[]))
    objects = objects_of(data)
    names = label_names(data)
    assert [names[label] for label in objects.labels] == ['dog', 'cat']
    assert objects.crowds.tolist() == [False, True] and objects.images.tolist() == [0, 0]


def test_an_image_that_is_asked_for_twice(tmp_path):
    data = read_annotations(write(tmp_path / 'a.json'))
    objects = objects_from_annotations(data, [1, 0, 1], {7: 0})
    assert sorted(objects.images.tolist()) == [0, 0, 1, 1, 2, 2]


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / 'x.json'
    for text in ('[]', '{"images": []}'):
        path.write_text(text)
        with pytest.raises(UsageError, match='x.json is no annotation file in COCO format'):
            read_annotations(str(path))
