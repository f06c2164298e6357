"""Distillation from another model's checkpoint: DWPose's first stage, and logits of detectors."""
from contextlib import ExitStack
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from mmskd.errors import UsageError
from mmskd.models.box_terms import BoxTerms, compares_boxes, require_boxes
from mmskd.models.distill_terms import (
    FeatureTerm,
    LogitTerms,
    build_losses,
    check_losses,
    compares_features,
    connect_features,
    default_losses,
)
from mmskd.models.finite import require_finite
from mmskd.models.heads import HeadAdapter, choose_heads
from mmskd.models.teachers import FixedModes, mirror_of
from mmskd.models.teachers.answering import answering, features_from
from mmskd.models.teachers.compiled import PRECISIONS, name_of, teacher_to_ask
from mmskd.models.teachers.frozen import device_of
from mmskd.models.teachers.option import Given, TeacherOption
from mmskd.models.teachers.translated import TranslatedTeacher
from mmskd.options import Options
from mmskd.registry import HOOKS

from ..extra_parameters import join_optimizer, wrap_for_ddp
from ..weight_schedule import WeightSchedule
from .preconditions import is_training
from .teacher_paths import config_folder, keep_teacher_paths
from .teaching_hook import TeachingHook


@HOOKS.register_module()
class DistillHook(TeachingHook):
    """A trained teacher adds terms to the student's losses; the student stays a stock model.

    Yang et al., "Effective Whole-body Pose Estimation with Two-stages Distillation" (DWPose), ICCVW
    2023, first stage, for every SimCC and heatmap head of MMPose and for the detectors that
    PSKDHook supports: ``L = L_ori + r(t) (L_feature + L_logit)`` with ``r(t) = 1 - (t - 1) / T`` in
    epoch t of T. Visible and invisible keypoints count alike in ``L_logit``. The teacher is in eval
    mode all the time, sees the student's batch, and is asked about the student's priors, RoIs or
    queries (see :mod:`mmskd.models.teachers.mirror`).

    The teacher and the projections of the features are no part of the student: its checkpoint has
    the keys of the stock model. The projections are trained by the student's optimizer and saved
    for a resume under the key ``mmskd_distill``.

    With the student's own previous generation as the teacher ("born-again", Furlanello et al., ICML
    2018), a constant mix of hard and soft target is ``schedule='constant', gt_weight=1 - a`` and a
    logit loss of weight ``a``.

    Works without a Runner too::

        hook = DistillHook(teacher=dict(config='mmpose::...', checkpoint='teacher.pth'))
        hook.attach(model)
        losses = model(inputs, data_samples, mode='loss')
        hook.detach()

    (then ``hook.losses``, which holds the projections, is to be given to the optimizer as well).

    Logged each iteration: ``distill_weight`` (r), and the terms ``loss_feature``, ``loss_logit``
    (``loss_nkd``) and ``loss_box``.

    Args:
        teacher (dict | nn.Module | list): ``config``, a file or ``package::path``, looked for
            beside the config of the run first, as ``_base_`` is; and ``checkpoint``, a file or URL.
            Or ``type`` and arguments of a registered
            :class:`~mmskd.models.teachers.pose_teacher.PoseTeacher`; or a model that is built. Of a
            list the answers are averaged. For keypoints a dict may have ``keypoints``, ``flip`` and
            ``weight_by`` (see :class:`~mmskd.models.teachers.option.TeacherOption`).
        losses (sequence[dict], optional): Configs of ``mmskd.FeatureDistillLoss``,
            ``mmskd.PKDLoss``, ``mmskd.CWDLoss``, ``mmskd.SimCCDistillLoss``,
            ``mmskd.HeatmapDistillLoss``, ``mmskd.ClassDistillLoss``, ``mmskd.BoxDistillLoss``,
            ``mmskd.RTMODistillLoss``, ``mmskd.NKDLoss``. Defaults to None:
            ``SimCCDistillLoss`` and ``PKDLoss`` for SimCC heads, heatmaps for heatmap heads, bins
            for RTMO; ``ClassDistillLoss``, ``PKDLoss`` and ``BoxDistillLoss`` for detectors;
            ``NKDLoss`` for classifiers. Features and boxes that cannot be compared are left out.
        schedule (str): How r moves from epoch to epoch (from iteration to iteration in an
            iteration-based loop): 'falling' linearly, to 1 / T, 'cosine', 'constant' or 'rising'
            (see :class:`~mmskd.engine.weight_schedule.WeightSchedule`). Defaults to 'falling',
            DWPose's.
        begin (int): How many epochs (iterations) the teacher is silent at first; the stock losses
            count in full then, whatever ``gt_weight``. Defaults to 0.
        stop (int, optional): After how many epochs (iterations) it is silent again. Defaults to
            None.
        gt_weight (float): Factor of the losses whose target the teacher answers too (``loss_kpt``,
            ``loss_cls``). Defaults to 1.0.
        heads (sequence[str], optional): As in PSKDHook.
        precision (str, optional): Of the teacher, as in PSKDHook. Defaults to 'auto'.

    Attributes:
        losses (nn.ModuleList): The loss modules, while attached.
        r_t (float): Present factor of the terms. Set by the hook in a Runner.

    Raises:
        UsageError: If an option is out of range; in :meth:`attach` if student and teacher differ in
            keypoints, bins, input size, classes or strides, with both sides named, or if a loss
            does not go with the head; in the first iteration if a head computes its loss in a way
            that the teacher cannot follow.
        FileNotFoundError: In :meth:`attach`, if config or checkpoint are not there.
    """

    state_key = 'mmskd_distill'
    binding: Tuple[str, ...] = ('losses', )

    def __init__(self, teacher: Given, losses: Optional[Sequence[dict]] = None,
                 schedule: str = 'falling', gt_weight: float = 1.0,
                 heads: Optional[Sequence[str]] = None, precision: Optional[str] = 'auto',
                 begin: int = 0, stop: Optional[int] = None):
        super().__init__()
        name = type(self).__name__
        options = Options(name)
        self._given = TeacherOption(name, teacher)
        self.precision = options.choice('precision', precision, PRECISIONS)
        self.loss_cfgs = options.configs('losses', losses, optional=True)
        self.schedule = WeightSchedule(name, schedule, begin, stop)
        self.gt_weight = options.number('gt_weight', gt_weight, least=0)
        self.heads = options.names('heads', heads, optional=True)
        self.r_t = 1.0
        self.losses: Optional[nn.ModuleList] = None
        self._folder: Optional[str] = None
        self._metainfo: Optional[Mapping[str, Any]] = None

    # Without a Runner --------------------------------------------------------------------------

    def set_up(self, model: nn.Module, undo: ExitStack) -> None:
        """Let the teacher add its terms to the losses of the model."""
        device = device_of(model)
        built = self._given.build(model, self._folder)
        for one in built:
            require_finite(one.model.to(device), self._given.source)
        losses = None if self.loss_cfgs is None else build_losses('losses', self.loss_cfgs)
        if losses is None or not all(map(compares_features, losses)):
            self.teach(model, self._choose_heads(model), undo)
        elif self.heads is not None:
            raise UsageError(
                f'heads={list(self.heads)} names heads that learn, and the option `losses` '
                'compares features alone. Leave heads out, or add a loss of predictions')
        teacher = answering(built, model, self.heads_taught, self._metainfo).to(device)
        if isinstance(teacher, TranslatedTeacher):
            self._require_lessons(teacher)
        if losses is None:
            losses = default_losses(model, self.heads_taught, teacher)
        check_losses(losses, self.heads_taught)
        feature_losses = [loss for loss in losses if compares_features(loss)]
        for loss in feature_losses:
            loss.check_model(model)
            connect_features(loss, model, teacher)
        self._mirror = mirror_of(model, self.heads_taught)
        undo.callback(self._mirror.remove)
        box_losses = [loss for loss in losses if compares_boxes(loss)]
        if box_losses:
            require_boxes(self.heads_taught, teacher)
        self._boxes = BoxTerms(self.heads_taught, box_losses, self._mirror)
        undo.callback(self._boxes.remove)
        logit_losses = [loss for loss in losses if loss not in (*feature_losses, *box_losses)]
        if self.gt_weight != 1 and not logit_losses:
            raise UsageError(
                f'gt_weight={self.gt_weight:g} is for the losses whose target the teacher answers '
                'too, and the option `losses` has no loss of classes or keypoints. Leave gt_weight '
                'out, or add one, as mmskd.ClassDistillLoss')
        self._logits = LogitTerms(self.heads_taught, logit_losses, self.gt_weight, teacher)
        undo.callback(self._logits.remove)
        self._logits.keypoint_weights = lambda: getattr(self._mirror, 'keypoint_weights', None)
        adapters = [head.adapter for head in self.heads_taught]
        self._asked: Any = teacher_to_ask(teacher, self.precision, adapters, boxes=bool(box_losses))
        self._features = [FeatureTerm(model, features_from(self._asked.model), loss)
                          for loss in feature_losses]
        for feature in self._features:
            undo.callback(feature.remove)
        self.losses, self._teacher = nn.ModuleList(losses).to(device), teacher
        self._modes = FixedModes(teacher)

    def detach(self) -> None:
        """Leave the model as it was before :meth:`attach`; without effect if not attached."""
        super().detach()
        self._teacher = self.losses = self._asked = None

    def begin(self, model: nn.Module) -> bool:
        """Ask the teacher."""
        if self.silent(self.r_t):
            self.rest()
            return False
        for feature in self._features:
            feature.listen()
        self._logits.scale = self._boxes.scale = self.r_t
        self._modes.apply(model.training)
        self._asked.follow()
        self._mirror.start(self._asked.model, self._asked.ask)
        return True

    def rest(self) -> None:
        """Ask nobody."""
        self._mirror.stop()

    def end(self, losses: Dict[str, Any]) -> Dict[str, Any]:
        """The losses, with the teacher's terms."""
        self._mirror.stop()
        terms = {**self._logits.take(), **self._boxes.take()}
        for feature in self._features:
            # 0 is no gradient either
            with torch.set_grad_enabled(self.r_t > 0 and torch.is_grad_enabled()):
                taken = feature.take()
            for name, value in taken.items():
                terms[name] = terms.get(name, 0) + value * self.r_t
        return {**losses, **terms}

    def terms(self) -> List[str]:
        """Those of the losses."""
        return sorted({loss.log_name for loss in self.losses})

    def refusals(self) -> int:
        """Also of the terms."""
        parts: List[Any] = [self._logits, self._boxes, *self._features]
        return super().refusals() + sum(part.refused for part in parts)

    def _choose_heads(self, model: nn.Module) -> List[HeadAdapter]:
        return choose_heads(model, self.heads)

    @property
    def teacher(self) -> Any:
        """The option: a dict, a model or a list."""
        return self._given.value

    def _require_lessons(self, teacher: TranslatedTeacher) -> None:
        """Raise UsageError if a keypoint would learn from nobody."""
        if teacher.untaught and not self.gt_weight:
            raise UsageError(
                f'with gt_weight=0 nothing would teach {", ".join(teacher.untaught)} of the '
                'student, which the teacher does not know. Set gt_weight above 0, or map them too')

    # In a Runner -------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """Attach, before a checkpoint is resumed.

        The optimizer has to know the projections by then.
        """
        super().before_run(runner)
        if not is_training(runner) or self._model is not None:
            return
        self._folder = config_folder(runner)
        self._metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None)
        keep_teacher_paths(runner, self._given, self._folder)
        self.attach(runner.model)
        for feature in self._features:
            feature.wrap(lambda loss: self._train_along(runner, loss))

    def before_train(self, runner) -> None:
        """Attach, unless that was done before."""
        unit, _, total = _clock(runner)
        self.schedule.check(total, unit)
        super().before_train(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """The share of this epoch, or of this iteration in an iteration-based loop."""
        super().before_train_iter(runner, batch_idx, data_batch)
        _, finished, total = _clock(runner)
        self.r_t = self.schedule.at(finished, total)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log the share."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        runner.message_hub.update_scalar('train/distill_weight', self.r_t)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Go on with the projections of the run that is being resumed.

        MMEngine's FlexibleRunner resumes before ``before_run``, so the optimizer learns of the
        projections here.

        Raises:
            UsageError: If that run was trained without them.
        """
        super().after_load_checkpoint(runner, checkpoint)
        if not self._resumed:
            return
        self.before_run(runner)
        if self.state() is not None and self._restored is None:
            raise UsageError(
                f'{type(self).__name__}: the checkpoint to resume from has no {self.state_key}: it '
                'was saved without this hook. Start from it with load_from instead.')
        self.require_same_state()

    def state(self) -> Optional[Dict[str, torch.Tensor]]:
        """The projections of the features."""
        if self.losses is None or not self.losses.state_dict():
            return None
        return {name: value.detach().cpu().clone()
                for name, value in self.losses.state_dict().items()}

    def restore(self, state: dict) -> None:
        """Go on with these projections."""
        self.losses.load_state_dict(state)

    def announce(self, runner) -> List[str]:
        """Who teaches what, and by which losses."""
        translated = isinstance(self._teacher, TranslatedTeacher)
        names = ', '.join(f'{type(loss).__name__} ({loss.weight:g})' for loss in self.losses)
        fading = self.schedule.describe(_clock(runner)[0])
        return [
            f'Distillation: {type(self._teacher).__name__} ({self._given.source}) teaches by '
            f'{names}, {fading}, and runs in {name_of(self._asked.dtype)}',
            *(f'Distillation: {head.describe()}' for head in self.heads_taught),
            *(f'Distillation: {line}' for line in (self._teacher.describe() if translated else ()))
        ]

    @staticmethod
    def _train_along(runner, loss: nn.Module) -> nn.Module:
        """Train a loss with parameters of its own together with the model."""
        if not any(parameter.requires_grad for parameter in loss.parameters()):
            return loss
        wrapped = wrap_for_ddp(runner, loss)
        join_optimizer(runner, wrapped)
        return wrapped


def _clock(runner) -> Tuple[str, int, int]:
    """What a schedule counts in this run, how many are over, and how many there are."""
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        return 'iteration', runner.iter, runner.max_iters
    return 'epoch', runner.epoch, runner.max_epochs
