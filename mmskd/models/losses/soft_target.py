"""What every loss that softens its hard target with a teacher's prediction has in common."""
from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from ..pairing import unpair

Prediction = Union[Tensor, Sequence[Tensor]]


class SoftTargetLoss:
    """Mix-in of the drop-in losses: takes a pair apart, and remembers what it saw.

    A loss that mixes this in is called as its hard-target namesake. If the prediction is a
    :class:`~mmskd.models.pairing.Pair`, the teacher's side softens the target; without one, or with
    ``alpha_t`` = 0, the namesake's own ``forward`` runs, so that numbers and gradients are exactly its own.

    Whoever attaches the teacher sets and reads the attributes; they are class attributes, so that a
    stock loss object can be given this class and get its own back without a trace.

    Attributes:
        alpha_t (float): Weight of the teacher in the target, in [0, 1]. Defaults to 0.
        num_calls (int): Calls since :meth:`reset`.
        num_paired (int): Calls since :meth:`reset` in which the prediction was a pair.
        disagreement (Tensor, optional): Mean absolute difference between the probabilities of student
            and teacher in the latest paired call, a scalar without gradient; None if nothing was
            predicted.
    """

    alpha_t: float = 0.0
    num_calls: int = 0
    num_paired: int = 0
    disagreement: Optional[Tensor] = None

    def reset(self) -> None:
        """Forget the calls so far."""
        self.num_calls = self.num_paired = 0
        self.disagreement = None

    def split(self, pred: Prediction) -> Tuple[Prediction, Optional[Prediction]]:
        """Take a prediction apart and count the call.

        Args:
            pred (Tensor | tuple[Tensor]): The prediction, or one for each axis (SimCC).

        Returns:
            tuple: The plain prediction, and the teacher's logits (or probabilities, where the loss
            works on these) in the same floating type, at least float32; None if the hard target is to be
            used as it is.
        """
        one = isinstance(pred, Tensor)
        students, teachers = zip(*map(unpair, (pred, ) if one else pred))
        self.num_calls += 1
        if any(teacher is None for teacher in teachers):
            return (students[0] if one else students), None
        self.num_paired += 1
        teachers = tuple(map(at_least_float32, teachers))
        self.disagreement = self._difference(students, teachers)
        if one:
            students, teachers = students[0], teachers[0]
        return students, teachers if self.alpha_t else None

    @torch.no_grad()
    def _difference(self, students: Sequence[Tensor],
                    teachers: Sequence[Tensor]) -> Optional[Tensor]:
        means = [(self.probability(at_least_float32(student)) - self.probability(teacher)).abs().mean()
                 for student, teacher in zip(students, teachers) if student.numel()]
        return torch.stack(means).mean() if means else None

    def probability(self, pred: Tensor) -> Tensor:
        """What the loss takes a prediction's probabilities to be."""
        raise NotImplementedError


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32, all else as it is: a target of 1e-4 needs the digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
