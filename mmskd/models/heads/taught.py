"""A head while a teacher teaches it."""
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError

from ..losses.mining import MinedLoss
from ..losses.soft_target import SoftTargetLoss, soft_class, soft_classes_like
from ..pairing import has_pair, map_leaves, student_side
from ..taps import Tap
from .adapter import HeadAdapter, require_teachable

PATIENCE = 10  # passes with objects in which a head that may rest has nothing to classify


class TaughtHead:
    """Watches the losses of a head, and lets them accept a soft target, until :meth:`remove`.

    A loss that is called where no gradient is asked for decides something (which samples are the
    hardest, which priors an object gets): it sees the hard target alone, as in a training without a
    teacher.

    Args:
        adapter (HeadAdapter): What is known of the head.
        weight (float): What the model multiplies its losses by. Defaults to 1.
        soften (bool): Whether its losses are to take a soft target: stock losses change their class
            to the drop-in counterpart in place, so that the head, its hooks and its state dict stay
            as they are. Defaults to False: they are only watched.

    Attributes:
        losses (dict): Its losses of classes or keypoints, nn.Module, by their names in the model.
        overrides (dict): Torch functions that it calls in place of a loss module, and what to call
            instead.
        calls (int): Calls of its losses in the latest forward pass, without those that only choose
            samples.
        paired (int): How many of these got the teacher's prediction along.

    Raises:
        UsageError: If it cannot be taught, or a loss has no soft-target form; names head and loss
            and says what to do.
    """

    def __init__(self, adapter: HeadAdapter, weight: float = 1., soften: bool = False):
        require_teachable(adapter)
        self.adapter, self.name, self.head = adapter, adapter.name, adapter.head
        self.weight = weight
        functions, modules = adapter.loss_functions(), adapter.target_losses()
        if not functions and not modules:
            raise UsageError(
                f'{self} has no loss_cls or loss_module, by which it could be given a teacher. '
                'Name the heads that have one in the option `heads`.')
        self._stock_classes: Dict[nn.Module, type] = {}
        if soften:
            for key, loss in modules.items():
                self._require_soft_form(key, loss)
        self.losses: Dict[str, nn.Module] = {
            f'{self.name}.{key}' if self.name else key: loss for key, loss in modules.items()}
        self.losses.update({f'{self.name}.{function.__name__}()': loss
                            for function, loss in functions.items()})
        self.overrides = {function: _as_function(loss) for function, loss in functions.items()}
        for loss in self.losses.values() if soften else ():
            if not isinstance(loss, SoftTargetLoss):
                self._stock_classes[loss] = type(loss)
                loss.__class__ = soft_class(loss)
        self._handles = [loss.register_forward_pre_hook(Tap(self._before_loss), with_kwargs=True)
                         for loss in self.losses.values()]
        if soften:
            self._handles += [loss.register_forward_hook(Tap(self._after_loss), with_kwargs=True)
                              for loss in self.losses.values()]
        self._taught, self._idle = False, 0
        self.start()

    def __str__(self) -> str:
        return str(self.adapter)

    @property
    def taught(self) -> bool:
        """bool: Whether its losses have met the teacher's prediction once."""
        return self._taught

    @property
    def refused(self) -> int:
        """int: Calls so far in which what the teacher said was not finite."""
        return sum(loss._refused
                   for loss in self.losses.values()
                   if isinstance(loss, SoftTargetLoss))

    def start(self, measure: bool = True) -> None:
        """A forward pass begins: count anew.

        ``measure`` how far student and teacher disagree in it.
        """
        self.calls = self.paired = 0
        for loss in self.losses.values():
            if isinstance(loss, SoftTargetLoss):
                loss.reset(measure)

    def check(self, objects: bool = True) -> None:
        """Whether the forward pass that is over has taught this head.

        Args:
            objects (bool): Whether there was anything to classify in the batch. Defaults to True.

        Raises:
            UsageError: If one of its losses did not get the teacher's prediction, or none was
                called.
        """
        if self.paired < self.calls:
            raise UsageError(
                f'{self}: only {self.paired} of {self.calls} calls of {self._loss_names()} got the '
                "teacher's prediction along with its own. The head computes something between its "
                f'scores and its loss; {self.adapter.way_out}.')
        self._taught = self._taught or self.calls > 0
        if self._taught or not objects or not torch.is_grad_enabled():
            return
        self._idle += 1
        if self._idle >= (PATIENCE if self.adapter.rests else 1):
            raise UsageError(
                f'{self} never called {self._loss_names()}: it computes its loss in another way, '
                f'where no teacher can reach it; {self.adapter.way_out}.')

    def set_alpha(self, alpha_t: float) -> None:
        """The weight of the teacher in the targets of softened losses."""
        for loss in self.losses.values():
            loss.alpha_t = alpha_t

    def set_form(self, form: Optional[str], about: str) -> None:
        """How hard target and teacher meet in softened losses, and whose targets are softened.

        Args:
            form (str, optional): None: the usual one of each loss.
            about (str): As in PSKDHook.

        Raises:
            UsageError: If one of them knows no such thing.
        """
        for key, loss in self.losses.items():
            chosen = form or loss.usual_form
            for option, value, known in (
                ('form', chosen, loss.forms), ('about', about, loss.abouts)):
                if value not in known:
                    raise UsageError(
                        f'{self}: its {key.rpartition(".")[2]}, {type(loss).__name__}, knows no '
                        f'{option} {value!r}, only {", ".join(map(repr, known))}. Set {option}='
                        f'{known[0]!r}, or leave this head out with the option `heads`.')
            loss.form, loss.about, loss.foreground = chosen, about, self.adapter.foreground

    def remove(self) -> None:
        """Leave the head as it was."""
        for handle in self._handles:
            handle.remove()
        for loss in self.losses.values():
            for key in vars(SoftTargetLoss)['__annotations__']:
                vars(loss).pop(key, None)
        for loss, stock_class in self._stock_classes.items():
            loss.__class__ = stock_class

    def describe(self) -> str:
        """One line for the log: its losses, and what replaces them."""
        swaps = [f'{stock.__name__} -> {type(loss).__name__}'
                 for loss, stock in self._stock_classes.items()]
        return f'{self}: {", ".join(swaps) or self._loss_names()}'

    def _before_loss(self, loss: nn.Module, args: tuple, kwargs: dict):
        if not args:
            return None
        if not _wants_gradient(args[0]) or self.adapter.is_mining(kwargs):
            return map_leaves(student_side, args), kwargs
        self.calls += 1
        self.paired += has_pair(args[0])
        return None

    def _after_loss(self, loss: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """A head that goes on with the loss of each sample may choose by it: by the hard one."""
        if not (isinstance(output, Tensor) and output.numel() > 1 and loss.alpha_t
                and has_pair(args)):
            return None
        with torch.no_grad():
            hard = loss.forward(*map_leaves(student_side, args), **kwargs)
        return MinedLoss.of(output, hard)

    def _require_soft_form(self, key: str, loss: nn.Module) -> None:
        if soft_class(loss) is None:
            raise UsageError(
                f'{self}: its {key}, {type(loss).__name__}, has no soft-target form. '
                f'{self.adapter.advice(loss, soft_classes_like(loss))}')

    def _loss_names(self) -> str:
        return ' or '.join(sorted({type(loss).__name__ for loss in self.losses.values()}))


def _wants_gradient(prediction: Any) -> bool:
    found: List[bool] = []
    map_leaves(lambda leaf: found.append(isinstance(leaf, Tensor) and leaf.requires_grad),
               prediction)
    return torch.is_grad_enabled() and any(found)


def _as_function(loss: nn.Module) -> Callable:
    """A loss module in place of ``torch.nn.functional.cross_entropy``, as SSD's head calls it."""

    def cross_entropy(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None,
                      reduction='mean', label_smoothing=0.0):
        if reduction != 'none' or label_smoothing or not weight is size_average is reduce is None:
            raise UsageError(
                "a soft target for torch.nn.functional.cross_entropy: only reduction='none' is "
                'supported, without weight and label_smoothing')
        return loss(input, target, reduction_override='none', ignore_index=ignore_index)

    return cross_entropy
