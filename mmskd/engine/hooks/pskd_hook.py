"""PS-KD: targets that are progressively softened with the model's own past prediction."""
import logging
import math
from contextlib import ExitStack
from typing import Any, Dict, List, Optional, Sequence, Union

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import LoggerHook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from mmskd.errors import UsageError
from mmskd.models.box_terms import BoxTerms, compares_boxes, require_boxes
from mmskd.models.distill_terms import LogitTerms, build_losses, check_losses, compares_features
from mmskd.models.finite import first_not_finite
from mmskd.models.heads import (
    HeadAdapter,
    TaughtHead,
    choose_heads,
    is_detector,
    is_pose_estimator,
)
from mmskd.models.heads.adapter import require_teachable_model
from mmskd.models.heads.classifier import classifier_head
from mmskd.models.losses.soft_target import ABOUT, FORMS
from mmskd.models.ranges import REFRESH, record_function
from mmskd.models.teachers import Mirror, PastSelf, mirror_of
from mmskd.models.teachers.compiled import PRECISIONS, name_of, teacher_to_ask
from mmskd.models.teachers.shared_prefix import SharedPrefix
from mmskd.options import Options
from mmskd.registry import HOOKS

from ..weight_schedule import WeightSchedule
from .best_validated import BestValidated
from .preconditions import is_training
from .teaching_hook import TeachingHook

PASTS = 'epoch', 'average', 'best'
MOMENTUM = 0.98


@HOOKS.register_module()
class PSKDHook(TeachingHook):
    """Progressive self-knowledge distillation, in one line of a config.

    It is for any detector, top-down pose estimator or softmax classifier.

    Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021. In
    epoch t of T the target of each class score (SimCC distribution, heatmap) is
    ``(1 - alpha_t) y + alpha_t P_{t-1}`` with ``alpha_t = alpha_T * t / T``, where ``P_{t-1}`` is
    what the model as it was at the end of epoch t - 1 predicts for the same augmented batch. In the
    first epoch there is no past self and the targets are hard. Box regression is untouched.

    What the past self's prediction is aligned to: the same priors for one-stage heads, the
    student's sampled RoIs for two-stage heads, the student's queries for DETR-like models (see
    :mod:`mmskd.models.teachers.mirror`); for pose estimators the same crop, keypoint by keypoint.
    The past self uses batch statistics where the student does (see
    :class:`~mmskd.models.teachers.past_self.PastSelf`).

    For the duration of the training a classification loss that is named by its stock type is
    replaced by its drop-in counterpart; the log says which. Checkpoints have the keys of the stock
    model. Works without a Runner too::

        hook = PSKDHook()
        hook.attach(model)
        hook.refresh_teacher()      # past self := a frozen copy of the current weights
        hook.alpha_t = 0.5
        losses = model(inputs, data_samples, mode='loss')
        hook.detach()

    Logged: ``pskd_alpha`` (alpha_t, 0 while there is no past self), and in the iterations that
    MMEngine's LoggerHook writes down ``pskd_disagreement_percent`` (mean absolute difference
    between the class probabilities of the present and the past self, over all predictions that
    enter a loss; in percent, since the log has four decimals).

    Args:
        alpha_T (float): Weight of the past self in the last epoch, in [0, 1]: how far the model is
            trusted at the end. Defaults to 0.8, the paper's choice.
        interval (int, optional): Refresh the past self every so many epochs, or iterations in an
            iteration-based loop, which has no epochs of its own. Defaults to None: 1 epoch, or as
            many iterations as one pass over the data set takes.
        precision (str, optional): Of the past self, which needs no gradient and can do with less
            than the student: 'bfloat16', 'float16', or None for the student's own, exactly.
            Defaults to 'auto': bfloat16 where the device is fast in it (see
            :func:`~mmskd.models.teachers.compiled.fast_dtype`), else float32. All but None ask a
            copy that is compiled for inference (see
            :class:`~mmskd.models.teachers.compiled.CompiledTeacher`).
        heads (sequence[str], optional): Names of the classification heads whose targets are
            softened, e.g. ``['rpn_head', 'roi_head.bbox_head']`` to soften RPN objectness as well,
            or to leave out a head that PS-KD cannot reach. Defaults to None: all that name an
            object's class (``bbox_head``, ``roi_head.bbox_head`` with all stages), or places
            keypoints (``head``).
        loss (dict, optional): Config of a loss of predictions (``mmskd.NKDLoss``,
            ``mmskd.BoxDistillLoss``) that is added with weight alpha_t, where the targets stay
            hard. Defaults to None: the targets are softened.
        form (str, optional): How hard target and past self meet in each loss: 'paper' (the target
            above), 'kl', 'rescaled' or 'added' (see
            :func:`~mmskd.models.losses.functional.soft_loss`). Defaults to None: 'rescaled' in
            the losses of detectors, of SimCC and of classifiers, 'paper' in all others (heatmaps).
        about (str): Whose targets are softened: 'all'; 'positives', those with an object (a visible
            keypoint) and those to which the past self gives a class with a probability of 0.1 or
            more; 'confidence', all, each with alpha_t times the past self's own largest probability
            of a class, or the height of its peak beside the labels'. Of a detector's softmax, and
            of box heads on RoIs, the last class is background, and counts in neither. Defaults
            to 'all'.
        schedule (str): How alpha_t moves: 'rising' to alpha_T, 'constant', 'falling' or 'cosine'
            from it (see :class:`~mmskd.engine.weight_schedule.WeightSchedule`). Defaults to
            'rising', the paper's.
        begin (int): How many epochs (intervals, in an iteration-based loop) have hard targets at
            first; the schedule counts from there. Defaults to 0.
        stop (int, optional): After how many epochs (intervals) the targets are hard again. Defaults
            to None.
        past (str): Who the past self is. 'epoch': the model at the end of the last interval, as in
            the paper. 'average': an exponential average of its weights, which starts from those at
            the end of the first interval and moves after each iteration. 'best': the best model
            validated so far, by the (first) metric that CheckpointHook's ``save_best`` names; with
            EMAHook its average, which is what is validated. There is none before the first
            validation. Defaults to 'epoch'.
        past_momentum (float, optional): With ``past='average'``, the share of the average that an
            iteration keeps, in [0, 1). Defaults to None: 0.98.
        loss_module (str, optional): Of a classifier: the name of the module that computes its
            softmax loss when it is called with logits and labels. Defaults to None:
            'head.loss_module', where mmpretrain has it.

    Attributes:
        alpha_t (float): The present weight of the past self. Set by the hook in a Runner.

    Raises:
        UsageError: If an option is out of range; in :meth:`attach` if a head or its loss cannot
            take a soft target; in the first iteration, if a head computes its class loss in a way
            that the past prediction cannot follow; before the run, if the runner's set-up rules
            PS-KD out.
    """

    state_key = 'mmskd_past_self'

    def __init__(self, alpha_T: float = 0.8, interval: Optional[int] = None,
                 precision: Optional[str] = 'auto', heads: Optional[Sequence[str]] = None,
                 loss: Optional[dict] = None, form: Optional[str] = None, about: str = 'all',
                 schedule: str = 'rising', begin: int = 0, stop: Optional[int] = None,
                 past: str = 'epoch', past_momentum: Optional[float] = None,
                 loss_module: Optional[str] = None):
        super().__init__()
        options = Options('PSKDHook')
        self.alpha_T = options.number('alpha_T', alpha_T, least=0, most=1)
        self.interval = options.whole('interval', interval, least=1, optional=True)
        self.precision = options.choice('precision', precision, PRECISIONS)
        self.heads = options.names('heads', heads, optional=True)
        self.loss = options.config('loss', loss, optional=True)
        self.past = options.choice('past', past, PASTS)
        momentum = options.number('past_momentum', past_momentum, least=0, below=1, optional=True)
        if momentum is not None and past != 'average':
            raise UsageError(
                f"PSKDHook: past_momentum is of past='average', and past is {past!r}; leave it out")
        if interval is not None and past == 'best':
            raise UsageError(
                "PSKDHook: interval has no part in past='best', which changes with the validations "
                '(train_cfg.val_interval); leave it out')
        self.loss_module = options.text('loss_module', loss_module, optional=True)
        self.past_momentum = MOMENTUM if momentum is None else momentum
        self.form = options.choice('form', form, (*FORMS, None))
        self.about = options.choice('about', about, ABOUT)
        self.schedule = WeightSchedule('PSKDHook', schedule, begin, stop)
        if loss is not None and (form, about) != (None, ABOUT[0]):
            raise UsageError(
                'PSKDHook: form and about say how targets are softened; with the option `loss` '
                'they stay hard. Leave out the one or the other.')
        self._speaks = True
        self.alpha_t = 0.0
        self._past: Optional[PastSelf] = None
        self._best: Optional[BestValidated] = None
        self._asked: Any = None
        self._terms: Union[LogitTerms, BoxTerms, None] = None
        self._has_past = False
        self._resuming = self._resting = False
        self._by_epoch: Optional[bool] = None  # without a Runner
        self._asked_to_refresh = False

    # Without a Runner --------------------------------------------------------------------------

    def set_up(self, model: nn.Module, undo: ExitStack) -> None:
        """Let the losses of classes or keypoints accept a past self."""
        past = PastSelf(model)
        heads = self._choose_heads(model)
        self.teach(model, heads, undo, soften=True)
        for head in self.heads_taught if self.loss is None else ():
            head.set_form(self.form, self.about)
        self._mirror = mirror_of(model, self.heads_taught)
        undo.callback(self._mirror.remove)
        self._terms = self._loss_terms(undo)
        self._past, self._asked = past, teacher_to_ask(past.model, self.precision, heads,
                                                       boxes=isinstance(self._terms, BoxTerms))
        if isinstance(self._mirror, Mirror):
            self._mirror.share(SharedPrefix(model, past.model, self._asked.model))
        self._has_past, self._asked_to_refresh, self._speaks = False, False, True

    def detach(self) -> None:
        """Leave the model as it was before :meth:`attach`; without effect if not attached."""
        super().detach()
        self._past = self._asked = self._terms = self._best = None
        self._has_past = False

    def refresh_teacher(self) -> None:
        """Make the past self a frozen copy of the model's present weights.

        Weights that are not finite are refused: the past self remains what it was, or there is
        none.

        Raises:
            UsageError: If the hook is not attached.
            RunStopped: If the past selves of the ranks differ afterwards.
        """
        self._remember()

    def average_teacher(self) -> None:
        """Move the past self towards the model's present weights, by ``past_momentum``.

        After each training step, with ``past='average'``, once :meth:`refresh_teacher` has made a
        past self. Weights that are not finite are refused, as there.

        Raises:
            UsageError: If there is no past self to move.
        """
        if not self._has_past:
            raise UsageError(
                'PSKDHook: there is no past self to average with; call refresh_teacher() first')
        with record_function(REFRESH):
            self._accept(self._past.average(self.past_momentum))

    def _remember(self, model: Optional[nn.Module] = None) -> None:
        """Make the past self a copy of a model, or of the one that is taught."""
        if self._past is None:
            raise UsageError(
                'PSKDHook: there is no model to make a past self of; call attach(model) first')
        self._asked_to_refresh = True
        with record_function(REFRESH):
            accepted = self._accept(self._past.refresh(model))
        self._has_past = self._has_past or accepted

    def _accept(self, bad: Optional[str]) -> bool:
        """Whether weights were taken over; count it if not, because of ``bad``."""
        if bad is not None:
            self.count(
                'pskd_snapshots_refused',
                f'{bad} is not finite (NaN or infinity), so the model is no '
                'teacher; '
                f'{"the last good past self goes on" if self._has_past else "targets are hard"}'
            )
        return bad is None

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
        """float: Mean disagreement of past and present self in the last pass (see class)."""
        seen = [each for head in self.heads_taught for loss in head.losses.values()
                for each in loss.differences()]
        count = sum(number for _, number in seen)
        return float(sum(mean * number
                         for mean, number in seen) / count) if count and self._has_past else 0.

    def begin(self, model: nn.Module) -> bool:
        """Ask the past self.

        The first pass asks the untrained past self, with weight 0: a head that loses the prediction
        on the way to its loss is to be refused now, not in the second epoch.
        """
        if self.alpha_t and self._by_epoch is None and not self._asked_to_refresh:
            raise UsageError(
                f'PSKDHook: alpha_t is {self.alpha_t}, and there is no past self that it could '
                'weigh; call refresh_teacher() first')
        if self.silent(self._has_past and self._speaks):
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

    def terms(self) -> List[str]:
        """Those of the option ``loss``."""
        return [] if self._terms is None else self._terms.names

    def refusals(self) -> int:
        """Also of the option ``loss``."""
        return super().refusals() + (0 if self._terms is None else self._terms.refused)

    def _choose_heads(self, model: nn.Module) -> List[HeadAdapter]:
        if self.heads is None and not (is_detector(model) or is_pose_estimator(model)):
            require_teachable_model(model)
            return [classifier_head(model, self.loss_module or 'head.loss_module')]
        if self.loss_module is not None:
            raise UsageError(
                f'loss_module={self.loss_module!r} names the loss of a classifier; the heads of '
                f'{type(model).__name__} are named by `heads`. Leave out one of the two')
        return choose_heads(model, self.heads)

    def _loss_terms(self, undo: ExitStack) -> Union[LogitTerms, BoxTerms, None]:
        """What adds the option ``loss`` to the heads' own."""
        if self.loss is None:
            return None
        losses = build_losses('loss', [self.loss])
        if compares_features(losses[0]):
            raise UsageError(
                'the past self teaches predictions; FeatureDistillLoss in the option `loss` '
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

    def before_run(self, runner) -> None:
        """Refuse also where nothing says which model is the best."""
        super().before_run(runner)
        if self.past == 'best' and is_training(runner):
            with self.named_errors():
                BestValidated(runner)

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
        self.schedule.check(self._total, self._unit)
        self._length, self._resuming = length, True
        self._best = BestValidated(runner) if self.past == 'best' else None
        super().before_train(runner)

    def before_train_epoch(self, runner) -> None:
        """Epoch loop: at the start of an epoch the student is the past self of that epoch."""
        if self._by_epoch:
            self._begin_interval(runner.epoch)
            self._set_alpha(runner.epoch)
        self._resting = False

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Iteration loop: the same every ``interval`` iterations."""
        super().before_train_iter(runner, batch_idx, data_batch)
        self.measures = _is_logged(runner, batch_idx)
        if not self._by_epoch:
            self._begin_interval(runner.iter)
            self._set_alpha(runner.iter // self._every)
        self._resting = False

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log; remember whether the student is now what the next past self will be."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.past == 'average' and self._has_past:
            self.average_teacher()
        alpha_t = self.alpha_t if self._has_past else 0.0
        runner.message_hub.update_scalar('train/pskd_alpha', alpha_t)
        if self.measures:
            runner.message_hub.update_scalar('train/pskd_disagreement_percent',
                                             100 * self.disagreement)
        if not self._by_epoch:
            self._resting = (runner.iter + 1) % self._every == 0

    def after_val_epoch(self, runner, metrics: Optional[Dict[str, Any]] = None) -> None:
        """Refuse to wait for a metric that does not come."""
        if self._best is not None:
            with self.named_errors():
                self._best.check(metrics or {})

    def after_train_epoch(self, runner) -> None:
        """As :meth:`after_train_iter`, for the epoch loop."""
        if self._by_epoch:
            self._resting = (runner.epoch + 1) % self._every == 0

    def state(self) -> Optional[dict]:
        """The past self, unless the weights that are saved beside it are what it will be.

        Of the best, which need not be those, an empty state says so.
        """
        if self._best is not None and self._best.is_new and first_not_finite(
                self._best.model) is None:
            return {}
        rests = self.past == 'epoch' and self._resting and first_not_finite(self._model) is None
        if not self._has_past or rests:
            return None
        return self._past.state_dict()

    def restore(self, state: dict) -> None:
        """Go on with the past self of the run that is resumed."""
        if state:
            self._past.load_state_dict(state)
            self._has_past = True
        elif self._best is not None:
            self._best.put_back()

    def announce(self, runner) -> List[str]:
        """What is softened, how much and how often."""
        unit = 'epoch' if self._by_epoch else 'iteration'
        first, sooner = (self._every, 'a smaller `interval`') if self._best is None else (
            self._best.first, 'an earlier train_cfg.val_begin, a smaller val_interval')
        stop = (self.schedule.stop or self._total) * (1 if self._by_epoch else self._every)
        if not self.alpha_T:
            print_log('PS-KD: alpha_T is 0, so all targets are hard', 'current', logging.WARNING)
        elif min(stop, self._length) <= first:
            print_log(
                'PS-KD: the run ends, or stops to soften its targets, before the past self is '
                'refreshed for the first time, so all its targets are hard. Train for longer, or '
                f'set {sooner} or '
                'a larger `stop`.', 'current', logging.WARNING)
        when, usual = (schedule.describe(self._unit) for schedule in (
            self.schedule, WeightSchedule('PSKDHook', 'rising')))
        return [
            f'PS-KD: alpha_T {self.alpha_T}; the past self is {self._past_in_words(unit)}, '
            f'and runs in {name_of(self._asked.dtype)}',
            *([] if when == usual else [f'PS-KD: alpha_t is {when}']),
            *(f'PS-KD: {self._means(head)} for {head.describe()}' for head in self.heads_taught)
        ]

    def _means(self, head: TaughtHead) -> str:
        """In words, what teaches a head."""
        if self.loss is not None:
            return f'alpha_t * {self.loss["type"]}'
        forms = sorted({loss.form for loss in head.losses.values()} - {FORMS[0]})
        form = f' in the form {" and ".join(map(repr, forms))}' if forms else ''
        about = f' about {self.about!r}' if self.about != ABOUT[0] else ''
        return f'soft targets{form}{about}'

    def _past_in_words(self, unit: str) -> str:
        if self.past == 'average':
            return (
                f'an average of the weights, of which each iteration keeps {self.past_momentum:g}, '
                f'from {unit} {self._every} of {self._length} on')
        if self._best is not None:
            return f'the best model validated so far, by {self._best.metric}'
        return f'refreshed every {self._every} {unit}(s) of {self._length}'

    @property
    def _unit(self) -> str:
        """What the schedule counts."""
        return 'epoch' if self._by_epoch else 'interval'

    def _set_alpha(self, finished: int) -> None:
        """The weight after so many finished epochs (intervals)."""
        weight = self.schedule.at(finished, self._total)
        self.alpha_t, self._speaks = self.alpha_T * weight, weight > 0

    def _begin_interval(self, finished: int) -> None:
        """Refresh if it is time to, after so many finished epochs (iterations)."""
        resuming, self._resuming = self._resuming, False
        if self._best is not None:
            best = self._best.take()
            if best is not None:
                self._remember(best)
            return
        if self.past == 'average' and self._has_past:
            if finished % self._every == 0:
                self._past.require_agreement()
            return
        if resuming and self._has_past and self._by_epoch:
            return  # this epoch was interrupted, and its past self came with the checkpoint
        due = finished > 0 and finished % self._every == 0
        overdue = resuming and not self._has_past and finished > self._every
        if due or overdue:
            self.refresh_teacher()


def _is_logged(runner, batch_idx: int) -> bool:
    """Whether LoggerHook writes this iteration down.

    Measuring takes a pass over all predictions and a wait.
    """
    loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
    last = batch_idx + 1 == len(runner.train_dataloader) or runner.iter + 1 == runner.max_iters
    return last or any(
        (batch_idx + 1) % hook.interval == 0 or (runner.iter + 1) % hook.interval == 0
        for hook in loggers)


def _steps_per_pass(loader) -> int:
    """Iterations in which all ranks together see the data set once."""
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    ranks = get_world_size() if isinstance(sampler, InfiniteSampler) else 1
    return max(1, math.ceil(len(loader) / ranks))
