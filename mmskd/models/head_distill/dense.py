"""What a trained one-stage head teaches: scores and boxes at every prior.

The teacher's opinion on a prior counts by its confidence there, the highest probability ``c`` of a
class (times the objectness, where class scores are given an object): boxes and qualities weigh
``c^2``, and sums are divided by ``sum c^2`` over the batch. So an object counts alike in small and
large images, and the thousands of priors in the background, whose boxes mean nothing, next to
nothing.
"""
from typing import Dict, List, Sequence

from torch import Tensor

from ..heads import DenseAdapter
from ..losses import soft_form
from ..losses.boxes import box_term, over_ranks, overlap_term
from .soft_loss import soft_term


class DenseDistiller:
    """Compares the outputs of two one-stage heads for the same features.

    Args:
        adapter (DenseAdapter): What is known of the student's head.

    Raises:
        UsageError: If a loss of the head has no soft-target form.
    """

    def __init__(self, adapter: DenseAdapter):
        self._adapter = adapter
        self._class_loss = adapter.class_loss()
        self._quality_loss = soft_form(
            getattr(adapter.head, adapter.quality),
            f'model.{adapter.name}.{adapter.quality}') if adapter.quality else None

    def __call__(self, student: Sequence[Sequence[Tensor]],
                 teacher: Sequence[Sequence[Tensor]]) -> Dict[str, Tensor]:
        """The terms by the names of the head's own losses.

        Args:
            student (Sequence[Sequence[Tensor]]): What the head returned in train mode: maps
                (N, A * K, H, W) of each level with K scores, then those with the boxes, and so on.
            teacher (Sequence[Sequence[Tensor]]): The same of the teacher.
        """
        adapter = self._adapter
        sizes = [level.shape[-2:] for level in student[0]]
        mine, theirs = (adapter.flatten(outputs) for outputs in (student, teacher))
        probability = self._class_loss.probability(theirs[0])
        weight = adapter.box_weights(theirs)
        total = over_ranks(weight.sum())
        terms = {'loss_cls': soft_term(self._class_loss, mine[0], theirs[0], total,
                                       adapter.class_weights(weight),
                                       adapter.class_target(probability))}
        for key, loss in adapter.box_losses().items():
            ours, others = (self._boxes(side[adapter.box_output(key)], sizes)
                            for side in (mine, theirs))
            compare = overlap_term if adapter.compares_boxes else box_term
            terms[key] = compare(loss, ours, others, weight, total)
        terms.update(adapter.extra_terms(mine, theirs, weight, total))
        # objectness counts everywhere, centerness where there is an object
        if adapter.quality and self._quality_loss:
            terms[adapter.quality] = soft_term(self._quality_loss, mine[2], theirs[2], total,
                                               None if adapter.objectness else weight)
        return terms

    def _boxes(self, prediction: Tensor, sizes: List[tuple]) -> Tensor:
        return self._adapter.boxes(prediction, self._adapter.priors(prediction, sizes))
