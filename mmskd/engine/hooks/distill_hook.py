"""Distillation from another model's checkpoint: DWPose's first stage, and logits of detectors."""
import os
from typing import Dict, List, Optional, Sequence, Union

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from mmskd.models.distill_terms import FeatureTerm, LogitTerms, build_losses, default_losses
from mmskd.models.losses.distill import FeatureDistillLoss
from mmskd.models.soft_heads import SoftHead, mirror_of, soften_heads
from mmskd.models.teachers.fixed import build_teacher, check_teacher, freeze, probe_features
from mmskd.models.teachers.mirror import Tap
from mmskd.registry import HOOKS

from ..extra_parameters import join_optimizer, wrap_for_ddp
from .preconditions import is_loss_pass, is_training, refuse_second_teacher, refuse_unsupported

STATE_KEY = 'mmskd_distill'


@HOOKS.register_module()
class DistillHook(Hook):
    """A trained teacher adds terms to the student's losses; the student stays a stock model.

    Yang et al., "Effective Whole-body Pose Estimation with Two-stages Distillation" (DWPose), ICCVW 2023,
    first stage, for every SimCC and heatmap head of MMPose and for the detectors that PSKDHook supports:
    ``L = L_ori + r(t) (L_feature + L_logit)`` with ``r(t) = 1 - (t - 1) / T`` in epoch t of T. Visible and
    invisible keypoints count alike in ``L_logit``. The teacher is in eval mode all the time, sees the
    student's batch, and is asked about the student's priors, RoIs or queries (see
    :mod:`mmskd.models.teachers.mirror`).

    The teacher and the projections of the features are no part of the student: its checkpoint has the
    keys of the stock model. The projections are trained by the student's optimizer and saved for a
    resume under the key ``mmskd_distill``.

    With the student's own previous generation as the teacher ("born-again", Furlanello et al., ICML 2018),
    a constant mix of hard and soft target is ``decay=False, gt_weight=1 - a`` and a logit loss of
    weight ``a``.

    Works without a Runner too::

        hook = DistillHook(teacher=dict(config='mmpose::...', checkpoint='teacher.pth'))
        hook.attach(model)
        losses = model(inputs, data_samples, mode='loss')
        hook.detach()

    (then ``hook.losses``, which holds the projections, is to be given to the optimizer as well).

    Logged each iteration: ``distill_decay`` (r), and the terms ``loss_feature`` and ``loss_logit`` (``loss_nkd``).

    Args:
        teacher (dict | nn.Module): ``config``, a file or ``package::path``, looked for beside the config of the
            run first, as ``_base_`` is; and ``checkpoint``, a file or URL. Or a model that is built.
        losses (sequence[dict], optional): Configs of ``mmskd.FeatureDistillLoss``,
            ``mmskd.SimCCDistillLoss``, ``mmskd.HeatmapDistillLoss``, ``mmskd.ClassDistillLoss``,
            ``mmskd.NKDLoss``. Defaults to None: features and logits for pose estimators,
            ``ClassDistillLoss`` for detectors.
        decay (bool): Whether the terms fade out linearly, to T's share 1 / T. Defaults to True.
        gt_weight (float): Factor of the losses whose target the teacher answers too (``loss_kpt``,
            ``loss_cls``). Defaults to 1.0.
        heads (sequence[str], optional): As in PSKDHook.

    Attributes:
        losses (nn.ModuleList): The loss modules, while attached.
        r_t (float): Present factor of the terms. Set by the hook in a Runner.

    Raises:
        ValueError: If an option is out of range; in :meth:`attach` if student and teacher differ in
            keypoints, bins, input size, classes or strides, with both sides named, or if a loss does not go with
            the head.
        FileNotFoundError: In :meth:`attach`, if config or checkpoint are not there.
    """

    priority = 'NORMAL'

    def __init__(self, teacher: Union[dict, nn.Module], losses: Optional[Sequence[dict]] = None,
                 decay: bool = True, gt_weight: float = 1.0, heads: Optional[Sequence[str]] = None):
        if isinstance(teacher, dict) and set(teacher) != {'config', 'checkpoint'}:
            raise ValueError('DistillHook: teacher must be dict(config=..., checkpoint=...), got '
                             f'the keys {sorted(teacher)}')
        if gt_weight < 0:
            raise ValueError(f'DistillHook: gt_weight must not be negative, got {gt_weight}')
        if losses is not None and not losses:
            raise ValueError('DistillHook: losses is empty, so nothing would be distilled')
        self.teacher = teacher
        self.loss_cfgs = losses
        self.decay = decay
        self.gt_weight = gt_weight
        self.heads = heads
        self.r_t = 1.0
        self.losses: Optional[nn.ModuleList] = None
        self._model: Optional[nn.Module] = None
        self._folder: Optional[str] = None

    # Without a Runner --------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Let the teacher add its terms to the losses of ``model`` (or of the model in its DDP wrapper).

        Args:
            model (nn.Module): An mmdet detector or a top-down mmpose estimator.

        Raises: See the class. The model is then unchanged.
        """
        if self._model is not None:
            raise RuntimeError('DistillHook is attached to a model already; call detach() first')
        model = model.module if is_model_wrapper(model) else model
        refuse_second_teacher(model, self)
        teacher = self._build_teacher().to(next(model.parameters()).device)
        soft_heads: List[SoftHead] = soften_heads(model, self.heads)
        try:
            check_teacher(model, teacher, soft_heads)
            losses = self._build_losses(soft_heads)
            feature_losses = [loss for loss in losses if isinstance(loss, FeatureDistillLoss)]
            for loss in feature_losses:
                loss.connect(probe_features(model), probe_features(teacher))
        except Exception:
            for head in soft_heads:
                head.undo()
            raise
        self.losses = nn.ModuleList(losses).to(next(model.parameters()).device)
        self._soft_heads = soft_heads
        self._mirror = mirror_of(model, soft_heads)
        logit_losses = [loss for loss in losses if loss not in feature_losses]
        self._logits = LogitTerms(soft_heads, logit_losses, self.gt_weight)
        self._features = [FeatureTerm(model, teacher, loss) for loss in feature_losses]
        self._handles = [
            model.register_forward_pre_hook(Tap(self._before_forward), with_kwargs=True),
            model.register_forward_hook(Tap(self._after_forward), with_kwargs=True)
        ]
        self._model, self._teacher = model, teacher

    def detach(self) -> None:
        """Leave the model as it was before :meth:`attach`; without effect if not attached."""
        if self._model is None:
            return
        for part in (*self._handles, self._mirror, self._logits, *self._features):
            part.remove()
        for head in self._soft_heads:
            head.undo()
        self._model = self._teacher = self.losses = None

    def _build_teacher(self) -> nn.Module:
        if isinstance(self.teacher, nn.Module):
            return freeze(self.teacher)
        return build_teacher(self.teacher['config'], self.teacher['checkpoint'], self._folder)

    def _build_losses(self, heads: List[SoftHead]) -> List[nn.Module]:
        if self.loss_cfgs is None:
            return default_losses(heads)
        return build_losses('DistillHook', 'losses', self.loss_cfgs, heads)

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if not is_loss_pass(args, kwargs):
            self._mirror.stop()
            return
        for head in self._soft_heads:
            for loss in head.losses:
                loss.reset()
        for feature in self._features:
            feature.listen()
        self._logits.scale = self.r_t
        self._mirror.start(self._teacher)

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict,
                       output: dict) -> Optional[dict]:
        if self._mirror.teacher is None:
            return None
        self._mirror.stop()
        for head in self._soft_heads:
            head.check_pairing()
        terms = self._logits.take()
        for feature in self._features:
            terms.update({name: value * self.r_t for name, value in feature.take().items()})
        return {**output, **terms}

    # In a Runner -------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """Attach, before a checkpoint is resumed: the optimizer has to know the projections by then."""
        if not is_training(runner):
            return
        refuse_unsupported(runner, self)
        if runner.cfg.filename:
            self._folder = os.path.dirname(runner.cfg.filename)
        self.attach(runner.model)
        for feature in self._features:
            feature.wrap(lambda loss: self._train_along(runner, loss))
        self._announce()

    def before_train_epoch(self, runner) -> None:
        """Epoch loop: the share of this epoch."""
        if self.decay and not isinstance(runner.train_loop, IterBasedTrainLoop):
            self.r_t = 1 - runner.epoch / runner.max_epochs

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Iteration loop: the share of this iteration."""
        if self.decay and isinstance(runner.train_loop, IterBasedTrainLoop):
            self.r_t = 1 - runner.iter / runner.max_iters

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log the share."""
        runner.message_hub.update_scalar('train/distill_decay', self.r_t)

    def after_train(self, runner) -> None:
        """Give the model back as it was."""
        self.detach()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save the projections, beside the student."""
        if self.losses is not None and self.losses.state_dict():
            checkpoint[STATE_KEY] = self._projections()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Go on with the projections of the run that is being resumed."""
        if runner._resume and self.losses is not None and self.losses.state_dict():
            if STATE_KEY not in checkpoint:
                raise ValueError(f'DistillHook: the checkpoint to resume from has no {STATE_KEY}: it was '
                                 'saved without this hook. Start from it with load_from instead.')
            self.losses.load_state_dict(checkpoint[STATE_KEY])

    def _projections(self) -> Dict[str, torch.Tensor]:
        return {name: value.detach().cpu().clone()
                for name, value in self.losses.state_dict().items()}

    @staticmethod
    def _train_along(runner, loss: nn.Module) -> nn.Module:
        """Train a loss with parameters of its own together with the model."""
        if not any(parameter.requires_grad for parameter in loss.parameters()):
            return loss
        wrapped = wrap_for_ddp(runner, loss)
        join_optimizer(runner, wrapped)
        return wrapped

    def _announce(self) -> None:
        source = self.teacher if isinstance(self.teacher, nn.Module) else self.teacher['config']
        names = ', '.join(f'{type(loss).__name__} ({loss.weight:g})' for loss in self.losses)
        fading = 'fading out linearly' if self.decay else 'at constant weight'
        print_log(f'Distillation: {type(self._teacher).__name__} ({source}) teaches by {names}, '
                  f'{fading}', 'current')
        for head in self._soft_heads:
            print_log(f'Distillation: {head.describe()}', 'current')
