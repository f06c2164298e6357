import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmskd.datasets import drawing, shapes, write_demo_data
from mmskd.optional import HAS_MMDET

needs_mmdet = pytest.mark.skipif(not HAS_MMDET, reason='mmdet is not installed')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes') / 'data'
    write_demo_data(folder, 'shapes', train=40, val=10, seed=3)
    return folder


def load(data_dir, split='train'):
    return json.loads((data_dir / 'annotations' / f'{split}.json').read_text())


def test_coco_json_is_valid(data_dir):
    COCO = pytest.importorskip('pycocotools.coco').COCO
    coco = COCO(str(data_dir / 'annotations' / 'train.json'))
    assert len(coco.getImgIds()) == 40
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(data_dir / 'train' / image['file_name']) as picture:
            assert picture.size == (image['width'], image['height'])
            assert picture.mode == 'RGB'
    for item in coco.loadAnns(coco.getAnnIds()):
        assert item['iscrowd'] == 0
        # The polygon as pycocotools fills it has the area and the box that are written
        mask = coco.annToMask(item)
        assert mask.sum() == pytest.approx(item['area'], rel=0.1)
        x, y, w, h = item['bbox']
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert np.allclose([columns[0], rows[0]], [x, y], atol=1.5)
        assert np.allclose([columns[-1] + 1, rows[-1] + 1], [x + w, y + h], atol=1.5)


def test_every_class_and_empty_images_are_there(data_dir):
    content = load(data_dir)
    count = Counter(item['category_id'] for item in content['annotations'])
    assert set(count) == {category['id'] for category in content['categories']} == {1, 2, 3, 4, 5}
    assert len({item['image_id'] for item in content['annotations']}) < len(content['images'])


def test_boxes_are_inside_and_tight_around_the_drawn_shape(data_dir):
    for item in load(data_dir)['annotations']:
        polygon = np.array(item['segmentation'][0]).reshape(-1, 2)
        drawn = drawing.mask_box(drawing.polygon_mask(polygon))
        assert np.allclose(drawn, item['bbox'], atol=2 / drawing.SCALE)
        x, y, w, h = item['bbox']
        assert x >= 0 and y >= 0
        assert x + w <= drawing.WIDTH + 0.01 and y + h <= drawing.HEIGHT + 0.01


def test_objects_overlap_but_stay_visible():
    overlaps = 0
    for seed in range(20):
        objects = shapes.sample_objects(np.random.default_rng(seed))
        masks = [drawing.polygon_mask(polygon) for _, polygon in objects]
        for i, mask in enumerate(masks):
            later = np.any(masks[i + 1:], axis=0) if masks[i + 1:] else np.zeros_like(mask)
            hidden = (mask & later).sum() / mask.sum()
            assert hidden <= 1 - shapes.MIN_VISIBLE
            overlaps += hidden > 0
    assert overlaps > 0


def radii(name):
    """Distances of the outline of a class from its centre, as a sorted array."""
    points = shapes.contour(*shapes.CLASSES[name])
    dense = np.concatenate([np.linspace(a, b, 20) for a, b in zip(points, np.roll(points, -1, 0))])
    return np.sort(np.linalg.norm(dense, axis=1))


@pytest.mark.parametrize('name', shapes.CLASSES)
def test_look_alikes_differ_in_geometry(name):
    for other in shapes.LOOK_ALIKES[name]:
        assert name in shapes.LOOK_ALIKES[other]
        # In units of the radius: one pixel or more for every size that is drawn
        assert np.abs(radii(name) - radii(other)).max() * shapes.RADII[0] > 1


def test_class_geometry():
    assert np.ptp(radii('circle')) < 0.01
    assert radii('square').max() / radii('square').min() == pytest.approx(np.sqrt(2), rel=0.01)
    assert radii('ellipse').min() / radii('ellipse').max() == pytest.approx(0.5, rel=0.01)
    for geometry in shapes.CLASSES.values():
        assert shapes.polygon_area(shapes.contour(*geometry)) == pytest.approx(np.pi)


def test_labels_between_look_alikes_are_as_likely_as_their_place(monkeypatch):
    monkeypatch.setattr(shapes, 'IN_BETWEEN_SHARE', 1.0)
    rng = np.random.default_rng(0)
    # Roundness runs from 0 (square) to 0.4 (rounded square), without squeeze in between
    place = {}
    for name in ('square', 'rounded_square'):
        samples = np.array([shapes.sample_geometry(rng, name) for _ in range(20000)])
        between = (samples[:, 1] == 1) & (samples[:, 0] > 0) & (samples[:, 0] < 0.4)
        place[name] = np.histogram(samples[between, 0] / 0.4, bins=5, range=(0, 1))[0]
    share = place['square'] / (place['square'] + place['rounded_square'])
    assert np.allclose(share, [0.9, 0.7, 0.5, 0.3, 0.1], atol=0.04)


@needs_mmdet
def test_dataset_loads_through_mmdet(data_dir):
    from mmengine.registry import DATASETS
    dataset = DATASETS.build(
        dict(
            type='mmskd.ShapesDataset',
            data_root=str(data_dir),
            ann_file='annotations/train.json',
            data_prefix=dict(img='train/'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='mmdet.PackDetInputs')
            ]))
    assert len(dataset) == 40
    assert dataset.metainfo['classes'] == tuple(shapes.CLASSES)
    assert len(dataset.metainfo['palette']) == len(shapes.CLASSES)
    content = load(data_dir)
    total = 0
    for _, sample in zip(content['images'], dataset):
        truth = sample['data_samples'].gt_instances
        assert sample['inputs'].shape == (3, drawing.HEIGHT, drawing.WIDTH)
        assert len(truth.masks) == len(truth.bboxes) == len(truth.labels)
        total += len(truth.labels)
    assert total == len(content['annotations'])
