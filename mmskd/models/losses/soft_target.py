"""What every loss that softens its hard target with a teacher's prediction has in common."""
import copy
import importlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple, Type, Union

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError

from ..finite import all_finite
from ..pairing import unpair
from ..ranges import LOSS, record_function

Prediction = Union[Tensor, Sequence[Tensor]]

FORMS = ('paper', 'kl', 'rescaled', 'added')
"""How hard target and teacher meet in a loss, see :func:`.functional.soft_loss`."""

ABOUT = ('all', 'positives', 'confidence')
"""Whose targets are softened, see :meth:`SoftTargetLoss.alpha_of`."""

NEAR_POSITIVE = 0.1
"""From which probability of a foreground class on the teacher makes a sample a near positive."""


class SoftTargetLoss:
    """Mix-in of the drop-in losses: takes a pair apart, and remembers what it saw.

    A loss that mixes this in is called as its hard-target namesake. If the prediction is a
    :class:`~mmskd.models.pairing.Pair`, the teacher's side softens the target; without one, or with
    ``alpha_t`` = 0, the namesake's own ``forward`` runs, so that numbers and gradients are exactly
    its own.

    Whoever attaches the teacher sets and reads the attributes; they are class attributes, so that a
    stock loss object can be given this class and get its own back without a trace.

    Attributes:
        alpha_t (float): Weight of the teacher in the target, in [0, 1]. Defaults to 0.
        form (str): How hard target and teacher meet, one of ``FORMS``. Defaults to 'paper': the
            progressive target.
        about (str): Whose targets are softened, one of ``ABOUT``. Defaults to 'all'.
        foreground (int, optional): So many of the first scores are those of classes, the others of
            the background. Defaults to None: all, but for the last of a softmax.
        forms (tuple[str]): Of the class: the forms that it knows. A loss of one's own knows
            'paper'.
        usual_form (str): Of the class: the one that PSKDHook takes where nobody names one.
        abouts (tuple[str]): Of the class: what ``about`` may be. A loss of one's own knows 'all'.
    """

    alpha_t: float = 0.0
    form: str = 'paper'
    about: str = 'all'
    foreground: Optional[int] = None
    _differences: Optional[List[Tuple[Tensor, int]]] = None
    _refused: int = 0
    forms: Tuple[str, ...] = FORMS[:1]
    usual_form: str = 'paper'
    abouts: Tuple[str, ...] = ABOUT[:1]
    if TYPE_CHECKING:  # of the loss that this is mixed into
        forward: Callable[..., Any]
        loss_weight: float
        reduction: str

    def __call__(self, *args, **kwargs):
        with record_function(LOSS):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]  # nn.Module's

    def reset(self, measure: bool = True) -> None:
        """Forget the calls so far; ``measure`` the differences in those that follow."""
        self._differences = [] if measure else None

    def differences(self) -> List[Tuple[Tensor, int]]:
        """Of each call since :meth:`reset` that had a teacher.

        Returns:
            list[tuple]: The mean absolute difference between the probabilities of student and
            teacher, a scalar without gradient, and of how many it is the mean.
        """
        return self._differences or []

    def split(self, pred: Prediction) -> Tuple[Prediction, Optional[Prediction]]:
        """Take a prediction apart.

        Args:
            pred (Tensor | tuple[Tensor]): The prediction, or one for each axis (SimCC).

        Returns:
            tuple: The plain prediction, and the teacher's logits (or probabilities, where the loss
            works on these) in the same floating type, at least float32; None if the hard target is
            to be used as it is: without a teacher, or if what it says is not finite.
        """
        one = isinstance(pred, Tensor)
        students, teachers = zip(*map(unpair, (pred, ) if one else pred))
        if any(teacher is None for teacher in teachers):
            return (students[0] if one else students), None
        if not all_finite(teachers):
            self._refused += 1
            return (students[0] if one else students), None
        teachers = tuple(map(at_least_float32, teachers))
        self._compare(students, teachers)
        if one:
            students, teachers = students[0], teachers[0]
        return students, teachers if self.alpha_t else None

    @torch.no_grad()
    def alpha_of(self, past: Tensor, hard: Tensor,
                 weight: Optional[Tensor] = None) -> Union[float, Tensor]:
        """The weight of the teacher in the target of each sample.

        - ``about='all'``: alpha_t.
        - 'positives': alpha_t of samples that are positive (:meth:`is_positive`), 0 of all others.
        - 'confidence': alpha_t times how sure the teacher is (:meth:`confidence`).

        Args:
            past (Tensor): What the teacher predicts, as the loss takes predictions: (N, C), say.
            hard (Tensor): The hard target: labels (N,), or of the shape of ``past``.
            weight (Tensor, optional): Weights of the samples. Defaults to None: 1.

        Returns:
            float | Tensor: alpha_t, or of each sample: (N, 1), whatever broadcasts to ``past``.
        """
        if self.about == 'all':
            return self.alpha_t
        if self.about == 'confidence':
            return self.alpha_t * self.confidence(past, hard)
        return self.alpha_t * self.is_positive(past, hard, weight).to(past.dtype)

    def confidence(self, past: Tensor, hard: Tensor) -> Tensor:
        """How sure the teacher is that there is an object.

        Its largest probability of a foreground class.

        Args:
            past (Tensor): As in :meth:`alpha_of`.
            hard (Tensor): As in :meth:`alpha_of`.

        Returns:
            Tensor: In [0, 1], of each sample: (N, 1).
        """
        if past.dim() > 1:
            past = past[..., :self.count_foreground(past)].amax(-1, keepdim=True)
        return self.probability(past)

    def is_positive(self, past: Tensor, hard: Tensor, weight: Optional[Tensor] = None) -> Tensor:
        """Samples with a hard positive, and near positives.

        The near ones are those that the teacher gives 0.1 or more.

        Args:
            past (Tensor): As in :meth:`alpha_of`.
            hard (Tensor): As in :meth:`alpha_of`. Of labels those outside of [0, C) are background.
            weight (Tensor, optional): As in :meth:`alpha_of`.

        Returns:
            Tensor: Bool, of each sample: (N, 1).
        """
        classes = self.count_foreground(past)
        if hard.dim() < past.dim():
            positive = ((hard >= 0) & (hard < classes)).unsqueeze(-1)
        else:
            positive = hard > 0
            positive = positive[..., :classes].any(-1, keepdim=True) if hard.dim() > 1 else positive
        return positive | (self.confidence(past, hard) >= NEAR_POSITIVE)

    def count_foreground(self, past: Tensor) -> int:
        """How many of the scores (N, C) are those of classes; those behind are of background."""
        return past.size(-1) if self.foreground is None else self.foreground

    @torch.no_grad()
    def _compare(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
        if self._differences is None:
            return
        for student, teacher in zip(students, teachers):
            if student.numel():
                difference = self.probability(at_least_float32(student)) - self.probability(teacher)
                self._differences.append((difference.abs().mean(), student.numel()))

    def probability(self, pred: Tensor) -> Tensor:
        """What the loss takes a prediction's probabilities to be."""
        raise NotImplementedError

    @classmethod
    def takes(cls, loss: nn.Module) -> bool:
        """Whether it computes what this instance of the stock loss does, with all its settings."""
        return True


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32, all else as it is: a target of 1e-4 needs the digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


SOFT_FORMS: Dict[Type[nn.Module], Type[SoftTargetLoss]] = {}
"""The soft-target drop-in of each hard-target loss, see :func:`register_soft_loss`."""

ON_DEMAND = {'mmpretrain': 'pskd_mmpretrain'}
"""The modules here that register forms of a package's losses when one of these is met.

It need not be installed.
"""


def register_soft_loss(stock: Type[nn.Module], soft: Type[SoftTargetLoss]) -> None:
    """Say which loss takes a teacher's prediction in place of a hard-target loss.

    Args:
        stock (type): A loss that a head may have. Only this class itself: a subclass may compute
            anything.
        soft (type): Its drop-in: ``class Soft(SoftTargetLoss, stock)`` with the same constructor
            and call, which equals ``stock`` where it is given no teacher.

    Raises:
        UsageError: If ``soft`` is not such a class.
    """
    if not (issubclass(soft, SoftTargetLoss) and issubclass(soft, stock)):
        raise UsageError(
            f'register_soft_loss: {soft.__name__} must derive from SoftTargetLoss and from '
            f'{stock.__name__}, in this order')
    SOFT_FORMS[stock] = soft


def soft_class(loss: nn.Module) -> Optional[Type[SoftTargetLoss]]:
    """The class of a loss's soft-target form: its own if it has one already.

    None if there is none.
    """
    if isinstance(loss, SoftTargetLoss):
        return type(loss)
    package = type(loss).__module__.partition('.')[0]
    if package in ON_DEMAND:
        importlib.import_module(f'.{ON_DEMAND[package]}', __package__)
    found = SOFT_FORMS.get(type(loss))
    return found if found is not None and found.takes(loss) else None


def soft_classes_like(loss: nn.Module) -> List[str]:
    """The names of losses with a soft-target form, from the package of ``loss``."""
    package = type(loss).__module__.partition('.')[0]
    found = [
        stock.__name__ for stock in SOFT_FORMS if stock.__module__.partition('.')[0] == package
    ]
    return found or list(dict.fromkeys(stock.__name__ for stock in SOFT_FORMS))


def soft_form(loss: nn.Module, name: str = 'the loss') -> SoftTargetLoss:
    """A loss with the same settings that takes a teacher's prediction for its target (alpha 1).

    Args:
        loss (nn.Module): A loss that has a soft-target form. Not changed.
        name (str): For the error. Defaults to 'the loss'.

    Raises:
        UsageError: If it has no soft-target form.
    """
    kind = soft_class(loss)
    if kind is None:
        raise UsageError(f'{name} is {type(loss).__name__}, which has no soft-target form; '
                         f'{", ".join(soft_classes_like(loss))} have one')
    soft = copy.copy(loss)
    soft.__class__ = kind
    soft._forward_pre_hooks, soft._forward_hooks = OrderedDict(), OrderedDict()
    soft.alpha_t, soft.form, soft.about, soft._differences = 1., FORMS[0], ABOUT[0], None
    return soft
