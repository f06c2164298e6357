"""What a teacher of keypoints has to say of itself, to teach a student with other ones."""
import math
from typing import Any, List, Mapping, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError

from ..distributions import Axis
from ..heads import choose_heads
from ..losses.softmax_call import is_simcc_loss
from .compiled import teacher_to_ask
from .crops import Images
from .probe import input_size

Answer = Union[Tensor, Tuple[Tensor, ...]]


class Answers(NamedTuple):
    """What a model's answers mean.

    Attributes:
        axes (tuple[Axis]): The bins of x and y (and z), or the columns and rows of heatmaps, in
            pixels of the model's own images.
        keypoints (int): How many.
        beta (float, optional): SimCC: the inverse temperature of the logits. Defaults to None:
            heatmaps.
        metainfo (Mapping): Of the data that the model is trained on, for the names of the keypoints
            (``keypoint_id2name``) and which are mirrored (``flip_indices``). Defaults to nothing.
    """
    axes: Tuple[Axis, ...]
    keypoints: int
    beta: Optional[float] = None
    metainfo: Mapping[str, Any] = {}

    @property
    def kind(self) -> str:
        """str: For messages."""
        return 'heatmaps' if self.beta is None else f'SimCC along {len(self.axes)} axes'


class PoseTeacher(nn.Module):
    """A model of any origin that places keypoints: three methods, and it teaches.

    Register a class of your own with ``mmskd.registry.MODELS`` and name it in the hook,
    ``teacher=dict(type='MyTeacher', ...)``.
    """

    def images(self) -> Images:
        """The images that it takes."""
        raise NotImplementedError

    def answers(self) -> Answers:
        """What its answers mean."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Answer:
        """Its answers on a batch of such images, (N, 3, height, width).

        Returns:
            Tensor | tuple[Tensor]: Heatmaps (N, K, H, W), or logits over the bins of each axis, (N,
            K, W) each.
        """
        raise NotImplementedError


class MMPoseTeacher(PoseTeacher):
    """A top-down estimator of MMPose with a SimCC or heatmap head.

    Args:
        model (nn.Module): The estimator.

    Raises:
        UsageError: By :meth:`answers`, if its codec makes no distributions over places; it says
            which.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.head = choose_heads(model)[0].name
        self._form = teacher_to_ask(model, None)

    @property
    def asked(self) -> nn.Module:
        """nn.Module: What computes the answers: the model, or its compiled form."""
        return self._form.model

    def ask_in(self, precision: Optional[str]) -> None:
        """Compute them in this precision from here on, see :class:`.compiled.CompiledTeacher`."""
        self._form = teacher_to_ask(self.model, precision)

    def images(self) -> Images:
        return images_of(self.model)

    def answers(self) -> Answers:
        return answers_of(self.model, 'teacher')

    def forward(self, images: Tensor) -> Answer:
        self._form.follow()
        return self._form.ask(self._answer, images)

    def answer_on(self, features: Any) -> Answer:
        """Its answers on the features of its backbone and neck: those of its last stage."""
        return stages(self.asked.get_submodule(self.head).forward(features))[-1]

    def _answer(self, images: Tensor) -> Answer:
        return self.answer_on(self.asked.extract_feat(images))


class HeadTeacher(PoseTeacher):
    """The head of a trained estimator, which answers on the student's own features.

    Args:
        model (nn.Module): The estimator; its backbone and neck are not used.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.whole = MMPoseTeacher(model)

    def images(self) -> Images:
        return self.whole.images()

    def answers(self) -> Answers:
        return self.whole.answers()

    def forward(self, images: Any) -> Answer:
        """Its answers on features: what comes out of the student's backbone and neck."""
        return self.whole.answer_on(images)


def images_of(model: nn.Module) -> Images:
    """The images that an estimator of MMPose takes.

    Its data preprocessor says what is subtracted and divided by. MMPose loads images in the order
    BGR, so they are RGB where the preprocessor swaps channels.
    """
    size = input_size(model)
    if size is None:
        raise UsageError(
            f'{type(model).__name__}: its head has no decoder with an input_size, so it is not '
            'known how large its images are')
    preprocessor = model.data_preprocessor
    swaps = bool(getattr(preprocessor, '_channel_conversion', False))
    values = [getattr(preprocessor, key, None) for key in ('mean', 'std')]
    mean, std = ([default] * 3 if value is None else value.flatten().tolist()
                 for value, default in zip(values, (0., 1.)))
    return Images(size, mean, std, swaps)


def answers_of(model: nn.Module, side: str) -> Answers:
    """What the answers of the head of an estimator of MMPose mean.

    Args:
        model (nn.Module): The estimator.
        side (str): 'student' or 'teacher', for messages.

    Raises:
        UsageError: If they are no distributions over places; it says why.
    """
    adapter = choose_heads(model)[0]
    head, outer = adapter.head, model.head
    if adapter.at_places:
        raise UsageError(
            f'the {side}\'s {adapter} lays its bins around the boxes that it predicts: only a '
            'model of the same family answers about these, with the same keypoints in the same '
            'order. Give one such teacher, without keypoints, flip and weight_by')
    codec = getattr(head, 'decoder', None) or getattr(outer, 'decoder', None)
    loss = next(iter(adapter.target_losses().values()), None)
    kind = type(codec).__name__
    if loss is not None and is_simcc_loss(loss) and hasattr(codec, 'simcc_split_ratio'):
        return Answers(_simcc_axes(codec, loss), head.out_channels, float(loss.beta),
                       getattr(model, 'dataset_meta', None) or {})
    if kind in ('MSRAHeatmap', 'UDPHeatmap') and getattr(codec, 'heatmap_type',
                                                         'gaussian') == 'gaussian':
        return Answers(_heatmap_axes(codec), head.out_channels, None,
                       getattr(model, 'dataset_meta', None) or {})
    raise UsageError(
        f'the {side}\'s {adapter} has the codec {kind}, whose answers are not brought to other '
        'bins: only SimCCLabel, MSRAHeatmap and UDPHeatmap (gaussian) describe one bump around '
        'each keypoint. Take a teacher with the same codec and input size as the student')


def _heatmap_axes(codec: Any) -> Tuple[Axis, ...]:
    """Where columns and rows are, by what the codec encodes."""
    udp = type(codec).__name__ == 'UDPHeatmap'
    axes = []
    for pixels, cells in zip(codec.input_size, codec.heatmap_size):
        step = (pixels - 1) / (cells - 1) if udp else pixels / cells
        axes.append(Axis(int(cells), step, 0., (codec.sigma * step)**2))
    return tuple(axes)


def _simcc_axes(codec: Any, loss: nn.Module) -> Tuple[Axis, ...]:
    ratio = codec.simcc_split_ratio
    widths = codec.sigma if len(codec.sigma) == len(codec.input_size) else [codec.sigma[0]] * 3
    axes = [
        Axis(int(round(pixels * ratio)), 1 / ratio, 0.,
             _label_variance(codec, loss, float(sigma)) / ratio**2)
        for pixels, sigma in zip(codec.input_size, widths)
    ]
    if len(axes) == 3 and hasattr(codec, 'z_range'):  # in metres from the root, not in pixels
        axes[2] = axes[2].mapped(2 * codec.z_range / codec.input_size[2], -codec.z_range)
    return tuple(axes)


def _label_variance(codec: Any, loss: nn.Module, sigma: float) -> float:
    """Of the bump that the loss makes of a label, in bins squared, by its curvature at the summit.

    With ``label_softmax`` a Gaussian ``exp(-d^2 / 2 sigma^2)`` becomes the exponential of a
    multiple of it, whose summit is as narrow as a Gaussian of variance ``sigma^2 / label_beta``.
    """
    if getattr(codec, 'smoothing_type', 'gaussian') == 'standard':
        return 0.
    if not loss.label_softmax:
        return sigma**2
    height = 1 / (sigma * math.sqrt(2 * math.pi)) if codec.normalize else 1.
    return sigma**2 / (loss.label_beta * height)


def confidence(answer: Answer, answers: Answers) -> Tensor:
    """How sure a model is of each keypoint, from 0 to 1.

    Of a heatmap the height of its summit. Of SimCC the probability of the likeliest bin, less where
    it is lower than that of a label: the lesser of the two axes'.

    Returns:
        Tensor: (N, K).
    """
    if answers.beta is None:
        return answer.float().flatten(2).amax(-1).clamp(0, 1)
    found = []
    for logits, axis in zip(answer, answers.axes):
        summit = (logits.float() * answers.beta).softmax(-1).amax(-1)
        variance = axis.variance or (abs(axis.step) * 2)**2
        found.append(summit * math.sqrt(2 * math.pi * variance) / abs(axis.step))
    return torch.stack(found).amin(0).clamp(max=1)


def stages(output: Any) -> List[Any]:
    """The outputs of a head's stages.

    A tuple is one output (SimCC's x and y), a list is several.
    """
    return list(output) if isinstance(output, list) else [output]
