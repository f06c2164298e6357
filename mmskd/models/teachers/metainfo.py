"""What a trained model calls its outputs: classes or keypoints, in their order."""
import logging
import warnings
from typing import Any, Dict, List, Mapping, Optional

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmskd.errors import UsageError

POSE_KEYS = {'from_file', 'keypoint_info'}  # of MMPose's metainfo, before it is parsed


def metainfo_of_checkpoint(meta: Mapping[str, Any]) -> Dict[str, Any]:
    """What a checkpoint says about the data that it was trained on.

    Args:
        meta (Mapping): The ``meta`` of a checkpoint.

    Returns:
        dict: As ``dataset.metainfo``; of MMDetection 2.x only the classes; empty where it is not
        said.
    """
    metainfo = meta.get('dataset_meta')
    if isinstance(metainfo, Mapping):
        return {str(key): value for key, value in metainfo.items()}
    return dict(classes=meta['CLASSES']) if meta.get('CLASSES') else {}


def metainfo_of_config(cfg: Config, scope: str) -> Dict[str, Any]:
    """What a config says about the data that its model is trained on; the data are not read.

    Args:
        cfg (Config): A config of a training or a test.
        scope (str): Whose data set classes it names, 'mmdet' or 'mmpose'.

    Returns:
        dict: As ``dataset.metainfo``; empty where it cannot be told, for example because the file
        that ``metainfo`` names is not here.
    """
    for split in ('train', 'val', 'test'):
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if not dataset:
            continue
        try:
            with DATASETS.switch_scope_and_registry(scope) as registry:
                return dict(_metainfo(dataset, registry))
        except Exception as error:  # of any data set's own class
            print_log(f'Distillation: the names of the classes or keypoints of the teacher cannot '
                      f'be read from {split}_dataloader of its config: {error}', 'current',
                      logging.DEBUG)
    return {}


def _metainfo(dataset: Mapping[str, Any], registry: Any) -> Mapping[str, Any]:
    """That of a data set's config; a wrapper has that of the first one in it."""
    given = dataset.get('metainfo')
    if given and POSE_KEYS.intersection(given):
        return parse_pose_metainfo(given)
    inner = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
    if inner and not given:
        return _metainfo(inner, registry)
    kind = dataset['type']
    kind = registry.get(kind) if isinstance(kind, str) else kind
    return kind._load_metainfo(given)


def given_metainfo(owner: str, given: Any) -> Dict[str, Any]:
    """What a config says of the keypoints of a model that does not say it itself.

    Args:
        owner (str): Whose option ``metainfo`` it is, for messages.
        given (dict | str, optional): As MMPose's ``metainfo``: ``dict(from_file=...)`` or with
            ``keypoint_info``; or that file, as 'configs/_base_/datasets/coco.py', which is looked
            for in MMPose's own folder, too.

    Raises:
        UsageError: If it is something else, or there is no such file.
    """
    if given is None:
        return {}
    if isinstance(given, str):
        given = dict(from_file=given)
    if not isinstance(given, Mapping) or not POSE_KEYS.intersection(given):
        raise UsageError(f'{owner}: metainfo must be a file as configs/_base_/datasets/coco.py, or '
                         f'dict(keypoint_info=...), got {given!r}')
    try:
        return dict(parse_pose_metainfo(given))
    except (OSError, KeyError, AssertionError) as error:
        raise UsageError(f'{owner}: metainfo {given} cannot be read: {error}') from error


def parse_pose_metainfo(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """MMPose's metainfo of a data set, of its description in a config."""
    from mmpose.datasets.datasets.utils import parse_pose_metainfo as parse
    with warnings.catch_warnings():  # that MMPose looked for the file in its own folder
        warnings.simplefilter('ignore')
        return parse(dict(given))


def answer_names(metainfo: Optional[Mapping[str, Any]],
                 keypoints: bool) -> Optional[List[str]]:
    """The names of a model's outputs.

    Args:
        metainfo (Mapping, optional): Of a data set.
        keypoints (bool): Whether the model places keypoints; else it names classes.

    Returns:
        list[str], optional: In the order of the outputs. None if ``metainfo`` does not say.
    """
    metainfo = metainfo or {}
    if keypoints:
        by_id = metainfo.get('keypoint_id2name') or {
            index: name for name, index in (metainfo.get('keypoint_name2id') or {}).items()}
        names = [by_id[index] for index in sorted(by_id, key=int)]  # '10' in a file that was JSON
    else:
        classes = metainfo.get('classes', metainfo.get('CLASSES'))
        names = [classes] if isinstance(classes, str) else list(() if classes is None else classes)
    return names if names and all(isinstance(name, str) for name in names) else None
