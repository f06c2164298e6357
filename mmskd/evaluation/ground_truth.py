"""What is on the images of a data set: objects, names and files, whatever reads them.

An annotation file says more than MMDetection's data sets pass on: they leave out objects marked
``ignore``, and number labels in the order of the file, whatever the order of the config's classes.
So where there is a file in COCO's format, it is the file that counts here.
"""
import json
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.fileio import get_text

from mmskd.errors import UsageError

from .matching import Objects


def read_annotations(ann_file: str) -> Dict[str, list]:
    """A file in COCO's format: ``images``, ``annotations`` and ``categories``.

    Raises:
        UsageError: If it is none.
    """
    data = json.loads(get_text(ann_file))
    if not isinstance(data, dict) or 'images' not in data or 'categories' not in data:
        raise UsageError(f'{ann_file} is no annotation file in COCO format: it lacks images or '
                         'categories')
    return dict(data, annotations=data.get('annotations', []))


def labels_of(data: Dict[str, list], classes: Sequence[str]) -> Tuple[Dict[Any, int], List[str]]:
    """How labels are numbered, as MMDetection does it: in the order of the file.

    Args:
        data (dict): As :func:`read_annotations` returned.
        classes (sequence[str]): Names that the model knows; empty for all.

    Returns:
        tuple[dict, list[str]]: Label of each category id, and name of each label.
    """
    known = [category for category in data['categories']
             if not classes or category['name'] in classes]
    return ({category['id']: label for label, category in enumerate(known)},
            [category['name'] for category in known])


def objects_from_annotations(data: Dict[str, list], image_ids: Sequence,
                             label_of: Dict[Any, int]) -> Objects:
    """The objects on some images; ``images`` is the position in ``image_ids``.

    An image that is there repeatedly has its objects at each of its positions.
    """
    positions: Dict[Any, List[int]] = {}
    for i, image_id in enumerate(image_ids):
        positions.setdefault(image_id, []).append(i)
    where, found = [], []
    for ann in data['annotations']:
        if ann['category_id'] in label_of:
            where += positions.get(ann['image_id'], [])
            found += [ann] * len(positions.get(ann['image_id'], []))
    boxes = np.array([ann['bbox'] for ann in found], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # x, y, width, height -> x1, y1, x2, y2
    return Objects.of(
        boxes, [label_of[ann['category_id']] for ann in found], where,
        ignored=[bool(ann.get('ignore')) for ann in found],
        crowds=[bool(ann.get('iscrowd')) for ann in found],
        areas=[ann.get('area') or ann['bbox'][2] * ann['bbox'][3] for ann in found])


def objects_from_instances(instances: Sequence[Sequence[dict]]) -> Objects:
    """The objects of data samples, a list for each image.

    As in MMDetection's CocoMetric, what a data set flagged to be ignored was a crowd.
    """
    found = [(i, instance) for i, one in enumerate(instances) for instance in one]
    return Objects.of([instance['bbox'] for _, instance in found],
                      [instance['bbox_label'] for _, instance in found], [i for i, _ in found],
                      crowds=[bool(instance.get('ignore_flag')) for _, instance in found])


def objects_of(dataset) -> Objects:
    """All objects of a data set of MMDetection; ``images`` is the position in the data set."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    leaves: Dict[int, list] = {}
    for i, leaf in enumerate(_leaves(dataset)):
        leaves.setdefault(id(leaf), [leaf, []])[1].append(i)
    parts = [objects_from_instances([])]
    for leaf, positions in leaves.values():
        if _coco_file(leaf) is None:
            objects = objects_from_instances([infos[i].get('instances', []) for i in positions])
        else:
            objects = objects_from_annotations(
                read_annotations(leaf.ann_file), [infos[i]['img_id'] for i in positions],
                leaf.cat2label)
        parts.append(objects._replace(images=np.array(positions)[objects.images]))
    return Objects(*map(np.concatenate, zip(*parts)))


def label_names(dataset) -> List[str]:
    """The name of each label, in the order in which the data set numbers them.

    Raises:
        UsageError: If the parts of a data set number them differently.
    """
    names = {path: _names(leaf, path)
             for leaf, path in ((leaf, _coco_file(leaf)) for leaf in parts_of(dataset))}
    first, *others = names.values()
    for path, other in names.items():
        if other != first:
            raise UsageError(f'{path} numbers its classes {other}, and another file of the same '
                             f'data set {first}: labels mean different things')
    return first


def parts_of(dataset) -> List:
    """The data sets within whatever wraps them."""
    if hasattr(dataset, 'datasets'):
        return [part for one in dataset.datasets for part in parts_of(one)]
    return parts_of(dataset.dataset) if hasattr(dataset, 'dataset') else [dataset]


def image_files(dataset) -> List[str]:
    """The file of each image (of poses, of the image of each instance), as the data set has it."""
    return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]


def _names(leaf, path: Optional[str]) -> List[str]:
    if path is None:
        return list(leaf.metainfo.get('classes', []))
    names = {category['id']: category['name'] for category in read_annotations(path)['categories']}
    return [names[category] for category in leaf.cat2label]  # numbered in this order


def _coco_file(leaf) -> Optional[str]:
    """The annotation file of a data set, if that is one in COCO's format."""
    path = getattr(leaf, 'ann_file', None)
    return path if hasattr(leaf, 'cat2label') and str(path).endswith('.json') else None


def _leaves(dataset) -> Iterator:
    """For each position the data set that reads it, within whatever wraps that."""
    for i in range(len(dataset)):
        leaf, index = dataset, i
        while hasattr(leaf, '_get_ori_dataset_idx'):
            where = leaf._get_ori_dataset_idx(index)
            leaf, index = (leaf.dataset, where) if isinstance(where, (int, np.integer)) else (
                leaf.datasets[where[0]], where[1])
        yield leaf
