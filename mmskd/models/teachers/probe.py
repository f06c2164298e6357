"""What a model makes of a blank image: the shapes of its features and of its heads' outputs."""
from contextlib import contextmanager
from itertools import chain
from typing import Any, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mmskd.errors import UsageError

from ..heads import is_pose_estimator

PROBE_SIZES = (256, 512)  # pixels; a detector that has features of the first needs no second


def feature_maps(model: nn.Module, output: Any) -> List[Tensor]:
    """The maps to compare, of what a model's neck (or its backbone, if it has none) returned.

    The last one of a pose estimator, as in DWPose; those of all levels of a detector.
    """
    if isinstance(output, Tensor):
        return [output]
    maps = [item for item in output if isinstance(item, (Tensor, list, tuple))]
    if is_pose_estimator(model):
        return feature_maps(model, maps[-1])
    return [level for item in maps for level in feature_maps(model, item)]


def probe_features(model: nn.Module, like: Optional[nn.Module] = None) -> List[Tensor]:
    """The feature maps of a blank image of the size, channels and precision that the model is for.

    Args:
        model (nn.Module): A detector or pose estimator.
        like (nn.Module, optional): The student whose images it sees. Says which maps are compared,
            and the size, device and precision of the image where the model has no codec and no
            parameters that do. Defaults to None: 256 pixels, the CPU and single precision.

    Raises:
        UsageError: If the model has no features of an image.
    """
    return feature_maps(model if like is None else like, probe(model, like))


def probe(model: nn.Module, like: Optional[nn.Module] = None) -> Any:
    """What ``model.extract_feat`` returns for such an image. See :func:`probe_features`."""
    channels = image_channels(model, like)
    *smaller, last = _sizes(model, like)
    for size in smaller:
        try:
            return _extract(model, _blank(model, channels, size, like))
        except UsageError:  # SSD's last map is a pixel of an image that is large enough
            continue
    return _extract(model, _blank(model, channels, last, like))


def output_shapes(model: nn.Module, head: str, features: Any) -> List[Tuple[int, ...]]:
    """The shapes of the outputs of a pose estimator's head for its features, without the batch."""
    with torch.no_grad(), _eval_mode(model):
        output = model.get_submodule(head).forward(features)
    return [tuple(item.shape[1:]) for item in _tensors(output)]


def stage_count(model: nn.Module, head: str) -> int:
    """How many answers a pose estimator's head gives, one after the other."""
    with torch.no_grad(), _eval_mode(model):
        output = model.get_submodule(head).forward(probe(model))
    return len(output) if isinstance(output, list) else 1


def image_channels(model: nn.Module, like: Optional[nn.Module] = None) -> int:
    """How many channels the images have that a model takes.

    The first convolution that an image meets says it. What lies before may rearrange the image: in
    front of YOLOX's it has four times the channels (and a quarter of the places).

    Returns:
        int: 3 if the model has no convolution.
    """
    handles = [module.register_forward_pre_hook(_stop_at_convolution)
               for module in model.modules() if isinstance(module, _ConvNd)]
    try:
        _extract(model, _blank(model, 3, _sizes(model, like)[-1], like))
    except _FirstConvolution as first:
        return 3 * first.takes // first.given
    finally:
        for handle in handles:
            handle.remove()
    return 3


def input_size(model: nn.Module) -> Optional[Tuple[int, int]]:
    """The size (width, height) of the images that a pose estimator is for."""
    head = getattr(model, 'head', None)
    codec = getattr(head, 'decoder', None)
    codec = getattr(codec, 'keypoint_codec', codec)  # of DSNT's two
    size = getattr(codec, 'input_size', getattr(head, 'input_size', None))
    # RTMW3D's has the depth behind
    return None if size is None else (int(size[0]), int(size[1]))


class _FirstConvolution(Exception):
    """An image has met a convolution."""

    def __init__(self, takes: int, given: int):
        super().__init__(takes, given)
        self.takes, self.given = takes, given


def _stop_at_convolution(module: nn.Module, args: tuple) -> None:
    raise _FirstConvolution(module.in_channels, args[0].size(1))


def _sizes(model: nn.Module, like: Optional[nn.Module]) -> List[Tuple[int, int]]:
    size = input_size(model) or (input_size(like) if like is not None else None)
    return [(side, side) for side in PROBE_SIZES] if size is None else [size]


def _blank(model: nn.Module, channels: int, size: Tuple[int, int],
           like: Optional[nn.Module]) -> Tensor:
    tensors = chain(*(chain(source.parameters(), source.buffers())
                      for source in (model, like) if source is not None))
    of_that_kind = next((item for item in tensors if item.is_floating_point()), torch.zeros(()))
    width, height = size
    return of_that_kind.new_zeros(1, channels, height, width)


def _extract(model: nn.Module, image: Tensor) -> Any:
    if not hasattr(model, 'extract_feat'):
        raise UsageError(f'{type(model).__name__} has no extract_feat, as models of MMDetection '
                         'and MMPose have: its features cannot be compared')
    try:
        with torch.no_grad(), _eval_mode(model):
            return model.extract_feat(image)
    except _FirstConvolution:
        raise
    except Exception as error:
        raise UsageError(f'{type(model).__name__} has no features of a blank image of '
                         f'{tuple(image.shape)}: {error}') from error


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; then each module is in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _tensors(output: Any) -> List[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in _tensors(item)]
