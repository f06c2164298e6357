"""GFL's head: a distribution over bins for the distance to each side."""
from typing import Dict, Sequence

import torch.nn.functional as F
from torch import Tensor

from .adapter import register_head
from .dense import DenseAdapter, Priors, corners_from_distances


@register_head('GFLHead')
class GFLAdapter(DenseAdapter):
    """The means of the distributions are distances."""

    beside = ('reg_convs', 'gfl_reg')

    def boxes(self, prediction: Tensor, priors: Priors) -> Tensor:
        return corners_from_distances(self.head.integral(prediction))

    def extra_terms(self, student: Sequence[Tensor], teacher: Sequence[Tensor], weight: Tensor,
                    total: Tensor) -> Dict[str, Tensor]:
        """KL divergence of the distributions over the bins of a side, the mean over the four sides."""
        bins = (len(student[1]), 4, -1)
        divergence = F.kl_div(student[1].view(bins).log_softmax(-1),
                              teacher[1].view(bins).log_softmax(-1), reduction='none',
                              log_target=True).sum(-1).mean(-1)
        return {'loss_dfl': self.head.loss_dfl.loss_weight * (weight * divergence).sum() / total}
