"""PKD: features that are compared by their correlation."""
from typing import Optional

from torch import Tensor

from mmskd.registry import MODELS

from .distill import FeatureDistillLoss
from .functional import pearson_distance


@MODELS.register_module()
class PKDLoss(FeatureDistillLoss):
    """One minus the correlation of the student's and the teacher's features, over all levels.

    Cao et al., NeurIPS 2022, see :func:`~mmskd.models.losses.functional.pearson_distance`. The
    weight does not depend on the size of images, batch or network.

    Args:
        weight (float): Factor, for each level. Defaults to 1.0, which teaches a detector from
            ImageNet weights more in a short training than the 6.0 of MMRazor's configs for COCO.
        student_channels (int, optional): As in :class:`FeatureDistillLoss`.
        teacher_channels (int, optional): As in :class:`FeatureDistillLoss`.
        for_batch_size (int, optional): As in :class:`FeatureDistillLoss`.
    """

    def __init__(self, weight: float = 1.0, student_channels: Optional[int] = None,
                 teacher_channels: Optional[int] = None, for_batch_size: Optional[int] = None):
        super().__init__(weight, student_channels, teacher_channels, for_batch_size)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a level."""
        return self.weight * pearson_distance(student, teacher)
