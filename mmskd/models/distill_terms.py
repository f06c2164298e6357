"""Terms that a teacher adds to the student's losses in one forward pass."""
from collections import defaultdict
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmskd.errors import UsageError
from mmskd.registry import MODELS

from .box_terms import compares_boxes, require_boxes
from .finite import all_finite, tensors_in
from .heads import TaughtHead, is_detector, is_pose_estimator
from .losses.boxes import BoxDistillLoss
from .losses.distill import (
    ClassDistillLoss,
    DSNTDistillLoss,
    FeatureDistillLoss,
    HeatmapDistillLoss,
    LossCall,
    RTMODistillLoss,
    SimCCDistillLoss,
    is_dsnt_loss,
    is_rtmo_loss,
)
from .losses.mining import MinedLoss
from .losses.nkd import NKDLoss
from .losses.pkd import PKDLoss
from .losses.soft_target import at_least_float32
from .losses.softmax_call import is_simcc_loss
from .pairing import has_pair, map_leaves, teacher_side
from .ranges import LOSS, record_function
from .taps import Tap
from .teachers.answering import features_from
from .teachers.output_mirror import feature_module
from .teachers.probe import feature_maps, probe_features
from .teachers.translated import TranslatedTeacher

DWPOSE_BATCH = 64  # images on a GPU, for which DWPose's weights were chosen
SIMCC_FEATURES = 8.  # for 64 images, beside a sum over them; 1 for 8 (docs/results.md)


class LogitTerms:
    """Asks losses of predictions at each call of the heads' own losses.

    Args:
        heads (sequence[TaughtHead]): The heads. Their predictions arrive with the teacher's.
        losses (sequence[nn.Module]): Losses with a method ``of_call``.
        gt_weight (float): Factor of the heads' own losses, where the terms are computed.
        teacher (nn.Module, optional): Whose predictions; its own losses say how these are meant
            (SimCC's temperature). Defaults to None: as the student's.

    Attributes:
        scale (float): Factor of all terms. Defaults to 1; with 0 they are not computed.
        keypoint_weights (Callable): Says how much the teacher's answers on each keypoint count, (N,
            K); None: 1.
        refused (int): Calls so far in which what the teacher said was not finite. Their terms are
            0.
    """

    def __init__(self, heads: Sequence[TaughtHead], losses: Sequence[nn.Module], gt_weight: float,
                 teacher: Optional[nn.Module] = None):
        self.scale, self.refused = 1.0, 0
        self.keypoint_weights: Callable[[], Optional[Tensor]] = lambda: None
        self._losses, self._gt_weight = losses, gt_weight
        self._terms: Dict[str, List[Tensor]] = defaultdict(list)
        theirs = {} if teacher is None else dict(teacher.named_modules())
        self._handles = [
            loss.register_forward_hook(
                Tap(partial(self._after_loss, head.weight, theirs.get(name))), with_kwargs=True)
            for head in heads for name, loss in head.losses.items()]

    def take(self) -> Dict[str, Tensor]:
        """The terms since the last time, summed over the calls, by their names in the log."""
        terms = {name: torch.stack(values).sum() for name, values in self._terms.items()}
        self._terms.clear()
        return terms

    @property
    def names(self) -> List[str]:
        """list[str]: What the terms are logged under."""
        return sorted({term.log_name for term in self._losses})

    def remove(self) -> None:
        """Take the hooks off."""
        self._terms.clear()
        for handle in self._handles:
            handle.remove()

    def _after_loss(self, weight: float, teacher_loss: Optional[nn.Module], loss: nn.Module,
                    args: tuple, kwargs: dict, output: Tensor) -> Optional[Tensor]:
        if not has_pair(args):
            return None
        own = output if self._gt_weight == 1 or not self.scale else output * self._gt_weight
        if self.scale and not all_finite(tensors_in(map_leaves(teacher_side, args))):
            self.refused += 1
            for term in self._losses:
                self._terms[term.log_name].append(own.new_zeros(()))
            return own
        for term in self._losses if self.scale else ():
            call = LossCall(loss, args, kwargs, teacher_loss, self.keypoint_weights())
            with record_function(LOSS):
                value = term.of_call(call) * self.scale
            # the head goes on with a value per sample (SSD picks the hardest)
            if value.numel() > 1:
                own = MinedLoss.of(own + value, output)
            else:
                self._terms[term.log_name].append(value.sum() * weight)
        return own


class FeatureTerm:
    """Compares the features of student and teacher.

    Args:
        student (nn.Module): The student.
        teacher (nn.Module): The teacher.
        loss (nn.Module): A connected FeatureDistillLoss.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: nn.Module):
        self._loss = loss
        self.refused = 0
        self._listening = False
        self._maps: Dict[str, List[Tensor]] = {}
        self._handles = []
        for side, model in (('student', student), ('teacher', teacher)):
            self._handles.append(feature_module(model).register_forward_hook(
                Tap(self._keep(side, student))))

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Call what ``wrapper`` makes of the loss instead of the loss."""
        self._loss = wrapper(self._loss)

    def listen(self) -> None:
        """Keep the features of the forward pass that follows."""
        self._listening, self._maps = True, {}

    def take(self) -> Dict[str, Tensor]:
        """The term of that forward pass."""
        maps, self._listening, self._maps = self._maps, False, {}
        for side in ('student', 'teacher'):
            if side not in maps:
                raise UsageError(
                    f'the {side} computed no features in this step, so there is nothing that '
                    f'{type(self._loss).__name__} could compare. Leave it out of `losses`.')
        if not all_finite(maps['teacher']):
            self.refused += 1
            # 0, but a function of the projections, which DDP waits for
            teacher = [torch.zeros_like(level) for level in maps['teacher']]
            return {FeatureDistillLoss.log_name: self._loss(maps['student'], teacher) * 0}
        with record_function(LOSS):
            return {FeatureDistillLoss.log_name: self._loss(maps['student'], maps['teacher'])}

    def remove(self) -> None:
        """Take the hooks off."""
        self._maps = {}
        for handle in self._handles:
            handle.remove()

    def _keep(self, side: str, student: nn.Module) -> Any:

        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            if self._listening:
                self._maps[side] = list(map(at_least_float32, feature_maps(student, output)))

        return keep


def build_losses(option: str, cfgs: Sequence[dict]) -> List[nn.Module]:
    """Build losses between a student and a teacher, from the configs in an option of a hook.

    Raises:
        UsageError: If one is no such loss.
    """
    losses = [MODELS.build(dict(cfg)) for cfg in cfgs]
    for loss in losses:
        if not (compares_features(loss) or compares_boxes(loss) or hasattr(loss, 'of_call')):
            raise UsageError(
                f'{type(loss).__name__} in the option `{option}` is no loss between a student '
                'and a teacher')
    return losses


def check_losses(losses: Sequence[nn.Module], heads: Sequence[TaughtHead]) -> None:
    """Raise UsageError if a loss does not go with a head."""
    for loss in losses:
        for head in heads if hasattr(loss, 'check_head') else ():
            for own in head.losses.values():
                loss.check_head(own)


def compares_features(loss: nn.Module) -> bool:
    """Whether a loss compares features, and not predictions."""
    return isinstance(loss, FeatureDistillLoss)


def default_losses(model: nn.Module, heads: Sequence[TaughtHead],
                   teacher: nn.Module) -> List[nn.Module]:
    """What teaches where a config names nothing.

    For SimCC, the bins and the features by their correlation, with the same balance at any batch
    size: DWPose's for the bins at its 64 images on a GPU. For heatmap heads, DSNT and RTMO,
    heatmaps or bins alone: their losses are so small that features would need a weight for each.
    For detectors, class scores, boxes, and features by their correlation; for classifiers, logits.
    What cannot be compared is left out, and the log says why.
    """
    own = next(iter(heads[0].losses.values()))
    if is_dsnt_loss(own):
        return [DSNTDistillLoss()]
    if is_rtmo_loss(own):
        return [RTMODistillLoss()]
    if is_simcc_loss(own):
        features = PKDLoss(SIMCC_FEATURES, for_batch_size=DWPOSE_BATCH)
        losses: List[nn.Module] = [SimCCDistillLoss(for_batch_size=DWPOSE_BATCH)]
    elif is_pose_estimator(model):
        return [HeatmapDistillLoss()]
    elif is_detector(model):
        features, losses = PKDLoss(), [ClassDistillLoss()]
        try:
            require_boxes(heads, teacher)
            losses.append(BoxDistillLoss())
        except UsageError as refusal:
            _leave_out('boxes', refusal)
    else:
        return [NKDLoss()]
    try:
        connect_features(features, model, teacher)
        losses.append(features)
    except UsageError as refusal:
        _leave_out('features', refusal)
    return losses


def connect_features(loss: nn.Module, model: nn.Module, teacher: nn.Module) -> None:
    """Let a loss see the features that it will compare.

    Args:
        loss (nn.Module): A FeatureDistillLoss.
        model (nn.Module): The student.
        teacher (nn.Module): The teacher, as it is or translated.

    Raises:
        UsageError: If they cannot be compared.
    """
    scale = teacher.scale if isinstance(teacher, TranslatedTeacher) else (1., 1.)
    loss.connect(probe_features(model), probe_features(features_from(teacher), model), scale)


def _leave_out(what: str, refusal: UsageError) -> None:
    print_log(f'Distillation: {what} are not taught; {refusal}', 'current')
