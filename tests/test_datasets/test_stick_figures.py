import json

import numpy as np
import pytest

from mmskd.datasets import drawing, stick_figures, write_demo_data
from mmskd.datasets.stick_figures import KEYPOINTS
from mmskd.optional import HAS_MMPOSE

needs_mmpose = pytest.mark.skipif(not HAS_MMPOSE, reason='mmpose is not installed')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('figures') / 'data'
    write_demo_data(folder, 'stick-figures', train=30, val=5, seed=1)
    return folder


def load(data_dir):
    return json.loads((data_dir / 'annotations' / 'train.json').read_text())


def keypoints(item):
    return np.array(item['keypoints']).reshape(-1, 3)


def test_coco_json_is_valid(data_dir):
    COCO = pytest.importorskip('pycocotools.coco').COCO
    coco = COCO(str(data_dir / 'annotations' / 'train.json'))
    assert len(coco.getImgIds()) == 30
    category, = coco.loadCats(coco.getCatIds())
    assert category['keypoints'] == list(KEYPOINTS)
    # 1-based, and everything but the head is linked
    assert set(np.ravel(category['skeleton'])) == set(range(2, len(KEYPOINTS) + 1))
    for item in coco.loadAnns(coco.getAnnIds()):
        assert len(item['keypoints']) == 3 * len(KEYPOINTS)
        assert item['num_keypoints'] == (keypoints(item)[:, 2] > 0).sum()
        x, y, w, h = item['bbox']
        assert 0 < item['area'] < w * h


def test_keypoints_are_inside_the_box_and_the_box_inside_the_image(data_dir):
    for item in load(data_dir)['annotations']:
        x, y, w, h = item['bbox']
        points = keypoints(item)
        assert (points[:, 0] > x).all() and (points[:, 0] < x + w).all()
        assert (points[:, 1] > y).all() and (points[:, 1] < y + h).all()
        assert x >= 0 and y >= 0
        assert x + w <= drawing.WIDTH and y + h <= drawing.HEIGHT


def test_some_joints_are_hidden_and_some_images_empty(data_dir):
    content = load(data_dir)
    v = np.concatenate([keypoints(item)[:, 2] for item in content['annotations']])
    assert set(v) == {1, 2}
    assert 0.01 < (v == 1).mean() < 0.3
    assert len({item['image_id'] for item in content['annotations']}) < len(content['images'])


def test_box_and_visibility_follow_the_drawn_masks():
    joints, torso = stick_figures.place(
        np.random.default_rng(0), stick_figures.sample_joints(np.random.default_rng(1)))
    mask = stick_figures.figure_mask(joints, torso)
    hidden = mask.copy()
    column, row = (joints[3] * drawing.SCALE).astype(int)
    hidden[row - 3:row + 4, column - 3:column + 4] = False
    item = stick_figures.annotation(joints, mask, hidden)
    assert item['keypoints'][2::3] == [2, 2, 2, 1] + [2] * 9
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y, w, h = np.array(item['bbox']) * drawing.SCALE
    assert (x, y, x + w, y + h) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_left_is_on_the_right_of_an_upright_figure():
    for seed in range(20):
        joints = dict(zip(KEYPOINTS, stick_figures.sample_joints(np.random.default_rng(seed))))
        assert joints['left_shoulder'][0] > joints['right_shoulder'][0]
        assert joints['left_hip'][0] > joints['right_hip'][0]
        assert joints['head'][1] < joints['left_hip'][1]


def test_flip_pairs_are_consistent():
    assert stick_figures.swapped('head') == ''
    for name in KEYPOINTS[1:]:
        assert stick_figures.swapped(name) in KEYPOINTS
        assert stick_figures.swapped(stick_figures.swapped(name)) == name
    mirrored = {
        frozenset(stick_figures.swapped(end) for end in link)
        for link in stick_figures.SKELETON
    }
    assert mirrored == {frozenset(link) for link in stick_figures.SKELETON}


@needs_mmpose
@pytest.mark.parametrize('data_mode', ['topdown', 'bottomup'])
def test_dataset_loads_through_mmpose(data_dir, data_mode):
    from mmengine.registry import DATASETS
    dataset = DATASETS.build(
        dict(
            type='mmskd.StickFigureDataset',
            data_root=str(data_dir),
            ann_file='annotations/train.json',
            data_prefix=dict(img='train/'),
            data_mode=data_mode,
            pipeline=[dict(type='mmpose.LoadImage')]))
    meta = dataset.metainfo
    assert meta['num_keypoints'] == len(KEYPOINTS) == len(meta['sigmas'])
    assert meta['flip_indices'] == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11]
    assert meta['skeleton_links'] == list(stick_figures.LINKS)

    content = load(data_dir)
    annotations = content['annotations']
    with_figures = {item['image_id'] for item in annotations}
    assert len(dataset) == len(annotations if data_mode == 'topdown' else with_figures)
    sample = dataset[0]
    assert sample['img'].shape == (drawing.HEIGHT, drawing.WIDTH, 3)
    assert np.allclose(sample['keypoints'][0], keypoints(annotations[0])[:, :2])
    assert sum(len(sample['keypoints']) for sample in dataset) == len(annotations)


@needs_mmpose
def test_a_mirrored_figure_is_still_a_figure(data_dir):
    """After mmpose's flip the left shoulder is again on the right of the image."""
    from mmengine.registry import DATASETS
    dataset = DATASETS.build(
        dict(
            type='mmskd.StickFigureDataset',
            data_root=str(data_dir),
            ann_file='annotations/train.json',
            data_prefix=dict(img='train/'),
            pipeline=[
                dict(type='mmpose.LoadImage'),
                dict(type='mmpose.GetBBoxCenterScale'),
                dict(type='mmpose.RandomFlip', prob=1.0)
            ]))
    left, right = KEYPOINTS.index('left_shoulder'), KEYPOINTS.index('right_shoulder')
    for sample in dataset:
        assert sample['flip']
        assert sample['keypoints'][0, left, 0] > sample['keypoints'][0, right, 0]
