"""NKD: distillation in which the other classes are compared among themselves."""
from typing import Optional, Tuple

from torch import Tensor, nn

from mmskd.registry import MODELS
from .functional import mask_of, nkd_nontarget, nkd_target, target_classes
from .soft_target import at_least_float32


@MODELS.register_module()
class NKDLoss(nn.Module):
    """Normalised knowledge distillation from a teacher's logits, for softmax heads.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels", ICCV 2023::

        -T_t log S_t  -  gamma tau^2 sum_{i != t} N(T_i) log N(S_i)

    with the probabilities S and T of student and teacher, the target class t, and N the softmax over the
    other classes at temperature tau (see :func:`~mmskd.models.losses.functional.nkd`). It is added to the
    hard loss. Sigmoid heads have no distribution over classes that could be normalised.

    Args:
        gamma (float): Weight of the other classes. Defaults to 1.5, the paper's choice.
        tau (float): Temperature of the other classes. Defaults to 1.0.
        weight (float): Factor of the whole. Defaults to 1.0.
        ignore_background (bool): Whether the last class is a background that is not to be distilled: its
            samples have no loss, and it is left out of ``N`` in all others. Defaults to False: the
            background is a class like any other.

    Raises:
        ValueError: If ``tau`` is not positive.
    """

    log_name = 'loss_nkd'

    def __init__(self, gamma: float = 1.5, tau: float = 1.0, weight: float = 1.0,
                 ignore_background: bool = False):
        super().__init__()
        if tau <= 0:
            raise ValueError(f'NKDLoss: tau must be positive, got {tau}')
        self.gamma = gamma
        self.tau = tau
        self.weight = weight
        self.ignore_background = ignore_background

    def forward(self, cls_score: Tensor, teacher_score: Tensor, label: Tensor,
                weight: Optional[Tensor] = None, avg_factor: Optional[float] = None) -> Tensor:
        """Loss of the samples that have a target class.

        Args:
            cls_score (Tensor): The student's logits, (N, C).
            teacher_score (Tensor): The teacher's, (N, C). Detached.
            label (Tensor): Class indices (N,); one outside of [0, C) has no loss. Or soft labels
                (N, C), of which the largest is the target.
            weight (Tensor, optional): Of each sample, (N,). Defaults to 1.
            avg_factor (float, optional): What the sum is divided by. Defaults to the number of
                samples with a target and a weight other than 0.

        Returns:
            Tensor: Scalar; 0 if there is no such sample.

        Raises:
            ValueError: If the shapes do not fit.
        """
        require_same_shape('NKDLoss', cls_score, teacher_score=teacher_score)
        keep, weight = counted(cls_score, label, weight, self.ignore_background)
        student = at_least_float32(cls_score[keep])
        teacher = at_least_float32(teacher_score[keep])
        target = target_classes(label[keep])[0][:, :1]
        others = ~mask_of(target, student)
        if self.ignore_background:
            others[:, -1] = False
        loss = nkd_target(student, teacher, target) + self.gamma * nkd_nontarget(
            student, teacher, others, self.tau)
        return self.weight * average(loss, weight, avg_factor)


    def of_call(self, call) -> Tensor:
        """The loss beside a call of a head's own softmax loss, as ``mmskd.DistillHook`` asks for it.

        Args:
            call: With the head's ``loss``, its ``args`` and ``kwargs``, and the logits of ``student`` and
                ``teacher``.

        Raises:
            ValueError: If the head's loss is one of sigmoids.
        """
        if getattr(call.loss, 'use_sigmoid', False):
            raise ValueError(f'NKDLoss goes with a softmax head, but the head has a sigmoid '
                             f'{type(call.loss).__name__}. Choose another in the option `losses`.')
        args = (*call.args[1:], None)  # label, and perhaps weight
        return self(call.student, call.teacher, args[0], call.kwargs.get('weight', args[1]),
                    call.kwargs.get('avg_factor'))


def require_same_shape(name: str, cls_score: Tensor, **others: Tensor) -> None:
    """Raise ValueError unless all are logits (N, C) of one shape, with two classes or more."""
    for key, other in others.items():
        if cls_score.dim() != 2 or cls_score.shape != other.shape or cls_score.size(1) < 2:
            raise ValueError(
                f'{name}: cls_score and {key} must both be logits (N, C) of two classes or more, got '
                f'{tuple(cls_score.shape)} and {tuple(other.shape)}')


def counted(cls_score: Tensor, label: Tensor, weight: Optional[Tensor],
            ignore_background: bool) -> Tuple[Tensor, Tensor]:
    """Which samples have a loss, and the weights of these.

    Args:
        cls_score (Tensor): (N, C).
        label (Tensor): (N,) or (N, C).
        weight (Tensor, optional): (N,).
        ignore_background (bool): Whether samples of the last class have none.

    Returns:
        tuple[Tensor]: Bool (N,) of which K are True, and weights (K,).
    """
    num_classes = cls_score.size(1) - int(ignore_background)
    if label.dim() == 1:
        keep = (label >= 0) & (label < num_classes)
    else:
        keep = (label.amax(1) > 0) & (label.argmax(1) < num_classes)
    if weight is None:
        weight = cls_score.new_ones(len(cls_score))
    keep = keep & (weight != 0)
    return keep, at_least_float32(weight[keep])


def average(loss: Tensor, weight: Tensor, avg_factor: Optional[float]) -> Tensor:
    """Weighted sum over ``avg_factor`` (the number of samples); 0 with a graph if there is none."""
    return (loss * weight).sum() / (max(len(loss), 1) if avg_factor is None else avg_factor)
