"""NKD: distillation in which the other classes are compared among themselves."""
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError
from mmskd.options import Options
from mmskd.registry import MODELS

from .distill import LossCall
from .functional import mask_of, nkd_nontarget, nkd_target, target_classes
from .soft_target import at_least_float32
from .softmax_call import is_softmax_loss, read_softmax_calls, softmax_logits


@MODELS.register_module()
class NKDLoss(nn.Module):
    """Normalised knowledge distillation from a teacher's logits, for softmax heads and SimCC bins.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels", ICCV 2023::

        -T_t log S_t  -  gamma tau^2 sum_{i != t} N(T_i) log N(S_i)

    with the probabilities S and T of student and teacher, the target class t, and N the softmax
    over the other classes at temperature tau (see :func:`~mmskd.models.losses.functional.nkd`). It
    is added to the hard loss. Sigmoid heads have no distribution over classes that could be
    normalised.

    A loss of ``mmskd.DistillHook`` (the teacher is another model) and of ``mmskd.PSKDHook`` (the
    past self). There, samples are those of the head's own loss, with its weights, class weights,
    ``loss_weight`` and ``avg_factor``. For SimCC a sample is a visible keypoint on an axis, with
    the bins for classes: the mean over these, x and y added.

    Args:
        gamma (float): Weight of the other classes. Defaults to 1.5, the paper's choice.
        tau (float): Temperature of the other classes. Defaults to 1.0.
        weight (float): Factor of the whole. Defaults to 1.0.
        ignore_background (bool): Whether the last class is a background that is not to be
            distilled: its samples have no loss, and it is left out of ``N`` in all others. Defaults
            to False: the background is a class like any other.

    Raises:
        UsageError: If an option is of another type or out of range.
    """

    log_name = 'loss_nkd'

    def __init__(self, gamma: float = 1.5, tau: float = 1.0, weight: float = 1.0,
                 ignore_background: bool = False):
        super().__init__()
        options = Options('NKDLoss')
        self.gamma = options.number('gamma', gamma, least=0)
        self.tau = options.number('tau', tau, above=0)
        self.weight = options.number('weight', weight, least=0)
        self.ignore_background = options.flag('ignore_background', ignore_background)

    def forward(self, cls_score: Tensor, teacher_score: Tensor, label: Tensor,
                weight: Optional[Tensor] = None, avg_factor: Optional[float] = None,
                reduction: str = 'mean') -> Tensor:
        """Loss of the samples that have a target class.

        Args:
            cls_score (Tensor): The student's logits, (N, C).
            teacher_score (Tensor): The teacher's, (N, C). Detached.
            label (Tensor): Class indices (N,); one outside of [0, C) has no loss. Or soft labels
                (N, C), of which the largest is the target.
            weight (Tensor, optional): Of each sample, (N,). Defaults to 1.
            avg_factor (float, optional): What the sum is divided by. Defaults to the number of
                samples with a target and a weight other than 0.
            reduction (str): 'mean', or 'none' for the loss of each sample. Defaults to 'mean'.

        Returns:
            Tensor: Scalar, 0 if there is no such sample; or (N,), 0 for all others.

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
        if reduction == 'none':
            return self.weight * torch.zeros_like(keep, dtype=loss.dtype).masked_scatter(
                keep, loss * weight)
        return self.weight * average(loss, weight, avg_factor)

    def check_head(self, own: nn.Module) -> None:
        """Raise UsageError if the head's own loss is not one of a softmax."""
        if not is_softmax_loss(own):
            raise UsageError(
                'NKDLoss goes with CrossEntropyLoss of a softmax (use_sigmoid=False), or with '
                'KLDiscretLoss, that of a SimCC head, but the head has '
                f'{type(own).__name__}, which has no distribution over classes. Leave '
                'NKDLoss out; ClassDistillLoss goes with the class losses of all detectors.')

    def of_call(self, call: LossCall) -> Tensor:
        """The loss beside a call of the head's own loss; (N,) if that is not reduced."""
        reduction = 'none' if call.kwargs.get('reduction_override') == 'none' else 'mean'
        terms = [self(own.logits, teacher, own.labels, own.weight, own.avg_factor, reduction)
                 for own, teacher in zip(read_softmax_calls(call.loss, call.args, call.kwargs),
                                         softmax_logits(call.their_loss, call.teacher))]
        return sum(terms) * getattr(call.loss, 'loss_weight', 1.)


def require_same_shape(name: str, cls_score: Tensor, **others: Tensor) -> None:
    """Raise ValueError unless all are logits (N, C) of one shape, with two classes or more."""
    for key, other in others.items():
        if cls_score.dim() != 2 or cls_score.shape != other.shape or cls_score.size(1) < 2:
            raise UsageError(
                f'{name}: cls_score and {key} must both be logits (N, C) of two classes or more, '
                f'got {tuple(cls_score.shape)} and {tuple(other.shape)}')


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
