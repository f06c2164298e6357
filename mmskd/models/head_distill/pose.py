"""A trained pose head teaches another: the terms are those of DWPose, by the head's own loss."""
from typing import Dict, List, Optional, Sequence

from torch import Tensor, nn

from ..distill_terms import LogitTerms, default_losses
from ..soft_heads import soften_heads
from ..teachers.pose_mirror import PoseMirror
from ..teachers.trained_head import without_features


class PoseDistiller:
    """See :func:`~mmskd.models.head_distill.distil`."""

    def __init__(self, model: nn.Module, trained: nn.Module, heads: Sequence[str], gamma: float,
                 gt_weight: float):
        self._soft_heads = soften_heads(model, heads)
        self._mirror = PoseMirror(
            model, {head.name: head.losses for head in self._soft_heads}, share_features=True)
        loss, = default_losses(self._soft_heads, features=False)
        loss.weight = gamma
        self._logits = LogitTerms(self._soft_heads, [loss] if gamma else [], gt_weight)
        self.teacher = without_features(trained)

    def start(self) -> None:
        """Compare the two in the forward pass that follows."""
        for head in self._soft_heads:
            for loss in head.losses:
                loss.reset()
        self._mirror.start(self.teacher)

    def stop(self) -> None:
        """Compare nothing from here on."""
        self._mirror.stop()

    def finish(self, losses: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """The model's losses, with the terms of the forward pass that is over."""
        if self._mirror.teacher is None:
            return losses
        self._mirror.stop()
        for head in self._soft_heads:
            head.check_pairing()
        return {**losses, **self._logits.take()}

    def remove(self) -> None:
        """Leave the model as it was."""
        self._mirror.remove()
        self._logits.remove()
        for head in self._soft_heads:
            head.undo()

    def describe(self) -> List[str]:
        """A line for the log on each head."""
        return [head.describe() for head in self._soft_heads]


def pose_heads(model: nn.Module, names: Optional[Sequence[str]]) -> List[str]:
    """See :func:`~mmskd.models.head_distill.heads_to_distill`."""
    softened = soften_heads(model, names)
    for head in softened:
        head.undo()
    return [head.name for head in softened]
