"""PS-KD: targets that are progressively softened with the model's own past prediction."""
import logging
import math
from contextlib import ExitStack
from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import LoggerHook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from mmskd.errors import UsageError
from mmskd.models.box_terms import BoxTerms, compares_boxes, require_boxes
from mmskd.models.distill_terms import (LogitTerms, build_losses, check_losses,
                                        compares_features)
from mmskd.models.finite import first_not_finite
from mmskd.models.heads import choose_heads
from mmskd.models.ranges import REFRESH, record_function
from mmskd.models.teachers import Mirror, PastSelf, mirror_of
from mmskd.models.teachers.compiled import PRECISIONS, teacher_to_ask
from mmskd.models.teachers.shared_prefix import SharedPrefix
from mmskd.options import Options
from mmskd.registry import HOOKS

from .teaching_hook import TeachingHook


@HOOKS.register_module()
class PSKDHook(TeachingHook):
    """Progressive self-knowledge distillation for any detector or top-down pose estimator, in one line
    of its config.

    Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021. In epoch t
    of T the target of each class score (SimCC distribution, heatmap) is ``(1 - alpha_t) y + alpha_t P_{t-1}`` with
    ``alpha_t = alpha_T * t / T``, where ``P_{t-1}`` is what the model as it was at the end of epoch t - 1
    predicts for the same augmented batch. In the first epoch there is no past self and the targets are
    hard. Box regression is untouched.

    What the past self's prediction is aligned to: the same priors for one-stage heads, the student's
    sampled RoIs for two-stage heads, the student's queries for DETR-like models (see
    :mod:`mmskd.models.teachers.mirror`); for pose estimators the same crop, keypoint by keypoint. The past self uses batch statistics where the student does (see
    :class:`~mmskd.models.teachers.past_self.PastSelf`).

    For the duration of the training a classification loss that is named by its stock type is replaced by
    its drop-in counterpart; the log says which. Checkpoints have the keys of the stock model. Works without a
    Runner too::

        hook = PSKDHook()
        hook.attach(model)
        hook.refresh_teacher()      # past self := a frozen copy of the current weights
        hook.alpha_t = 0.5
        losses = model(inputs, data_samples, mode='loss')
        hook.detach()

    Logged: ``pskd_alpha`` (alpha_t, 0 while there is no past self), and in the iterations that MMEngine's
    LoggerHook writes down ``pskd_disagreement`` (mean absolute difference between the class probabilities of the present and
    the past self, over all predictions that enter a loss).

    Args:
        alpha_T (float): Weight of the past self in the last epoch, in [0, 1]: how far the model is
            trusted at the end. Defaults to 0.8, the paper's choice.
        interval (int, optional): Refresh the past self every so many epochs, or iterations in an
            iteration-based loop. An "epoch" of an iteration-based loop is a matter of choice, so it has
            to be possible to make one. Defaults to None: 1 epoch, or as many iterations as one pass
            over the data set takes.
        precision (str, optional): Of the past self, which needs no gradient and can do with less than the
            student: 'bfloat16', 'float16', or None for the student's own, exactly. Defaults to 'auto': bfloat16
            where the device is fast in it (see :func:`~mmskd.models.teachers.compiled.fast_dtype`), else float32.
            All but None ask a copy that is compiled for inference (see
            :class:`~mmskd.models.teachers.compiled.CompiledTeacher`).
        heads (sequence[str], optional): Names of the classification heads whose targets are softened,
            e.g. ``['rpn_head', 'roi_head.bbox_head']`` to soften RPN objectness as well, or to leave
            out a head that PS-KD cannot reach. Defaults to None: all that name an object's class
            (``bbox_head``, ``roi_head.bbox_head`` with all stages), or places keypoints (``head``).
        loss (dict, optional): Config of a loss of predictions (``mmskd.NKDLoss``, ``mmskd.BoxDistillLoss``) that is added with weight
            alpha_t, where the targets stay hard. Defaults to None: the targets are softened.

    Attributes:
        alpha_t (float): The present weight of the past self. Set by the hook in a Runner.

    Raises:
        UsageError: If an option is out of range; in :meth:`attach` if a head or its loss cannot take a
            soft target; in the first iteration, if a head computes its class loss in a way that the past
            prediction cannot follow; before the run, if the runner's set-up rules PS-KD out.
    """

    state_key = 'mmskd_past_self'

    def __init__(self, alpha_T: float = 0.8, interval: Optional[int] = None,
                 precision: Optional[str] = 'auto', heads: Optional[Sequence[str]] = None,
                 loss: Optional[dict] = None):
        super().__init__()
        options = Options('PSKDHook')
        self.alpha_T = options.number('alpha_T', alpha_T, least=0, most=1)
        self.interval = options.whole('interval', interval, least=1, optional=True)
        self.precision = options.choice('precision', precision, PRECISIONS)
        self.heads = options.names('heads', heads, optional=True)
        self.loss = options.config('loss', loss, optional=True)
        self.alpha_t = 0.0
        self._past: Optional[PastSelf] = None
        self._asked: Any = None
        self._terms: Union[LogitTerms, BoxTerms, None] = None
        self._has_past = self._proven = False
        self._resuming = self._resting = False

    # Without a Runner --------------------------------------------------------------------------

    def set_up(self, model: nn.Module, undo: ExitStack) -> None:
        """Let the losses of classes or keypoints accept a past self."""
        past = PastSelf(model)
        heads = choose_heads(model, self.heads)
        self.teach(model, heads, undo, soften=True)
        self._mirror = mirror_of(model, self.heads_taught)
        undo.callback(self._mirror.remove)
        self._terms = self._loss_terms(undo)
        self._past, self._asked = past, teacher_to_ask(past.model, self.precision, heads,
                                                       boxes=isinstance(self._terms, BoxTerms))
        if isinstance(self._mirror, Mirror):
            self._mirror.share(SharedPrefix(model, past.model, self._asked.model))
        self._has_past = self._proven = False

    def detach(self) -> None:
        """Leave the model as it was before :meth:`attach`; without effect if not attached."""
        super().detach()
        self._past = self._asked = self._terms = None
        self._has_past = False

    def refresh_teacher(self) -> None:
        """Make the past self a frozen copy of the model's present weights.

        Weights that are not finite are refused: the past self remains what it was, or there is none.

        Raises:
            UsageError: If the hook is not attached.
            RunStopped: If the past selves of the ranks differ afterwards.
        """
        if self._past is None:
            raise UsageError('PSKDHook: there is no model to make a past self of; call attach(model) first')
        with record_function(REFRESH):
            bad = self._past.refresh()
        if bad is None:
            self._has_past = True
        else:
            self.count('pskd_snapshots_refused', f'{bad} is not finite (NaN or infinity), so the model is no '
                       f'teacher; {"the last good past self goes on" if self._has_past else "targets are hard"}')

    @property
    def alpha_t(self) -> float:
        """float: The present weight of the past self, in [0, 1]."""
        return self._alpha_t

    @alpha_t.setter
    def alpha_t(self, value: float) -> None:
        self._alpha_t = Options('PSKDHook').number('alpha_t', value, least=0, most=1)

    @property
    def teacher(self) -> Optional[nn.Module]:
        """nn.Module: The past self; None while there is none."""
        return self._past.model if self._has_past else None

    @property
    def disagreement(self) -> float:
        """float: Mean disagreement of past and present self in the last forward pass (see class)."""
        seen = [each for head in self.heads_taught for loss in head.losses.values()
                for each in loss.differences()]
        count = sum(number for _, number in seen)
        return float(sum(mean * number for mean, number in seen) / count) if count and self._has_past else 0.

    def begin(self, model: nn.Module) -> bool:
        """Ask the past self.

        The first pass asks the untrained past self, with weight 0: a head that loses the prediction on
        the way to its loss is to be refused now, not in the second epoch.
        """
        if not self._has_past:
            self._proven = self._proven or _on_all_ranks(all(head.taught for head in self.heads_taught))
            if self._proven:
                self.rest()
                return False
        alpha_t = self.alpha_t if self._has_past else 0.0
        for head in self.heads_taught:
            head.set_alpha(alpha_t if self._terms is None else 0.0)
        if self._terms is not None:
            self._terms.scale = alpha_t
        self._past.follow_modes()
        self._asked.follow()
        self._mirror.start(self._asked.model, self._asked.ask)
        return True

    def rest(self) -> None:
        """Ask nobody."""
        self._mirror.stop()

    def end(self, losses: Dict[str, Any]) -> Dict[str, Any]:
        """The losses, with those of the option ``loss``."""
        self._mirror.stop()
        return losses if self._terms is None else {**losses, **self._terms.take()}

    def refusals(self) -> int:
        """Also of the option ``loss``."""
        return super().refusals() + (0 if self._terms is None else self._terms.refused)

    def _loss_terms(self, undo: ExitStack) -> Union[LogitTerms, BoxTerms, None]:
        """What adds the option ``loss`` to the heads' own."""
        if self.loss is None:
            return None
        losses = build_losses('loss', [self.loss])
        if compares_features(losses[0]):
            raise UsageError('the past self teaches predictions; FeatureDistillLoss in the option `loss` '
                             'compares features, as DistillHook does')
        check_losses(losses, self.heads_taught)
        if compares_boxes(losses[0]):
            require_boxes(self.heads_taught)
            terms: Union[LogitTerms, BoxTerms] = BoxTerms(self.heads_taught, losses, self._mirror)
        else:
            terms = LogitTerms(self.heads_taught, losses, gt_weight=1.)
        undo.callback(terms.remove)
        return terms

    # In a Runner -------------------------------------------------------------------------------

    def before_train(self, runner) -> None:
        """Attach; take up the past self of the checkpoint that the run is resumed from."""
        self._by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
        if self._by_epoch:
            self._every, length = self.interval or 1, runner.max_epochs
            self._total = length
        else:
            self._every = self.interval or _steps_per_pass(runner.train_dataloader)
            length = runner.max_iters
            self._total = math.ceil(length / self._every)
        self._length, self._resuming = length, True
        super().before_train(runner)

    def before_train_epoch(self, runner) -> None:
        """Epoch loop: at the start of an epoch the student is the past self of that epoch."""
        if self._by_epoch:
            self._begin_interval(runner.epoch)
            self.alpha_t = self.alpha_T * (runner.epoch + 1) / self._total
        self._resting = False

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Iteration loop: the same every ``interval`` iterations."""
        super().before_train_iter(runner, batch_idx, data_batch)
        self.measures = _is_logged(runner, batch_idx)
        if not self._by_epoch:
            self._begin_interval(runner.iter)
            self.alpha_t = self.alpha_T * (runner.iter // self._every + 1) / self._total
        self._resting = False

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log; remember whether the student is now what the next past self will be."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        alpha_t = self.alpha_t if self._has_past else 0.0
        runner.message_hub.update_scalar('train/pskd_alpha', alpha_t)
        if self.measures:
            runner.message_hub.update_scalar('train/pskd_disagreement', self.disagreement)
        if not self._by_epoch:
            self._resting = (runner.iter + 1) % self._every == 0

    def after_train_epoch(self, runner) -> None:
        """As :meth:`after_train_iter`, for the epoch loop."""
        if self._by_epoch:
            self._resting = (runner.epoch + 1) % self._every == 0

    def state(self) -> Optional[dict]:
        """The past self, unless the weights that are saved beside it are what it will be."""
        if not self._has_past or self._resting and first_not_finite(self._model) is None:
            return None
        return self._past.state_dict()

    def restore(self, state: dict) -> None:
        """Go on with the past self of the run that is resumed."""
        self._past.load_state_dict(state)
        self._has_past = True

    def announce(self, runner) -> List[str]:
        """What is softened, how much and how often."""
        unit = 'epoch' if self._by_epoch else 'iteration'
        if self._length <= self._every:
            print_log('PS-KD: the run ends before the past self is refreshed for the first time, so '
                      'all its targets are hard. Train for longer or set a smaller `interval`.',
                      'current', logging.WARNING)
        means = 'soft targets' if self.loss is None else f'alpha_t * {self.loss["type"]}'
        return [
            f'PS-KD: alpha_T {self.alpha_T}; the past self is refreshed every {self._every} {unit}(s) of '
            f'{self._length}, and runs in {_name_of(self._asked.dtype)}',
            *(f'PS-KD: {means} for {head.describe()}' for head in self.heads_taught)
        ]

    def _begin_interval(self, finished: int) -> None:
        """Refresh if it is time to, after so many finished epochs (iterations)."""
        resuming, self._resuming = self._resuming, False
        if resuming and self._has_past and self._by_epoch:
            return  # this epoch was interrupted, and its past self came with the checkpoint
        due = finished > 0 and finished % self._every == 0
        overdue = resuming and not self._has_past and finished > self._every
        if due or overdue:
            self.refresh_teacher()


def _is_logged(runner, batch_idx: int) -> bool:
    """Whether LoggerHook writes this iteration down. Measuring takes a pass over all predictions and a wait."""
    loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
    last = batch_idx + 1 == len(runner.train_dataloader) or runner.iter + 1 == runner.max_iters
    return last or any((batch_idx + 1) % hook.interval == 0 or (runner.iter + 1) % hook.interval == 0
                       for hook in loggers)


def _name_of(dtype: Optional[torch.dtype]) -> str:
    return str(dtype).rpartition('.')[2] if dtype else 'the precision of the student'


def _on_all_ranks(true_here: bool) -> bool:
    """A norm layer that averages over the ranks waits for all of them in the past self's pass too."""
    value = torch.tensor(float(true_here))
    all_reduce(value, 'min')
    return bool(value)


def _steps_per_pass(loader) -> int:
    """Iterations in which all ranks together see the data set once."""
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    ranks = get_world_size() if isinstance(sampler, InfiniteSampler) else 1
    return max(1, math.ceil(len(loader) / ranks))
