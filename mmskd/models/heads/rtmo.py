"""RTMO: people in one stage, and their keypoints by bins that are laid around each box."""
from typing import Dict, List

from torch import nn

from .adapter import register_head
from .pose import PoseHeadAdapter


@register_head('RTMOHead')
class RTMOAdapter(PoseHeadAdapter):
    """Its dynamic coordinate classifier (DCC) says how likely a keypoint is in a box's bins.

    The bins of a box may be asked about of any model of the family, so a teacher answers about
    those of the student.
    """

    at_places = True
    rests = True  # where its assigner finds no place for an object

    untaught = 'its boxes, their scores, and which keypoints are visible; leave this stage out'

    def __init__(self, name: str, head: nn.Module, exact: bool = False):
        super().__init__(name, head, exact)
        if not hasattr(head, 'dcc') or not self.target_losses():
            self.refusal = 'it has no bins that are trained (dcc_cfg and loss_mle)'

    def target_losses(self) -> Dict[str, nn.Module]:
        return {'loss_mle': self.head.loss_mle} if hasattr(self.head, 'loss_mle') else {}

    def advice(self, loss: nn.Module, counterparts: List[str]) -> str:
        return (
            'It multiplies two distributions before it takes the logarithm, and a softer target '
            'has no stock form. DistillHook teaches its bins.')
