"""VFNet's head: distances to the four sides, and the same refined."""
from typing import Callable, Dict

from torch import Tensor

from .adapter import register_head
from .dense import DenseAdapter, Priors, corners_from_distances


@register_head('VFNetHead')
class VFNetAdapter(DenseAdapter):
    """See the module."""

    def corners(self, prediction: Tensor, priors: Priors) -> Tensor:
        return corners_from_distances(prediction)

    def box_losses(self) -> Dict[str, Callable]:
        return {'loss_bbox': self.head.loss_bbox, 'loss_bbox_rf': self.head.loss_bbox_refine}

    def box_output(self, key: str) -> int:
        return 2 if key == 'loss_bbox_rf' else 1

    def class_target(self, probability: Tensor) -> Tensor:
        """For a varifocal loss positive is what would be reported."""
        return probability * (probability > self.head.test_cfg['score_thr'])
