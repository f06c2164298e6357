"""Terms that a teacher adds to the student's losses in one forward pass."""
from collections import defaultdict
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from mmskd.registry import MODELS
from .losses.distill import (ClassDistillLoss, FeatureDistillLoss, HeatmapDistillLoss, LossCall,
                             SimCCDistillLoss, is_heatmap_loss)
from .losses.softmax_call import is_simcc_loss
from .pairing import has_pair
from .soft_heads import SoftHead
from .teachers.fixed import feature_maps
from .teachers.mirror import Tap
from .teachers.pose_mirror import feature_module


class LogitTerms:
    """Asks losses of predictions at each call of the heads' own losses.

    Args:
        heads (sequence[SoftHead]): The heads. Their predictions arrive with the teacher's.
        losses (sequence[nn.Module]): Losses with a method ``of_call``.
        gt_weight (float): Factor of the heads' own losses.

    Attributes:
        scale (float): Factor of all terms. Defaults to 1; with 0 they are not computed.
    """

    def __init__(self, heads: Sequence[SoftHead], losses: Sequence[nn.Module], gt_weight: float):
        self.scale = 1.0
        self._losses, self._gt_weight = losses, gt_weight
        self._terms: Dict[str, List[Tensor]] = defaultdict(list)
        self._handles = [
            loss.register_forward_hook(Tap(partial(self._after_loss, head.weight)), with_kwargs=True)
            for head in heads for loss in head.losses]

    def take(self) -> Dict[str, Tensor]:
        """The terms since the last time, summed over the calls, by the name they are logged under."""
        terms = {name: torch.stack(values).sum() for name, values in self._terms.items()}
        self._terms.clear()
        return terms

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _after_loss(self, weight: float, loss: nn.Module, args: tuple, kwargs: dict,
                    output: Tensor) -> Optional[Tensor]:
        if not has_pair(args):
            return None
        hard = output if self._gt_weight == 1 else output * self._gt_weight
        for term in self._losses if self.scale else ():
            value = term.of_call(LossCall(loss, args, kwargs)) * self.scale
            if value.numel() > 1:  # the head goes on with a value per sample (SSD picks the hardest)
                hard = hard + value
            else:
                self._terms[term.log_name].append(value.sum() * weight)
        return hard


class FeatureTerm:
    """Compares the features of student and teacher.

    Args:
        student (nn.Module): The student.
        teacher (nn.Module): The teacher.
        loss (nn.Module): A connected FeatureDistillLoss.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: nn.Module):
        self._loss = loss
        self._listening = False
        self._maps: Dict[str, List[Tensor]] = {}
        self._handles = []
        for side, model in (('student', student), ('teacher', teacher)):
            self._handles.append(feature_module(model).register_forward_hook(
                Tap(self._keep(side, model))))

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Call what ``wrapper`` makes of the loss instead of the loss."""
        self._loss = wrapper(self._loss)

    def listen(self) -> None:
        """Keep the features of the forward pass that follows."""
        self._listening, self._maps = True, {}

    def take(self) -> Dict[str, Tensor]:
        """The term of that forward pass."""
        maps, self._listening, self._maps = self._maps, False, {}
        if len(maps) < 2:
            return {}
        return {FeatureDistillLoss.log_name: self._loss(maps['student'], maps['teacher'])}

    def remove(self) -> None:
        """Take the hooks off."""
        self._maps = {}
        for handle in self._handles:
            handle.remove()

    def _keep(self, side: str, model: nn.Module) -> Any:

        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            if self._listening:
                self._maps[side] = feature_maps(model, output)

        return keep


def build_losses(hook: str, option: str, cfgs: Sequence[dict],
                 heads: Sequence[SoftHead]) -> List[nn.Module]:
    """Build losses between a student and a teacher for these heads.

    Args:
        hook (str): Whose option it is.
        option (str): Its name.
        cfgs (sequence[dict]): Configs of the losses.
        heads (sequence[SoftHead]): The student's heads.

    Raises:
        ValueError: If one is no such loss, or does not go with a head.
    """
    losses = [MODELS.build(dict(cfg)) for cfg in cfgs]
    for loss in losses:
        if not (isinstance(loss, FeatureDistillLoss) or hasattr(loss, 'of_call')):
            raise ValueError(f'{hook}: {type(loss).__name__} in the option `{option}` is no loss between '
                             'a student and a teacher')
        if hasattr(loss, 'check_head'):
            for head in heads:
                for own in head.losses:
                    loss.check_head(own)
    return losses


def default_losses(heads: Sequence[SoftHead], features: bool = True) -> List[nn.Module]:
    """What DWPose uses where a config names nothing, by the kind of the heads' own losses.

    Features and logits for pose estimators; for detectors the class scores alone, because the weight
    of a sum over all of an FPN's places has to be chosen for the size of the images.
    """
    own = heads[0].losses[0]
    if is_simcc_loss(own):
        logits: nn.Module = SimCCDistillLoss()
    elif is_heatmap_loss(own):
        logits = HeatmapDistillLoss()
    else:
        return [ClassDistillLoss()]
    return [FeatureDistillLoss(), logits] if features else [logits]
