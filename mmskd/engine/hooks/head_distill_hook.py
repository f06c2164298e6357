"""DWPose's second stage: a trained head teaches a fresh one on frozen features."""
import copy
import gc
import logging
from contextlib import ExitStack
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmskd.errors import UsageError
from mmskd.models.finite import named_weights
from mmskd.models.head_distill import distil, heads_to_distill
from mmskd.models.heads import HeadAdapter, is_pose_estimator
from mmskd.models.teachers.answering import answering_on_features
from mmskd.models.teachers.compiled import PRECISIONS, name_of
from mmskd.models.teachers.frozen import device_of
from mmskd.models.teachers.option import TeacherOption
from mmskd.models.teachers.question import check_names
from mmskd.models.teachers.trained_head import (
    FastFeatures,
    FrozenParts,
    feature_weights,
    trained_copy,
)
from mmskd.models.teachers.translated import TranslatedTeacher
from mmskd.options import Options
from mmskd.registry import HOOKS

from .preconditions import is_training
from .teacher_paths import config_folder, keep_teacher_paths
from .teaching_hook import TeachingHook, unwrapped


@HOOKS.register_module()
class HeadDistillHook(TeachingHook):
    """The heads of a trained model teach fresh heads of the same kind.

    Yang et al., "Effective Whole-body Pose Estimation with Two-stages Distillation" (DWPose), ICCVW
    2023, second stage: backbone and neck of the trained model are frozen, the head starts anew and
    minimises ``gamma * L_logit`` alone, for a fifth of the epochs of the training. SimCC heads
    (RTMPose, RTMW, SimCC) compare distributions (``mmskd.SimCCDistillLoss``), heatmap heads
    heatmaps (``mmskd.HeatmapDistillLoss``). Detectors learn class scores, boxes, qualities and
    masks (see :mod:`mmskd.models.head_distill`), with the RPN frozen as well.

    Frozen means: in eval mode even after ``model.train()``, no gradient, hence no weight decay, and
    the statistics of norm layers stay as they are. The features are computed once, without a graph,
    and go to both heads. The teacher is the trained head alone; nothing of it is saved, and the
    checkpoint is that of the stock model.

    Works without a Runner too::

        hook = HeadDistillHook(checkpoint='trained.pth')
        hook.attach(model)      # loads backbone and neck; the head of ``model`` is the fresh one
        losses = model(inputs, data_samples, mode='loss')
        hook.detach()

    Args:
        checkpoint (str, optional): The trained model, a file or URL; of the same config. This or
            ``teacher``.
        gamma (float): Factor of ``L_logit``. Defaults to 1.0, the paper's.
        gt_weight (float): Factor of the model's stock losses to the labels. Defaults to 0.0, the
            paper's.
        reinit_head (bool): Whether the head starts as the config initialises it; else it starts
            from the trained one. Defaults to True, the paper's.
        heads (sequence[str], optional): Names of the heads that learn; all else is frozen. Defaults
            to None: ``head`` of a pose estimator, ``bbox_head`` of a one-stage detector, the box
            and mask heads of a two-stage one.
        precision (str, optional): In which the frozen backbone and neck run while the heads learn,
            and the trained heads of a detector: 'auto', 'bfloat16', 'float16', or None for that of
            the model, as in PSKDHook. Defaults to 'auto'.
        teacher (dict, optional): In place of ``checkpoint``, a trained estimator with other
            keypoints but the same backbone and neck: ``config``, ``checkpoint`` and ``keypoints``,
            as in DistillHook, and ``weight_by`` if wanted. The head always starts anew. Defaults to
            None.

    Raises:
        UsageError: If an option is out of range; in :meth:`attach` if a head is not supported
            (named, with the reason), or the checkpoint is that of another model.
        FileNotFoundError: In :meth:`attach`, if there is no such checkpoint.
    """

    binding = ('heads', )
    joins_late = False

    def __init__(self, checkpoint: Optional[str] = None, gamma: float = 1.0, gt_weight: float = 0.0,
                 reinit_head: bool = True, heads: Optional[Sequence[str]] = None,
                 precision: Optional[str] = 'auto', teacher: Optional[dict] = None):
        super().__init__()
        options = Options('HeadDistillHook')
        self.checkpoint = options.text('checkpoint', checkpoint, optional=teacher is not None)
        self._given = None if teacher is None else _one_head(teacher, checkpoint, reinit_head)
        self._folder: Optional[str] = None
        self.gamma = options.number('gamma', gamma, least=0)
        self.gt_weight = options.number('gt_weight', gt_weight, least=0)
        if not gamma + gt_weight:
            raise UsageError(
                'HeadDistillHook: gamma and gt_weight are both 0, so nothing would be learnt')
        self.reinit_head = options.flag('reinit_head', reinit_head)
        self.heads = options.names('heads', heads, optional=True)
        self.precision = options.choice('precision', precision, PRECISIONS)
        self._features: Optional[FastFeatures] = None
        self._frozen: Optional[FrozenParts] = None
        self._metainfo: Optional[Mapping[str, Any]] = None

    # Without a Runner --------------------------------------------------------------------------

    def set_up(self, model: nn.Module, undo: ExitStack) -> None:
        """Freeze all but the heads, and let these be taught.

        The weights of a run that was resumed are those of its checkpoint.
        """
        heads = heads_to_distill(model, self.heads)
        if self._given is None:
            trained = trained_copy(model, self.checkpoint)
            check_names(heads, self._metainfo, trained.dataset_meta, is_pose_estimator(model))
            weights = self._first_weights(trained, heads)
        else:
            trained, weights = self._other_keypoints(model, heads)
        if self._resumed:
            theirs = dict(named_weights(trained)) if self._given is None else weights
            self._require_same_features(model, theirs, heads)
            weights = {}
        self._distiller = distil(model, trained, heads, self.gamma, self.gt_weight, self.precision)
        undo.callback(self._distiller.remove)
        model.load_state_dict(weights, strict=False)
        self._freeze(model, heads)
        undo.callback(self._release)
        if self.precision:
            self._features = FastFeatures(model, self.precision)
            undo.callback(self._features.stop)
        self.heads_taught += self._distiller.heads

    def begin(self, model: nn.Module) -> bool:
        """Ask the trained heads."""
        self._frozen.keep_eval()
        if self._features:
            self._features.start()
        self._distiller.start()
        return True

    def rest(self) -> None:
        """Ask nobody."""
        self._stop_features()
        self._distiller.stop()

    def end(self, losses: Dict[str, Any]) -> Dict[str, Any]:
        """The trained heads' terms, and the model's losses by ``gt_weight``."""
        self._stop_features()
        return self._distiller.finish(losses)

    def refusals(self) -> int:
        """Those of the trained heads."""
        return self._distiller.refused

    def _stop_features(self) -> None:
        if self._features:
            self._features.stop()

    def _first_weights(self, trained: nn.Module, heads: Sequence[HeadAdapter]) -> Dict[str, Tensor]:
        """Those of the trained model that the student begins with."""
        fresh = tuple(f'{head.name}.' for head in heads) if self.reinit_head else ()
        return {key: value for key, value in trained.state_dict().items()
                if not key.startswith(fresh)}

    def _other_keypoints(self, model: nn.Module, heads: Sequence[HeadAdapter]) -> Any:
        """The head of a trained model with other keypoints; the weights of backbone and neck."""
        built, = self._given.build(model, self._folder)
        weights = feature_weights(model, built.model, [head.name for head in heads])
        teacher = answering_on_features(built, model, heads, self._metainfo).to(device_of(model))
        if teacher.untaught and not self.gt_weight:
            raise UsageError(
                f'the teacher does not know {", ".join(teacher.untaught)} of the student, which '
                'would learn nothing. Set gt_weight above 0, so that they learn from their labels')
        return teacher, weights

    @property
    def source(self) -> str:
        """str: Where the trained heads come from."""
        return self.checkpoint if self._given is None else self._given.source

    def _require_same_features(self, model: nn.Module, theirs: Mapping[str, Tensor],
                               heads: Sequence[HeadAdapter]) -> None:
        """Raise UsageError if the frozen parts of a resumed run are not the trained model's."""
        learning = tuple(f'{head.name}.' for head in heads)
        mine = dict(named_weights(model))
        for name, value in theirs.items():
            # An average of what does not move may differ in the last digits
            if value.is_floating_point() and not name.startswith(learning) and not torch.allclose(
                    mine[name], value, rtol=1e-3, atol=1e-5):
                raise UsageError(
                    'the run that is resumed learns on other features than those of '
                    f'{self.source}: {name} differs. Give the checkpoint that it began with')

    def _freeze(self, model: nn.Module, heads: Sequence[HeadAdapter]) -> None:
        if self._frozen is None:
            self._frozen = FrozenParts(model, [head.name for head in heads])

    def _release(self) -> None:
        self._frozen.release()
        self._frozen = None

    # In a Runner -------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """Freeze; DDP counts the parameters that learn when it wraps, so it does that anew."""
        super().before_run(runner)
        if not is_training(runner):
            return
        self._metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None)
        if self._given is not None:
            self._folder = config_folder(runner)
            keep_teacher_paths(runner, self._given, self._folder)
        model = unwrapped(runner.model)
        with self.named_errors():
            self._freeze(model, heads_to_distill(model, self.heads))
        if is_model_wrapper(runner.model):
            runner.model = None
            gc.collect()  # the old wrapper's hooks on the parameters go with it
            runner.model = runner.wrap_model(
                copy.deepcopy(runner.cfg.get('model_wrapper_cfg')), model)

    def before_train(self, runner) -> None:
        """Attach, once the model is initialised."""
        if runner._load_from and not self._resumed:
            print_log('HeadDistillHook: load_from is set too; backbone and neck are those of '
                      f'{self.source}, the head '
                      f'is that of {runner._load_from if self.reinit_head else self.source}',
                      'current', logging.WARNING)
        super().before_train(runner)

    def announce(self, runner) -> List[str]:
        """Which heads learn, from what."""
        fresh = 'anew' if self.reinit_head else 'from the trained one'
        start = 'goes on' if self._resumed else f'starts {fresh}'
        teacher = self._distiller.teacher
        mapped = teacher.describe() if isinstance(teacher, TranslatedTeacher) else []
        dtype = self._features.dtype if self._features else None
        return [
            f'Head distillation: {head} {start} and learns from that of {self.source} (gamma '
            f'{self.gamma:g}, weight of the labels {self.gt_weight:g}); all else is frozen '
            f'and runs in {name_of(dtype)}' for head in self._distiller.describe()
        ] + [f'Head distillation: {line}' for line in mapped]


def _one_head(teacher: dict, checkpoint: Optional[str], reinit_head: bool) -> TeacherOption:
    if checkpoint is not None:
        raise UsageError('HeadDistillHook: give either checkpoint or teacher, not both')
    if not isinstance(teacher, dict) or 'type' in teacher or teacher.get('flip'):
        raise UsageError(
            'HeadDistillHook: teacher must be dict(config=..., checkpoint=..., keypoints=...) of '
            'one estimator; features have no mirror image and no other origin')
    if not reinit_head:
        raise UsageError(
            'HeadDistillHook: reinit_head=False does not go with teacher: the trained head has '
            'other keypoints, so the student\'s starts anew')
    return TeacherOption('HeadDistillHook', teacher)
