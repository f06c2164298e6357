"""A teacher that does not change: a model built from a config, with the weights of a checkpoint."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmskd.config import load_config, project_of
from mmskd.checkpoint import load_weights
from ..heads import TaughtHead, is_detector, is_pose_estimator
from .frozen import freeze
from .mirror import feature_links

PROBE_SIZE = 256  # pixels; of the image that shows which features a detector has


def build_teacher(config: str, checkpoint: str, folder: Optional[str] = None) -> nn.Module:
    """Build a frozen model in eval mode.

    Args:
        config (str): Config file, or ``package::path`` of one that comes with a package. A relative
            path is looked for in ``folder`` first, then in the working directory.
        checkpoint (str): Its weights, a file or URL.
        folder (str, optional): Where the config that names the teacher is, as for ``_base_``.

    Raises:
        FileNotFoundError, ModuleNotFoundError: If there is no such config or checkpoint.
        ValueError: If the config has no model, or the checkpoint is that of another.
    """
    beside = Path(folder or '.') / config
    cfg = load_config(str(beside) if '::' not in config and beside.is_file() else config)
    if 'model' not in cfg:
        raise ValueError(f'teacher.config: {config} has no model')
    # As Runner has it: the settings of mmpretrain's data stand outside of the model
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or project_of(cfg)):
        model = MODELS.build(cfg.model)
    load_weights(model, checkpoint)
    return freeze(model)


def check_teacher(student: nn.Module, teacher: nn.Module, heads: Sequence[TaughtHead]) -> None:
    """Refuse a teacher that was asked another question than the student.

    Args:
        student (nn.Module): A detector or pose estimator.
        teacher (nn.Module): Of the same kind.
        heads (sequence[TaughtHead]): Heads of the student that learn from those of the same name.

    Raises:
        ValueError: Names what differs, on both sides.
    """
    _compare('data_preprocessor normalises', _normalisation(student), _normalisation(teacher))
    if is_pose_estimator(student):
        _compare('codec has the input size (width, height)', _input_size(student),
                 _input_size(teacher))
    if not (is_pose_estimator(student) or is_detector(student)):
        return
    theirs = dict(teacher.named_modules())
    links = feature_links(student, [head.adapter for head in heads])
    missing = [name for name in [*links, *(head.name for head in heads)] if name not in theirs]
    if missing and is_detector(student):
        raise ValueError(f'the teacher ({type(teacher).__name__}) has no {missing[0]}, which the '
                         f'student ({type(student).__name__}) has: take one of the same family')
    for head in heads:
        other = theirs.get(head.name)
        if other is None:
            raise ValueError(f'the teacher ({type(teacher).__name__}) has no {head.name}')
        for key, meaning in QUESTION.items():
            _compare(f'{head.name} has {meaning}', getattr(head.head, key, None),
                     getattr(other, key, None))
    if is_pose_estimator(student) and heads:
        _compare(f'{heads[0].name} predicts', *(_output_shapes(model, heads[0].name)
                                                for model in (student, teacher)))


QUESTION = {
    'out_channels': 'so many keypoints',
    'simcc_split_ratio': 'so many bins a pixel',
    'num_classes': 'so many classes',
    'cls_out_channels': 'so many class scores',
    'num_base_priors': 'so many priors a place',
    'reg_class_agnostic': 'class-agnostic boxes',
}
"""What a head is asked, by its attributes."""


def feature_maps(model: nn.Module, output: Any) -> List[Tensor]:
    """The maps to compare, of what :func:`~mmskd.models.teachers.pose_mirror.feature_module` returned.

    The last one of a pose estimator, as in DWPose; those of all levels of a detector.
    """
    if isinstance(output, Tensor):
        return [output]
    maps = [item for item in output if isinstance(item, (Tensor, list, tuple))]
    if is_pose_estimator(model):
        return feature_maps(model, maps[-1])
    return [level for item in maps for level in feature_maps(model, item)]


def probe_features(model: nn.Module) -> List[Tensor]:
    """The feature maps of a blank image of the size that the model is for."""
    return feature_maps(model, _probe(model))


def _output_shapes(model: nn.Module, head: str) -> Any:
    """The shapes of a pose head's outputs for a blank image."""
    features = _probe(model)
    with torch.no_grad(), _EvalMode(model):
        output = model.get_submodule(head).forward(features)
    outputs = output if isinstance(output, (list, tuple)) else [output]
    return [tuple(item.shape[1:]) for item in outputs]


def _probe(model: nn.Module) -> Any:
    width, height = _input_size(model) or (PROBE_SIZE, PROBE_SIZE)
    image = next(model.parameters()).new_zeros(1, 3, height, width)
    with torch.no_grad(), _EvalMode(model):
        return model.extract_feat(image)


class _EvalMode:
    """Eval mode for a while; then each module is in its own again."""

    def __init__(self, model: nn.Module):
        self._model = model

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()

    def __exit__(self, *exception) -> None:
        for module, training in self._modes:
            module.training = training


def _input_size(model: nn.Module) -> Optional[Tuple[int, int]]:
    decoder = getattr(getattr(model, 'head', None), 'decoder', None)
    size = getattr(decoder, 'input_size', None)
    return None if size is None else tuple(int(side) for side in size)


def _normalisation(model: nn.Module) -> Optional[Dict[str, Any]]:
    preprocessor = getattr(model, 'data_preprocessor', None)
    if not getattr(preprocessor, '_enable_normalize', False):
        return dict(channels=getattr(preprocessor, '_channel_conversion', None))
    mean, std = (getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std'))
    return dict(mean=mean, std=std, swaps_channels=preprocessor._channel_conversion)


def _compare(what: str, mine: Any, theirs: Any) -> None:
    if mine != theirs:
        raise ValueError(f'student and teacher do not go together: {what}: {mine} in the student, '
                         f'{theirs} in the teacher')
