"""A trained pose head teaches another: the terms are those of DWPose, by the head's own loss."""
from typing import Any, Dict, List, Sequence, Tuple

from torch import Tensor, nn

from ..distill_terms import LogitTerms, compares_features, default_losses
from ..heads import HeadAdapter, TaughtHead
from ..teachers import shared_features_mirror
from ..teachers.trained_head import without_features
from ..teachers.translated import TranslatedTeacher


class PoseDistiller:
    """See :func:`~mmskd.models.head_distill.distil`."""

    def __init__(self, model: nn.Module, trained: nn.Module, heads: Sequence[HeadAdapter],
                 gamma: float, gt_weight: float):
        self.heads = [TaughtHead(head) for head in heads]
        self._mirror = shared_features_mirror(model, self.heads)
        loss, = (loss for loss in default_losses(model, self.heads, trained)
                 if not compares_features(loss))
        loss.weight, loss.for_batch_size = gamma, None  # as in DWPose, a plain mean
        self._logits = LogitTerms(self.heads, [loss] if gamma else [], gt_weight=1.)
        self._logits.keypoint_weights = lambda: self._mirror.keypoint_weights
        self._gt_weight = gt_weight
        self.teacher = trained if isinstance(trained,
                                             TranslatedTeacher) else without_features(trained)

    def start(self) -> None:
        """Compare the two in the forward pass that follows."""
        self._mirror.start(self.teacher)

    def stop(self) -> None:
        """Compare nothing from here on."""
        self._mirror.stop()

    def finish(self, losses: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """The model's losses, with the terms of the forward pass that is over."""
        self._mirror.stop()
        own = {key: value * self._gt_weight if 'loss' in key else value
               for key, value in losses.items()}
        return {**own, **self._logits.take()}

    @property
    def refused(self) -> int:
        """int: Calls so far in which what the teacher said was not finite."""
        return self._logits.refused

    def remove(self) -> None:
        """Leave the model as it was."""
        parts: Tuple[Any, ...] = (self._mirror, self._logits, *self.heads)
        for part in parts:
            part.remove()

    def describe(self) -> List[str]:
        """A line for the log on each head."""
        return [head.describe() for head in self.heads]
