"""The life cycle of every hook that teaches a model while it trains."""
import inspect
import logging
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Type

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import nn

from mmskd.errors import UsageError
from mmskd.models.heads import HeadAdapter, TaughtHead, stage_weight
from mmskd.models.taps import Tap, has_objects, is_loss_pass, listeners

from ..taught_by import META_KEY, compare, record
from .preconditions import is_training, refuse_unknown_classes, refuse_unsupported


class TeachingHook(Hook):
    """Adds lessons to a model's losses in each training step, and sees that they are learnt.

    A method says in :meth:`set_up` what teaches the model, in :meth:`begin` and :meth:`end` what
    happens before and after a forward pass with ``mode='loss'``, and in :meth:`state` what a resume
    needs. This class attaches and detaches without a trace, lets no other forward pass through,
    raises where a head of ``self.heads_taught`` was not taught or a training step had no such
    forward pass, and knows whether the run was resumed. Errors of the models name heads and losses,
    and get the name of the hook here.
    """

    priority = 'NORMAL'
    state_key = ''
    """Under which :meth:`state` is saved in a checkpoint; empty for a method that needs none."""

    measures = True
    """Whether the next passes measure how far student and teacher disagree.

    In a Runner, those that are logged.
    """

    goes_with: Tuple[str, ...] = ()
    """The hooks that may teach the same model beside this one.

    One of the two says it of the other.
    """

    binding: Tuple[str, ...] = ()
    """Options that cannot change within a run, because what it trains depends on them."""

    joins_late = True
    """Whether it may begin to teach a run that is resumed, and was taught by no method so far."""

    def __new__(cls, *args, **kwargs):
        """Keep the options as they are given: a checkpoint says what it was taught by."""
        hook = super().__new__(cls)
        try:
            given = inspect.signature(cls.__init__).bind(hook, *args, **kwargs)
        except TypeError:  # __init__ says it better; a copy gets the options later
            return hook
        given.apply_defaults()
        hook.given_options = dict(list(given.arguments.items())[1:])
        return hook

    _asked_once: bool
    _proven: bool

    def __init__(self):
        self.heads_taught: List[TaughtHead] = []
        self._model: Optional[nn.Module] = None
        self._undo = ExitStack()
        self._resumed = False
        self._restored: Any = None
        self._reset()

    # What differs from method to method ----------------------------------------------------------

    def set_up(self, model: nn.Module, undo: ExitStack) -> None:
        """Bring what teaches to ``model``, and push onto ``undo`` how it is taken away again."""
        raise NotImplementedError

    def begin(self, model: nn.Module) -> bool:
        """A forward pass begins. Returns whether heads are taught in it."""
        raise NotImplementedError

    def end(self, losses: Dict[str, Any]) -> Dict[str, Any]:
        """It is over: the losses to return."""
        return losses

    def state(self) -> Optional[dict]:
        """What a resumed run needs beside the model; None if nothing."""
        return None

    def restore(self, state: dict) -> None:
        """Take up what :meth:`state` returned, after :meth:`attach`."""

    def refusals(self) -> int:
        """How often so far what the teacher said was not finite, and taught nothing."""
        return sum(head.refused for head in self.heads_taught)

    def terms(self) -> Iterable[str]:
        """The names of what :meth:`end` adds to the losses.

        Logged as 0 once nobody is asked any more.
        """
        return ()

    def announce(self, runner) -> List[str]:
        """Lines for the log, once attached."""
        return []

    # Without a Runner ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Teach ``model`` (or the model in its DDP wrapper) from here on.

        Raises:
            UsageError: If the hook is attached already, another one teaches the model, or it cannot
                be taught. It is then unchanged.
        """
        name = type(self).__name__
        if self._model is not None:
            raise UsageError(f'{name} is attached to a model already; call detach() first')
        model = unwrapped(model)
        for other in listeners(model):
            if isinstance(other, TeachingHook) and not go_together(type(self), type(other)):
                raise UsageError(f'{name}: another hook of mmskd teaches this model already, '
                                 f'{type(other).__name__}. Leave one of them in custom_hooks.')
        with self.named_errors(), ExitStack() as undo:
            undo.callback(self.heads_taught.clear)
            self.set_up(model, undo)
            before = model.register_forward_pre_hook(
                Tap(self._before_forward), with_kwargs=True, prepend=True)
            after = model.register_forward_hook(Tap(self._after_forward), with_kwargs=True)
            undo.callback(before.remove)
            undo.callback(after.remove)
            self._undo = undo.pop_all()
        self._model = model

    def teach(self, model: nn.Module, heads: Sequence[HeadAdapter], undo: ExitStack,
              soften: bool = False) -> None:
        """Watch these heads (see :class:`~mmskd.models.heads.TaughtHead`).

        Each is to be taught in each pass.
        """
        for adapter in heads:
            head = TaughtHead(adapter, stage_weight(model, adapter.name), soften)
            undo.callback(head.remove)
            self.heads_taught.append(head)

    def detach(self) -> None:
        """Leave the model as it was before :meth:`attach`; without effect if not attached."""
        self._undo.close()
        self._model = None
        self._reset()

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Errors of the models get the name of this hook."""
        try:
            yield
        except UsageError as error:
            prefix = f'{type(self).__name__}: '
            text = str(error)
            raise UsageError(text if text.startswith(prefix) else prefix + text) from error

    def silent(self, weight: float) -> bool:
        """Whether the teacher need not be asked in the pass that begins.

        Without a weight it is asked until each head was seen to be taught once: a head that loses
        the prediction on the way to its loss is to be refused now, not when the teacher begins to
        speak.

        Args:
            weight (float): Of the teacher.
        """
        if weight:
            return False
        self._proven = self._proven or _on_all_ranks(self._asked_once and all(
            head.taught for head in self.heads_taught))
        return self._proven

    def _reset(self) -> None:
        self._inside = self._taught = self._objects = self._asked_once = self._proven = False
        self._passes = self._refused = 0
        self.counts: Counter = Counter()

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._inside = False
        if not is_loss_pass(args, kwargs):
            self.rest()
            return
        self._passes += 1
        self._objects = has_objects(args, kwargs)
        for head in self.heads_taught:
            head.start(self.measures)
        self._inside = self._taught = self.begin(model)

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict,
                       losses: Any) -> Optional[Dict[str, Any]]:
        if not self._inside:
            return None
        self._inside = False
        losses = self.end(losses)
        for head in self.heads_taught:
            head.check(self._objects)
        self._asked_once = True
        if self.refusals() > self._refused:
            self._refused = self.refusals()
            self.count(
                'teacher_not_finite',
                'what the teacher says is not finite (NaN or infinity): it teaches '
                'nothing where that happens')
        return losses

    def count(self, name: str, line: str) -> None:
        """Count what should not happen, say it the first time, and log the number as ``name``."""
        if not self.counts[name]:
            # MMEngine shows the errors of all ranks, and the warnings of the first
            print_log(f'{type(self).__name__}: {line}. Counted in the log as {name}', 'current',
                      logging.ERROR)
        self.counts[name] += 1

    @property
    def taught_last(self) -> bool:
        """bool: Whether anybody was asked in the last forward pass."""
        return self._taught

    def rest(self) -> None:
        """A forward pass begins in which nothing is taught."""

    # In a Runner ---------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """Refuse what would fail later, or silently not teach."""
        if is_training(runner):
            refuse_unsupported(runner, self)
            refuse_unknown_classes(runner, self)

    def before_train(self, runner) -> None:
        """Attach, unless that was done before; take up the state of a run that is resumed."""
        if self._model is None:
            self.attach(runner.model)
        if self._restored is not None:
            self.restore(self._restored)
            self._restored = None
        for line in self.announce(runner):
            print_log(line, 'current')

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """A training step begins."""
        self._passes = 0

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """A training step is over: was there anything to learn in?"""
        if not self._passes:
            raise UsageError(
                f"{type(self).__name__}: a training step of "
                f"{type(unwrapped(runner.model)).__name__} did not call the model with mode='loss' "
                "(its own train_step computes the losses in another way), so "
                'nothing was taught. Let train_step call self._run_forward(data, mode="loss").')
        logged = {f'train/{name}' for name in self.terms()} & runner.message_hub.log_scalars.keys()
        # else the last value would be logged to the end
        for name in () if self._taught else logged:
            runner.message_hub.update_scalar(name, 0.)
        for name, number in self.counts.items():
            runner.message_hub.update_scalar(f'train/{name}', number)

    def after_train(self, runner) -> None:
        """Give the model back as it was."""
        self.detach()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save the state, beside the state dict of the model, and what the run is taught by."""
        note_teachers(runner, checkpoint)
        state = self.state() if self._model is not None else None
        if state is not None:
            checkpoint[self.state_key] = state

    def require_same_state(self) -> None:
        """Raise UsageError if a resumed run trains other things beside the model than it did.

        For methods whose :meth:`state` holds what the model's optimizer trains as well.
        """
        mine, theirs = ({key: tuple(value.shape) for key, value in (state or {}).items()}
                        for state in (self.state(), self._restored))
        different = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
        if different:
            key = different[0]
            raise UsageError(
                f'{type(self).__name__}: the checkpoint to resume from has {theirs.get(key, "no")} '
                f'{key} under {self.state_key}, where these options have {mine.get(key, "none")}. '
                'Set them back, or start from its weights with load_from, without resume.')

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the state of a run that is resumed.

        MMEngine leaves ``runner._resume`` True where it found nothing to resume from; it calls this
        method only with a checkpoint.

        Raises:
            UsageError: If that run was taught by another method.
        """
        if runner._resume:
            compare(runner, checkpoint, teaching_hooks(runner))
            self._resumed = True
            self._restored = checkpoint.get(self.state_key) if self.state_key else None


def _on_all_ranks(true_here: bool) -> bool:
    """A norm layer, or DDP, that averages over the ranks waits for all in the teacher's pass."""
    value = torch.tensor(float(true_here))
    all_reduce(value, 'min')
    return bool(value)


def go_together(first: Type[TeachingHook], second: Type[TeachingHook]) -> bool:
    """Whether two hooks may teach the same model."""
    return any(kind.__name__ in one.goes_with
               for one, other in ((first, second), (second, first)) for kind in other.__mro__)


def teaching_hooks(runner) -> Dict[str, TeachingHook]:
    """The hooks of a run that teach, by the names of their classes."""
    return {type(hook).__name__: hook for hook in runner.hooks if isinstance(hook, TeachingHook)}


def note_teachers(runner, checkpoint: dict) -> None:
    """Write into a checkpoint that is saved what the run is taught by."""
    checkpoint['meta'][META_KEY] = record(
        runner, {name: hook.given_options for name, hook in teaching_hooks(runner).items()})


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in its DDP wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model
