"""GFL's head: a distribution over bins for the distance to each side."""
from typing import Any, Dict, List, Sequence

from torch import Tensor

from ..losses.boxes import BoxLesson
from ..losses.functional import bins_kl
from .adapter import register_head
from .dense import DenseAdapter, Priors, corners_from_distances


@register_head('GFLHead')
class GFLAdapter(DenseAdapter):
    """The means of the distributions are distances; a teacher's boxes teach the distributions."""

    beside = ('reg_convs', 'gfl_reg')

    def corners(self, prediction: Tensor, priors: Priors) -> Tensor:
        return corners_from_distances(self.head.integral(prediction))

    def box_lessons(self, output: Any, answer: Any) -> List[BoxLesson]:
        mine, theirs = self.flatten(output), self.flatten(answer)
        return [BoxLesson(_bins(mine[1]), _bins(theirs[1]), self.box_weights(theirs))]

    def extra_terms(self, student: Sequence[Tensor], teacher: Sequence[Tensor], weight: Tensor,
                    total: Tensor) -> Dict[str, Tensor]:
        """The distributions over the bins."""
        divergence = bins_kl(_bins(student[1]), _bins(teacher[1]))
        return {'loss_dfl': self.head.loss_dfl.loss_weight * (weight * divergence).sum() / total}


def _bins(prediction: Tensor) -> Tensor:
    """(N, 4 * B) as (N, 4, B)."""
    return prediction.unflatten(1, (4, -1))
