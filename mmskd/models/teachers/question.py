"""Whether a teacher was asked the student's question: the same images, places, classes, keypoints.

Shapes that agree say little. Anchors of another size, keypoints in another order, heatmaps of
another codec or classes of another alphabet have the shape of the student's, and another meaning.
What a setting means is compared by what it makes: the priors of a small grid, the target of a
keypoint.
"""
import logging
import random
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmskd.errors import UsageError

from ..heads import TaughtHead, is_detector, is_pose_estimator
from .metainfo import answer_names
from .mirror import NECK, ROOT, feature_links
from .probe import image_channels, input_size, output_shapes, probe, probe_features

HEAD_SETTINGS = {
    'out_channels': 'so many keypoints',
    'num_keypoints': 'so many keypoints',
    'simcc_split_ratio': 'so many bins a pixel',
    'num_classes': 'so many classes',
    'cls_out_channels': 'so many class scores',
    'fc_cls.out_features': 'so many class scores',
    'loss_cls.use_sigmoid': 'a sigmoid for each class',
    'num_base_priors': 'so many priors a place',
    'regress_ranges': 'objects of such sizes at each level',
    'reg_class_agnostic': 'class-agnostic boxes',
}
"""What a head is asked, by its attributes."""

BOX_SETTINGS = {
    'reg_max': 'so many bins of a distance to a side of the box',
    'norm_on_bbox': 'distances in units of the stride',
    'bbox_norm_type': 'distances in these units',
    'anchor_type': 'boxes from anchors or from points',
}
"""What a head is asked about boxes, beside its box coder."""

QUERY_SETTINGS = {
    'embed_dims': 'queries of so many numbers',
    'decoder.num_layers': 'so many decoder layers',
    'as_two_stage': 'queries from the encoder',
    'with_box_refine': 'boxes that are refined from layer to layer',
}
"""What a detector with queries asks its decoder, by its attributes."""


def check_teacher(student: nn.Module, teacher: nn.Module, heads: Sequence[TaughtHead], *,
                  metainfo: Optional[Mapping[str, Any]] = None) -> None:
    """Refuse a teacher that was asked another question than the student.

    What one side does not tell (a module of the user's own has no ``num_classes``, an old
    checkpoint no class names) is not compared; of names and codecs the log says so, at level DEBUG.

    Args:
        student (nn.Module): A detector, pose estimator or classifier.
        teacher (nn.Module): Of the same kind. Its ``dataset_meta``, which
            :func:`~mmskd.models.teachers.fixed.build_teacher` and the ``init_detector`` and
            ``init_model`` of OpenMMLab set, has the names of its classes or keypoints.
        heads (sequence[TaughtHead]): Heads of the student that learn from those of the same name (a
            classifier learns from the teacher's answer). Empty if features alone are compared: then
            only the images have to be the same.
        metainfo (Mapping, optional): ``dataset.metainfo`` of the student's training data. Defaults
            to None: the student's own ``dataset_meta``, if it has one.

    Raises:
        UsageError: Names what differs, on both sides.
    """
    _check_images(student, teacher)
    asks_modules = is_detector(student) or is_pose_estimator(student)
    if asks_modules:
        _check_modules(student, teacher, heads)
    theirs = dict(teacher.named_modules())
    for head in heads:
        other = theirs.get(head.name)
        if other is None:  # another classifier
            continue
        name = head.name or 'the model'
        _compare_settings(name, head.head, other, HEAD_SETTINGS)
        _compare_priors(name, head.head, other)
        if is_pose_estimator(student):
            _compare_codecs(head, _codec(head.head, student), _codec(other, teacher))
    if asks_modules:
        _check_answers(student, teacher, heads)
    check_names(heads, getattr(student, 'dataset_meta', None) if metainfo is None else metainfo,
                getattr(teacher, 'dataset_meta', None), is_pose_estimator(student))


def check_boxes(heads: Sequence[TaughtHead], teacher: nn.Module) -> None:
    """Refuse a teacher whose boxes are other numbers, or the same numbers other boxes.

    Args:
        heads (sequence[TaughtHead]): Heads of a detector that learn from those of the same name.
        teacher (nn.Module): As :func:`check_teacher` let it pass.

    Raises:
        UsageError: Names what differs, on both sides.
    """
    for head in heads:
        other = teacher.get_submodule(head.name)
        _compare(f'{head.name} is', type(head.head).__name__, type(other).__name__)
        _compare_settings(head.name, head.head, other, BOX_SETTINGS)
        _compare_coders(head.name, head.head, other)


def check_names(heads: Sequence[Any], student: Optional[Mapping[str, Any]],
                teacher: Optional[Mapping[str, Any]], keypoints: bool) -> None:
    """Refuse a teacher whose classes or keypoints are others, or in another order.

    Names describe a head only if there are as many of them as it has outputs: an RPN knows one
    class, whatever its data set has.

    Args:
        heads (sequence[TaughtHead]): Heads of the student that are taught.
        student (Mapping, optional): ``metainfo`` of its training data.
        teacher (Mapping, optional): The same of the teacher.
        keypoints (bool): Whether the heads place keypoints; else they name classes.

    Raises:
        UsageError: Names the first that differ.
    """
    what = 'keypoints' if keypoints else 'classes'
    sides = dict(student=answer_names(student, keypoints), teacher=answer_names(teacher, keypoints))
    for head in heads:
        outputs = getattr(head.head, 'out_channels' if keypoints else 'num_classes', None)
        unknown = [side for side, names in sides.items()
                   if names is None or outputs not in (None, len(names))]
        if unknown:
            print_log(f'Distillation: the names of the {what} of {head} are not known for the '
                      f'{" and the ".join(unknown)}, so they are not compared', 'current',
                      logging.DEBUG)
        else:
            _compare_names(str(head), what, sides['student'] or (), sides['teacher'] or ())


# ------------------------------------------------------------------ images


def _check_images(student: nn.Module, teacher: nn.Module) -> None:
    """The teacher sees the student's batch."""
    if all(hasattr(model, 'data_preprocessor') for model in (student, teacher)):
        _compare('data_preprocessor normalises', _normalisation(student), _normalisation(teacher))
    if all(hasattr(model, 'extract_feat') for model in (student, teacher)):
        _compare('the images have so many channels', image_channels(student),
                 image_channels(teacher, student))
    _compare_known('codec has the input size (width, height)', input_size(student),
                   input_size(teacher))


def _normalisation(model: nn.Module) -> Dict[str, Any]:
    preprocessor = model.data_preprocessor
    swaps = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'to_rgb', False))
    settings: Dict[str, Any] = dict(swaps_channels=bool(swaps))
    for name in ('mean', 'std'):
        value = getattr(preprocessor, name, None)
        if value is not None:
            settings[name] = [round(number, 4) for number in value.flatten().tolist()]
    return settings


# ------------------------------------------------------------------ modules


def _check_modules(student: nn.Module, teacher: nn.Module, heads: Sequence[TaughtHead]) -> None:
    """The teacher has what is asked, under the same name."""
    theirs = {name for name, _ in teacher.named_modules()}
    asked = [head.name for head in heads]
    if is_detector(student):
        asked = [*_links(student, heads), *asked]
    for name in asked:
        if name not in theirs:
            raise UsageError(f'the teacher ({type(teacher).__name__}) has no {name}, which the '
                             f'student ({type(student).__name__}) has: take one of the same family')


def _links(student: nn.Module, heads: Sequence[TaughtHead]) -> List[str]:
    return feature_links(student, [head.adapter for head in heads])


def _check_answers(student: nn.Module, teacher: nn.Module, heads: Sequence[TaughtHead]) -> None:
    """What leads to the answers is of the same size on both sides."""
    if is_pose_estimator(student) and heads:
        mine, theirs = probe(student), probe(teacher, student)
        for head in heads:
            if head.adapter.at_places:
                continue
            _compare(f'{head.name} predicts', output_shapes(student, head.name, mine),
                     output_shapes(teacher, head.name, theirs))
    elif set(_links(student, heads)) - {ROOT, NECK}:  # RoIs and queries look into these maps
        _compare_settings('the model', student, teacher, QUERY_SETTINGS)
        _compare('features are so large (height, width)', _map_sizes(probe_features(student)),
                 _map_sizes(probe_features(teacher, student)))


def _map_sizes(maps: Sequence[Tensor]) -> List[Tuple[int, ...]]:
    return [tuple(level.shape[-2:]) for level in maps]


# ------------------------------------------------------------------ heads


def _compare_settings(name: str, mine: Any, theirs: Any, settings: Mapping[str, str]) -> None:
    """Attributes of two heads or models."""
    for key, meaning in settings.items():
        _compare_known(f'{name} has {meaning}', _setting(mine, key), _setting(theirs, key))


def _setting(owner: Any, key: str) -> Any:
    try:
        return _plain(attrgetter(key)(owner))
    except AttributeError:
        return None


def _compare_priors(name: str, head: nn.Module, other: nn.Module) -> None:
    """Anchors and points of two dense heads, by where they put those of a small grid."""
    mine, theirs = _prior_generators(head), _prior_generators(other)
    if not (mine and theirs):
        return
    _compare(f'{name} has priors by the attributes', sorted(mine), sorted(theirs))
    for key, generator in mine.items():
        _compare(f'{name}.{key} has the strides', _plain(generator.strides),
                 _plain(theirs[key].strides))
        for stride, ours, others in zip(generator.strides, _priors(generator),
                                        _priors(theirs[key])):
            if ours.shape == others.shape and torch.allclose(ours, others):
                continue
            where = next((index for index, (row, rival) in enumerate(zip(ours, others))
                          if row.shape != rival.shape or not torch.allclose(row, rival)), 0)
            _compare(f'{name}.{key} puts prior {where} of stride {_plain(stride)} at',
                     _place(ours[where]), _place(others[where]))


def _prior_generators(head: nn.Module) -> Dict[str, Any]:
    """By attribute; most heads have one, some assign their targets by another."""
    return {key: value for key, value in vars(head).items() if hasattr(value, 'grid_priors')}


def _priors(generator: Any) -> List[Tensor]:
    """The priors of two by three places of each level."""
    return generator.grid_priors([(2, 3)] * len(generator.strides), device='cpu')


def _place(prior: Tensor) -> List[float]:
    return [round(float(value), 1) for value in prior]


def _compare_coders(name: str, head: nn.Module, other: nn.Module) -> None:
    """What the numbers of a box mean."""
    mine, theirs = getattr(head, 'bbox_coder', None), getattr(other, 'bbox_coder', None)
    if mine is not None and theirs is not None:
        _compare(f'{name}.bbox_coder is', _settings(mine), _settings(theirs))


def _codec(head: nn.Module, model: nn.Module) -> Any:
    """The codec of a head, or of the head around it."""
    outer = getattr(model, 'head', None)
    return getattr(head, 'decoder', None) or getattr(outer, 'decoder', None)


def _compare_codecs(head: TaughtHead, mine: Any, theirs: Any) -> None:
    """What a heatmap or a distribution over bins means, by what the codecs make of keypoints.

    Settings of decoding alone (DARK for SimCC, scores of visibility) may differ.
    """
    if mine is None or theirs is None:
        print_log(f'Distillation: {head.name} has no decoder on one side, so the codecs are not '
                  'compared', 'current', logging.DEBUG)
        return
    targets: List[Any] = [_encode(codec, head.head) for codec in (mine, theirs)]
    if None not in targets and _same_arrays(*targets):
        return
    ours, others = _settings(mine), _settings(theirs)
    differing = [key for key in {**ours, **others} if ours.get(key) != others.get(key)]
    if differing or None not in targets:
        keys = dict.fromkeys(['type', *differing])
        raise UsageError(_mismatch(f'{head.name} is trained to give the targets of the codec',
                                   {key: ours.get(key) for key in keys},
                                   {key: others.get(key) for key in keys}))


def _encode(codec: Any, head: nn.Module) -> Optional[Dict[str, np.ndarray]]:
    """The targets of some keypoints, or None if the codec asks for more than keypoints."""
    count = getattr(head, 'out_channels', None) or 1
    try:
        extent = np.asarray(codec.input_size, np.float32)
        keypoints = np.linspace(0.21, 0.83, count, dtype=np.float32)[None, :, None] * extent
        with _same_chance():
            targets = codec.encode(keypoints, np.ones((1, count), np.float32))
        return {key: value for key, value in targets.items() if isinstance(value, np.ndarray)}
    except Exception:  # of any codec, which may need boxes, cameras, a second hand
        return None


@contextmanager
def _same_chance() -> Iterator[None]:
    """Let a codec that draws numbers draw the same each time, and none of the training's."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _same_arrays(mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    return mine.keys() == theirs.keys() and all(
        value.shape == theirs[key].shape and np.allclose(value, theirs[key])
        for key, value in mine.items())


def _compare_names(head: str, what: str, mine: Sequence[str], theirs: Sequence[str]) -> None:
    if mine == theirs:
        return
    first = next((index for index, pair in enumerate(zip(mine, theirs)) if len(set(pair)) > 1),
                 min(len(mine), len(theirs)))
    sides = [names[first] if first < len(names) else 'nothing' for names in (mine, theirs)]
    reason = ('the same in another order' if sorted(mine) == sorted(theirs) else
              'others, or spelled in another way')
    raise UsageError(
        f'student and teacher do not go together: {head} has {what} which in the teacher are '
        f'{reason}: number {first} is {sides[0]!r} in the student, {sides[1]!r} in the teacher. '
        f'Take a teacher that was trained on the same {what}; if they mean the same, write the '
        "student's names into meta['dataset_meta'] of the teacher's checkpoint")


# ------------------------------------------------------------------ values


def _settings(item: Any) -> Dict[str, Any]:
    """The type of a codec or coder and its public attributes."""
    return dict(type=type(item).__name__,
                **{key: _plain(value) for key, value in vars(item).items() if key[0] != '_'})


def _plain(value: Any) -> Any:
    """A setting as something to compare and to print; a list is the tuple of the same."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _settings(value) if hasattr(value, '__dict__') else str(value)


def _compare_known(what: str, mine: Any, theirs: Any) -> None:
    """Compare what both sides tell."""
    if mine is not None and theirs is not None:
        _compare(what, mine, theirs)


def _compare(what: str, mine: Any, theirs: Any) -> None:
    if mine != theirs:
        raise UsageError(_mismatch(what, mine, theirs))


def _mismatch(what: str, mine: Any, theirs: Any) -> str:
    return (f'student and teacher do not go together: {what}: {mine} in the student, {theirs} in '
            'the teacher')
