"""What a teacher adds to the student's losses.

DWPose's feature and logit losses, and the class logits'.

A loss of features gets the features of both. A loss of predictions is asked each time that one of
the head's own losses is called, and gets that call (:class:`LossCall`).
"""
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmskd.errors import UsageError
from mmskd.options import Options
from mmskd.registry import MODELS

from ..pairing import map_leaves, student_side, teacher_side
from .functional import density_kl, feature_l2, heatmap_l2, simcc_kl
from .soft_target import at_least_float32, soft_form
from .softmax_call import is_simcc_loss

Maps = Union[Tensor, Sequence[Tensor]]


class LossCall(NamedTuple):
    """A call of one of the head's own losses with a prediction that carries the teacher's.

    Attributes:
        loss (nn.Module): The head's loss.
        args (tuple): The prediction, as :class:`~mmskd.models.pairing.Pair`, then the target and so
            on.
        kwargs (dict): As the head gave them.
        teacher_loss (nn.Module, optional): The teacher's own loss of the same. Defaults to None: it
            is as the student's.
        keypoint_weights (Tensor, optional): How much the teacher's answer on each keypoint counts,
            (N, K). Defaults to None: 1.
    """
    loss: nn.Module
    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]
    teacher_loss: Optional[nn.Module] = None
    keypoint_weights: Optional[Tensor] = None

    @property
    def student(self) -> Any:
        """What the student predicts."""
        return map_leaves(student_side, self.args[0])

    @property
    def their_loss(self) -> nn.Module:
        """The loss that says how the teacher's prediction is meant."""
        return self.loss if self.teacher_loss is None else self.teacher_loss

    @property
    def teacher(self) -> Any:
        """What the teacher predicts of the same, at least in float32."""
        return map_leaves(lambda side: at_least_float32(teacher_side(side)), self.args[0])


@MODELS.register_module()
class FeatureDistillLoss(nn.Module):
    """Squared difference between the features of student and teacher (DWPose, first stage).

    Where the numbers of channels differ, a trained 1x1 convolution takes the student's features to
    the teacher's channels. It belongs to the training, not to the model.

    Args:
        weight (float): Factor; the sum of squares is divided by the batch size alone, so it depends
            on the size of the map. Defaults to 7e-5, that of DWPose's configs; the paper has 5e-5.
        student_channels (int, optional): Channels of the student's map. Defaults to None: seen
            when the loss is :meth:`connected <connect>`.
        teacher_channels (int, optional): The same of the teacher.
        for_batch_size (int, optional): As in :class:`SimCCDistillLoss`, and for the same heads.
            Defaults to None.

    Raises:
        UsageError: If an option is of another type or out of range.
    """
    log_name = 'loss_feature'

    def __init__(self, weight: float = 7e-5, student_channels: Optional[int] = None,
                 teacher_channels: Optional[int] = None, for_batch_size: Optional[int] = None):
        super().__init__()
        options = Options(type(self).__name__)
        self.weight = options.number('weight', weight, least=0)
        self.for_batch_size = options.whole('for_batch_size', for_batch_size, least=1,
                                            optional=True)
        self._channels = dict(
            student_channels=options.whole('student_channels', student_channels, least=1,
                                           optional=True),
            teacher_channels=options.whole('teacher_channels', teacher_channels, least=1,
                                           optional=True))
        self._scales = False  # whether the teacher's maps are to be scaled
        self.projections = nn.ModuleList()
        if student_channels is not None and teacher_channels is not None:
            self.projections.append(_projection(student_channels, teacher_channels))

    def connect(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
                scale: Tuple[float, float] = (1., 1.)) -> None:
        """Make the projections for maps like these.

        Args:
            student (Sequence[Tensor]): A map (N, C, H, W) of each level.
            teacher (Sequence[Tensor]): The same of the teacher; C may differ.
            scale (tuple[float]): Height and width of the teacher's images, in those of the
                student's; its maps are as much larger. Defaults to (1, 1).

        Raises:
            UsageError: If the number of levels or the strides of a level differ, or the channels
                are not those that were named.
        """
        sizes = [[tuple(level.shape[-2:]) for level in maps] for maps in (student, teacher)]
        wanted = [tuple(round(side * by) for side, by in zip(size, scale)) for size in sizes[0]]
        if wanted != sizes[1]:
            raise UsageError(
                f'{type(self).__name__}: the features of the student are {sizes[0]} (height, '
                f'width of each level) and those of the teacher {sizes[1]}. Take a '
                'teacher with the same strides, or leave this loss out.')
        for (name, named), maps in zip(self._channels.items(), (student, teacher)):
            found = sorted({level.size(1) for level in maps})
            if named is not None and found != [named]:
                raise UsageError(f'{type(self).__name__}: {name} is {named}, but the features have '
                                 f'{", ".join(map(str, found))} channels. Leave it out')
        self._scales = sizes[0] != sizes[1]
        self.projections = nn.ModuleList(
            _projection(mine.size(1), theirs.size(1)) for mine, theirs in zip(student, teacher))

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Sum over the levels of :meth:`compare`.

        Args:
            student (Tensor | Sequence[Tensor]): A map (N, C, H, W), or one of each level.
            teacher (Tensor | Sequence[Tensor]): The same of the teacher; scaled to the height and
                width of the student's if it was connected with another ``scale``.

        Returns:
            Tensor: The loss, a scalar.
        """
        if isinstance(student, Tensor):
            student, teacher = [student], [teacher]
        if self._scales:
            teacher = [_scaled(theirs, mine.shape[-2:]) for mine, theirs in zip(student, teacher)]
        terms = [self.compare(projection(mine), theirs)
                 for projection, mine, theirs in zip(self.projections, student, teacher)]
        total = torch.stack(terms).sum()
        return total * _batch_factor(student[0].size(0), self.for_batch_size)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a level: :func:`~mmskd.models.losses.functional.feature_l2`.

        Args:
            student (Tensor): Map (N, C, H, W), projected to the teacher's channels.
            teacher (Tensor): The teacher's, of the same shape.
        """
        return feature_l2(student, teacher, self.weight)

    def check_model(self, model: nn.Module) -> None:
        """Raise UsageError if ``for_batch_size`` is set and the model's own losses are means."""
        if self.for_batch_size is not None and not any(map(is_simcc_loss, model.modules())):
            raise UsageError(
                f'{type(self).__name__}: for_batch_size goes with KLDiscretLoss, which is '
                f'a sum over the batch, but {type(model).__name__} has none. Leave it '
                'out: the terms and the losses of this model are means over the batch.')


@MODELS.register_module()
class SimCCDistillLoss(nn.Module):
    """Divergence between the SimCC distributions of student and teacher (DWPose, both stages).

    The head's own loss, MMPose's ``KLDiscretLoss``, is a sum over the batch of a GPU (divided by
    the numbers of keypoints and of bins); this one is a mean over it, as DWPose's is. So the larger
    the batch of a GPU, the less it weighs beside the head's own. DWPose has 64 images on a GPU.

    Args:
        weight (float): Factor. Defaults to 0.1, DWPose's in the first stage.
        for_batch_size (int, optional): The batch size of a GPU that ``weight`` is meant for. With
            it the loss is multiplied by the present batch size over this one, so that its share
            beside the head's own is the same at every batch size: with 64, as in batches of 64
            images without this option. Defaults to None: the plain mean.

    Raises:
        UsageError: If an option is of another type or out of range.
    """
    log_name = 'loss_logit'

    def __init__(self, weight: float = 0.1, for_batch_size: Optional[int] = None):
        super().__init__()
        options = Options(type(self).__name__)
        self.weight = options.number('weight', weight, least=0)
        self.for_batch_size = options.whole('for_batch_size', for_batch_size, least=1,
                                            optional=True)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], beta: float,
                teacher_beta: Optional[float] = None,
                keypoint_weights: Optional[Tensor] = None) -> Tensor:
        """See :func:`~mmskd.models.losses.functional.simcc_kl`.

        Args:
            student (Sequence[Tensor]): Logits over the bins of x and of y, (N, K, W) each.
            teacher (Sequence[Tensor]): The same of the teacher.
            beta (float): Inverse temperature of the student, that of its head's own loss.
            teacher_beta (float, optional): The same of the teacher. Defaults to None: the
                student's.
            keypoint_weights (Tensor, optional): Factor of each keypoint, (N, K). Defaults to None:
                1.

        Returns:
            Tensor: The loss, a scalar.
        """
        weight = self.weight * _batch_factor(student[0].size(0), self.for_batch_size)
        return simcc_kl(student, teacher, beta, weight, teacher_beta, keypoint_weights)

    def check_head(self, own: nn.Module) -> None:
        """Raise ValueError if the head's own loss is not ``KLDiscretLoss``."""
        _require(self, is_simcc_loss(own), own, 'KLDiscretLoss, that of a SimCC head')

    def of_call(self, call: LossCall) -> Tensor:
        """The loss of a call of ``KLDiscretLoss``."""
        return self(call.student, call.teacher, call.loss.beta, call.their_loss.beta,
                    call.keypoint_weights)


@MODELS.register_module()
class HeatmapDistillLoss(nn.Module):
    """Mean squared difference between the heatmaps of student and teacher.

    Args:
        weight (float): Factor. Defaults to 1.0.
    """
    log_name = 'loss_logit'

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = Options(type(self).__name__).number('weight', weight, least=0)

    def forward(self, student: Tensor, teacher: Tensor,
                keypoint_weights: Optional[Tensor] = None) -> Tensor:
        """See :func:`~mmskd.models.losses.functional.heatmap_l2`.

        Args:
            student (Tensor): Heatmaps (N, K, H, W).
            teacher (Tensor): The same of the teacher.
            keypoint_weights (Tensor, optional): Factor of each keypoint, (N, K). Defaults to None:
                1.

        Returns:
            Tensor: The loss, a scalar.
        """
        return heatmap_l2(student, teacher, self.weight, keypoint_weights)

    def check_head(self, own: nn.Module) -> None:
        """Raise ValueError if the head's own loss is not ``KeypointMSELoss`` or of its kind."""
        _require(self, is_heatmap_loss(own), own, 'KeypointMSELoss, that of a heatmap head')

    def of_call(self, call: LossCall) -> Tensor:
        """The loss of a call of ``KeypointMSELoss``, with the factor that the head gives it."""
        return self(call.student, call.teacher, call.keypoint_weights) * call.loss.loss_weight


@MODELS.register_module()
class RTMODistillLoss(nn.Module):
    """Divergence between the distributions of student and teacher over RTMO's bins of x and y.

    Args:
        weight (float): Factor, beside that of the head's own loss of its bins. Defaults to 1.0.
    """
    log_name = 'loss_logit'

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = Options(type(self).__name__).number('weight', weight, least=0)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """See :func:`~mmskd.models.losses.functional.density_kl`; of x and y the sum.

        Args:
            student (Sequence[Tensor]): Probabilities over the bins of x and of y, (N, K, bins)
                each, of N places.
            teacher (Sequence[Tensor]): The same of the teacher.

        Returns:
            Tensor: The loss, a scalar.
        """
        return sum(density_kl(mine, theirs, self.weight) for mine, theirs in zip(student, teacher))

    def check_head(self, own: nn.Module) -> None:
        """Raise UsageError if the head's own loss is not ``MLECCLoss``."""
        _require(self, is_rtmo_loss(own), own, 'MLECCLoss, that of RTMO\'s bins')

    def of_call(self, call: LossCall) -> Tensor:
        """The loss of a call of ``MLECCLoss``, with its factor."""
        return self(call.student, call.teacher) * call.loss.loss_weight


@MODELS.register_module()
class DSNTDistillLoss(nn.Module):
    """Divergence between the normalised heatmaps of student and teacher, for DSNT's head.

    Args:
        weight (float): Factor. Defaults to 0.1, as that of SimCC's bins.
    """
    log_name = 'loss_logit'

    def __init__(self, weight: float = 0.1):
        super().__init__()
        self.weight = Options(type(self).__name__).number('weight', weight, least=0)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :func:`~mmskd.models.losses.functional.density_kl`.

        Args:
            student (Tensor): Heatmaps (N, K, H, W) that add up to 1.
            teacher (Tensor): The same of the teacher.

        Returns:
            Tensor: The loss, a scalar.
        """
        return density_kl(student, teacher, self.weight)

    def check_head(self, own: nn.Module) -> None:
        """Raise UsageError if the head's own loss is not ``JSDiscretLoss``."""
        _require(self, is_dsnt_loss(own), own, 'JSDiscretLoss, that of DSNT\'s head')

    def of_call(self, call: LossCall) -> Tensor:
        """The loss of a call of ``JSDiscretLoss``."""
        return self(call.student, call.teacher)


@MODELS.register_module()
class ClassDistillLoss(nn.Module):
    """The head's own class loss with the teacher's scores for a target (a detector's logit loss).

    The soft-target form of the loss at alpha 1, with the sample weights and ``avg_factor`` of the
    call. For a cross entropy, ``(1 - a)`` times the hard loss plus ``a`` times this one is the loss
    towards the target ``(1 - a) y + a q``.

    Args:
        weight (float): Factor. Defaults to 1.0.
    """
    log_name = 'loss_logit'

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = Options(type(self).__name__).number('weight', weight, least=0)

    def of_call(self, call: LossCall) -> Tensor:
        """The loss of a call of any loss that takes a soft target."""
        return self.weight * soft_form(call.loss).forward(*call.args, **call.kwargs)

    def check_head(self, own: nn.Module) -> None:
        """Raise UsageError if the head's own loss has no soft-target form."""
        soft_form(own)


def _batch_factor(size: int, meant: Optional[int]) -> float:
    return 1. if meant is None else size / meant


def _scaled(level: Tensor, size: Sequence[int]) -> Tensor:
    """A map of the same images at another height and width."""
    return F.interpolate(level, tuple(size), mode='bilinear', antialias=True, align_corners=False)


def _projection(student_channels: int, teacher_channels: int) -> nn.Module:
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1)


def is_heatmap_loss(own: nn.Module) -> bool:
    """Whether a loss of MMPose compares heatmaps."""
    return hasattr(own, 'use_target_weight') and not is_simcc_loss(own) and not is_dsnt_loss(own)


def is_dsnt_loss(own: nn.Module) -> bool:
    """Whether a loss of MMPose compares heatmaps that add up to 1."""
    return any(kind.__name__ == 'JSDiscretLoss' for kind in type(own).__mro__)


def is_rtmo_loss(own: nn.Module) -> bool:
    """Whether a loss of MMPose compares distributions over RTMO's bins."""
    return any(kind.__name__ == 'MLECCLoss' for kind in type(own).__mro__)


def _require(term: nn.Module, fits: bool, own: nn.Module, wanted: str) -> None:
    if not fits:
        raise UsageError(f'{type(term).__name__} goes with {wanted}, but the head has '
                         f'{type(own).__name__}. Choose another in the option `losses`.')
