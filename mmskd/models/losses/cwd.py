"""CWD: features that are compared as distributions over the places, channel by channel."""
from typing import Optional

from torch import Tensor

from mmskd.options import Options
from mmskd.registry import MODELS

from .distill import FeatureDistillLoss
from .functional import channel_kl


@MODELS.register_module()
class CWDLoss(FeatureDistillLoss):
    """Divergence between where each channel is active in student and teacher, over all levels.

    Shu et al., ICCV 2021, see :func:`~mmskd.models.losses.functional.channel_kl`. The weight does
    not depend on the size of images, batch or network.

    Args:
        weight (float): Factor. Defaults to 1.0 a level, that of MMYOLO's configs for RTMDet.
        tau (float): Temperature. Defaults to 1.0.
        student_channels (int, optional): As in :class:`FeatureDistillLoss`.
        teacher_channels (int, optional): As in :class:`FeatureDistillLoss`.
        for_batch_size (int, optional): As in :class:`FeatureDistillLoss`.

    Raises:
        UsageError: If an option is of another type or out of range.
    """

    def __init__(self, weight: float = 1.0, tau: float = 1.0,
                 student_channels: Optional[int] = None, teacher_channels: Optional[int] = None,
                 for_batch_size: Optional[int] = None):
        super().__init__(weight, student_channels, teacher_channels, for_batch_size)
        self.tau = Options('CWDLoss').number('tau', tau, above=0)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a level."""
        return self.weight * channel_kl(student, teacher, self.tau)
