"""Whether the annotations that a config names are there, and know what the config asks of them.

MMDetection looks categories up by their names and leaves out what it does not find, without a word;
MMPose takes the number of keypoints from a file of its own. So this looks before anything is built.
"""
import json
import logging
import mmap
import os
import warnings
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmskd.config import metrics_of, project_of
from mmskd.errors import UsageError

CATEGORIES_AT_MOST = 1 << 22  # bytes of a file


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Look at the annotations that a config names before anything is built.

    Args:
        cfg (Config): A config.
        splits (sequence[str]): Any of ``'train'``, ``'val'``, ``'test'``.

    Raises:
        UsageError: If a file is not there; if a detector's data set asks for classes that the file
            does not have, or two files number them in different orders; if MMPose's description of
            keypoints cannot be read; if a metric has the annotations of other images.
    """
    detects = project_of(cfg) == 'mmdet'
    labels: Dict[str, List[str]] = {}
    for split in splits:
        files = []
        for dataset in data_sets(cfg.get(f'{split}_dataloader') or {}):
            path = os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
            if dataset.get('backend_args') or '://' in path:
                continue
            _require_file(path, dataset, split)
            files.append(path)
            if detects:
                _check_classes(dataset, path, split, labels)
            else:
                _check_keypoints(dataset, split)
        _check_measured(cfg, split, files)


def data_sets(node: Any) -> Iterator[dict]:
    """Every data set with annotations in a dataloader, within whatever wraps it."""
    if isinstance(node, dict):
        if isinstance(node.get('ann_file'), str) and node['ann_file']:
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from data_sets(child)


def _require_file(path: str, dataset: dict, split: str) -> None:
    if os.path.exists(path):
        return
    where = (dataset.get('data_root') or '').rstrip('/') or os.path.dirname(path)
    folder = os.path.dirname(where)
    make = f'mkdir -p {folder} && ' if folder and not os.path.isdir(folder) else ''
    raise UsageError(f'the config reads {path} ({split}), which is not there; put the data set '
                     f'there, or link it: {make}ln -s /path/to/the/data {where}')


# Classes of detectors ----------------------------------------------------------------------------


def _check_classes(dataset: dict, path: str, split: str, labels: Dict[str, List[str]]) -> None:
    """Of a data set in COCO's format; ``labels`` has those of the files that were looked at."""
    key = f'{split}_dataloader: metainfo.classes'
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and not os.path.isfile(classes):
        raise UsageError(f'{key} is the text {classes!r}, and neither a file nor several names; '
                         f'one class is written ({classes!r}, ), with a comma')
    kind = _numbered_by_name(dataset)
    names = category_names(path) if kind else None
    if kind is None or names is None:
        return
    classes = kind.METAINFO.get('classes') if classes is None else classes
    if not isinstance(classes, (list, tuple)) or not classes:
        return
    missing = [str(name) for name in classes if name not in names]
    if missing:
        raise UsageError(
            f'{key} has {", ".join(missing[:3])}{" and others" * (len(missing) > 3)}, and {path} '
            f'has no such category, but {", ".join(names[:20])}{", ..." * (len(names) > 20)}: '
            'objects would be left out, and the labels of others moved')
    numbered = [name for name in names if name in classes]  # in the order of the file
    other, first = next(iter(labels.items()), (path, numbered))
    if numbered != first:
        raise UsageError(
            f'{split}_dataloader: {path} numbers the classes {", ".join(numbered)}, and {other} '
            f'{", ".join(first)}: labels are numbered in the order of the categories in each '
            'file; bring them into the same order')
    if numbered != list(classes) and path not in labels:
        print_log(f'{key}: {path} has the categories in another order, {", ".join(numbered)}: '
                  'MMDetection numbers labels by the file, and shows them by the names of '
                  'metainfo.classes', 'current', logging.WARNING)
    labels[path] = numbered


def _numbered_by_name(dataset: dict) -> Any:
    """The class of a data set if that looks categories up as ``mmdet.CocoDataset`` does."""
    from mmdet.datasets import CocoDataset
    kind: Any = dataset.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry('mmdet') as registry:
            kind = registry.get(kind)
    is_coco = isinstance(kind, type) and issubclass(kind, CocoDataset)
    return kind if is_coco and kind.load_data_list is CocoDataset.load_data_list else None


def category_names(path: str) -> Optional[List[str]]:
    """The names of the categories in a file of COCO's format, in their order there.

    The rest of the file, which may be large, is not parsed.

    Args:
        path (str): A json file.

    Returns:
        list[str], optional: None if there are none to be found.
    """
    key = b'"categories"'
    with open(path, 'rb') as file:
        if not os.path.getsize(path):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(key)
            while start >= 0:
                after = content[start + len(key):start + len(key) + CATEGORIES_AT_MOST]
                names = _names_at(after.decode(errors='ignore').lstrip().removeprefix(':').lstrip())
                if names is not None:
                    return names
                start = content.find(key, start + 1)
    return None


def _names_at(text: str) -> Optional[List[str]]:
    try:
        return [category['name'] for category in json.JSONDecoder().raw_decode(text)[0]]
    except (ValueError, TypeError, KeyError):  # it is something else that is called so
        return None


# Keypoints ---------------------------------------------------------------------------------------


def _check_keypoints(dataset: dict, split: str) -> None:
    """Of a data set whose keypoints the config describes itself."""
    given = dataset.get('metainfo') or {}
    if not {'from_file', 'keypoint_info'}.intersection(given):
        return
    from mmpose.datasets.datasets.utils import parse_pose_metainfo
    where = f'{split}_dataloader: metainfo {given.get("from_file", "")}'.rstrip()
    try:
        with warnings.catch_warnings():  # that MMPose looked for the file in its own folder
            warnings.simplefilter('ignore')
            metainfo = parse_pose_metainfo(dict(given))
    except FileNotFoundError:
        raise
    except KeyError as error:
        raise UsageError(f'{where} cannot be read: there is no keypoint or entry {error}; `swap` '
                         'and `link` name keypoints') from error
    except Exception as error:  # the file is a program
        raise UsageError(f'{where} cannot be read: {type(error).__name__}: {error}') from error
    number = metainfo['num_keypoints']
    for key, name in dict(sigmas='sigmas', dataset_keypoint_weights='joint_weights').items():
        if len(metainfo[key]) not in (0, number):
            raise UsageError(f'{where}: {name} has {len(metainfo[key])} values, for '
                             f'{number} keypoints')


# Metrics -----------------------------------------------------------------------------------------


def _check_measured(cfg: Config, split: str, files: Sequence[str]) -> None:
    """Whether metrics with an annotation file of their own have the images of the data set.

    Where there are several, each may have metrics of its own.
    """
    if len(set(files)) != 1:
        return
    paths = [metric.get('ann_file') for metric in metrics_of(cfg.get(f'{split}_evaluator'))]
    others = dict.fromkeys(path for path in paths if isinstance(path, str) and os.path.isfile(path)
                           and os.path.realpath(path) != os.path.realpath(files[0]))
    images = _images(files[0]) if others else set()
    for path in others:
        known = _images(path)
        strange = images - known
        if strange and known:
            number, name = min(strange, key=str)
            raise UsageError(
                f'{split}_evaluator: ann_file={path} has no image {name} with the id '
                f'{number}, which {split}_dataloader reads from {files[0]}; give both the same')


def _images(path: str) -> 'set[Tuple[Any, str]]':
    if not path.endswith('.json'):
        return set()
    try:
        with open(path) as file:
            return {(image['id'], os.path.basename(image['file_name']))
                    for image in json.load(file)['images']}
    except (ValueError, TypeError, KeyError):  # of another format
        return set()
