"""DWPose's second stage: a trained head teaches a fresh one on frozen features."""
import copy
import gc
import logging
from typing import Dict, Optional, Sequence

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmskd.models.head_distill import distil, heads_to_distill
from mmskd.models.teachers.mirror import Tap
from mmskd.models.teachers.trained_head import FrozenParts, trained_copy
from mmskd.registry import HOOKS

from .preconditions import is_loss_pass, is_training, refuse_second_teacher, refuse_unsupported


@HOOKS.register_module()
class HeadDistillHook(Hook):
    """The heads of a trained model teach fresh heads of the same kind.

    Yang et al., "Effective Whole-body Pose Estimation with Two-stages Distillation" (DWPose), ICCVW 2023,
    second stage: backbone and neck of the trained model are frozen, the head starts anew and minimises
    ``gamma * L_logit`` alone, for a fifth of the epochs of the training. SimCC heads (RTMPose, RTMW, SimCC)
    compare distributions (``mmskd.SimCCDistillLoss``), heatmap heads heatmaps (``mmskd.HeatmapDistillLoss``).
    Detectors learn class scores, boxes, qualities and masks (see :mod:`mmskd.models.head_distill`), with the
    RPN frozen as well.

    Frozen means: in eval mode even after ``model.train()``, no gradient, hence no weight decay, and the
    statistics of norm layers stay as they are. The features are computed once, without a graph, and go
    to both heads. The teacher is the trained head alone; nothing of it is saved, and the checkpoint is that of
    the stock model.

    Works without a Runner too::

        hook = HeadDistillHook(checkpoint='trained.pth')
        hook.attach(model)      # loads backbone and neck; the head of ``model`` is the fresh one
        losses = model(inputs, data_samples, mode='loss')
        hook.detach()

    Args:
        checkpoint (str): The trained model, a file or URL; of the same config.
        gamma (float): Factor of ``L_logit``. Defaults to 1.0, the paper's.
        gt_weight (float): Factor of the heads' stock losses to the labels. Defaults to 0.0, the paper's.
        reinit_head (bool): Whether the head starts as the config initialises it; else it starts from
            the trained one. Defaults to True, the paper's.
        heads (sequence[str], optional): Names of the heads that learn; all else is frozen. Defaults to
            None: ``head`` of a pose estimator, ``bbox_head`` of a one-stage detector, the box and mask
            heads of a two-stage one.

    Raises:
        ValueError: If an option is out of range; in :meth:`attach` if a head is not supported (named,
            with the reason), or the checkpoint is that of another model.
        FileNotFoundError: In :meth:`attach`, if there is no such checkpoint.
    """

    priority = 'NORMAL'

    def __init__(self, checkpoint: str, gamma: float = 1.0, gt_weight: float = 0.0,
                 reinit_head: bool = True, heads: Optional[Sequence[str]] = None):
        if gamma < 0 or gt_weight < 0 or not gamma + gt_weight:
            raise ValueError('HeadDistillHook: gamma and gt_weight must not be negative, nor both 0, got '
                             f'{gamma} and {gt_weight}')
        self.checkpoint = checkpoint
        self.gamma = gamma
        self.gt_weight = gt_weight
        self.reinit_head = reinit_head
        self.heads = heads
        self._model: Optional[nn.Module] = None
        self._frozen: Optional[FrozenParts] = None

    # Without a Runner --------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Freeze all but the heads of ``model`` (or of the model in its DDP wrapper), and let it be taught.

        Args:
            model (nn.Module): A top-down mmpose estimator or an mmdet detector, whose heads are those to be
                trained.

        Raises: See the class. The model is then unchanged.
        """
        self._attach(model, load=True)

    def detach(self) -> None:
        """Leave the model without teacher, all of it learning again; its weights stay.

        Without effect if not attached.
        """
        if self._model is None:
            return
        for handle in self._handles:
            handle.remove()
        self._distiller.remove()
        self._release()
        self._model = self._distiller = None

    def _attach(self, model: nn.Module, load: bool) -> None:
        if self._model is not None:
            raise RuntimeError('HeadDistillHook is attached to a model already; call detach() first')
        model = model.module if is_model_wrapper(model) else model
        heads = heads_to_distill(model, self.heads)
        refuse_second_teacher(model, self)
        trained = trained_copy(model, self.checkpoint)
        weights = self._first_weights(trained, heads) if load else {}
        self._distiller = distil(model, trained, heads, self.gamma, self.gt_weight)
        model.load_state_dict(weights, strict=False)
        self._freeze(model, heads)
        self._handles = [
            model.register_forward_pre_hook(Tap(self._before_forward), with_kwargs=True),
            model.register_forward_hook(Tap(self._after_forward), with_kwargs=True)
        ]
        self._model = model

    def _first_weights(self, trained: nn.Module, heads: Sequence[str]) -> Dict[str, Tensor]:
        """Those of the trained model that the student begins with."""
        fresh = tuple(f'{name}.' for name in heads) if self.reinit_head else ()
        return {key: value for key, value in trained.state_dict().items()
                if not key.startswith(fresh)}

    def _freeze(self, model: nn.Module, heads: Sequence[str]) -> None:
        if self._frozen is None:
            self._frozen = FrozenParts(model, heads)

    def _release(self) -> None:
        if self._frozen is not None:
            self._frozen.release()
            self._frozen = None

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if not is_loss_pass(args, kwargs):
            self._distiller.stop()
            return
        self._frozen.keep_eval()
        self._distiller.start()

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict,
                       output: dict) -> Optional[dict]:
        return self._distiller.finish(output) if is_loss_pass(args, kwargs) else None

    # In a Runner -------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """Freeze. DDP counts the parameters that learn when it wraps the model, so it does that anew."""
        if not is_training(runner):
            return
        refuse_unsupported(runner, self)
        wrapped = is_model_wrapper(runner.model)
        model = runner.model.module if wrapped else runner.model
        self._freeze(model, heads_to_distill(model, self.heads))
        if wrapped:
            runner.model = None
            gc.collect()  # the old wrapper's hooks on the parameters go with it
            runner.model = runner.wrap_model(
                copy.deepcopy(runner.cfg.get('model_wrapper_cfg')), model)

    def before_train(self, runner) -> None:
        """Attach, once the model is initialised; a resumed run has its weights already."""
        if runner._load_from and not runner._resume:
            print_log('HeadDistillHook: load_from is set too; backbone and neck are those of '
                      f'{self.checkpoint}, the head '
                      f'is that of {runner._load_from if self.reinit_head else self.checkpoint}',
                      'current', logging.WARNING)
        self._attach(runner.model, load=not runner._resume)
        start = 'anew' if self.reinit_head else 'from the trained one'
        for head in self._distiller.describe():
            print_log(f'Head distillation: {head} starts {start} and learns from that of '
                      f'{self.checkpoint} (gamma {self.gamma:g}, weight of the labels '
                      f'{self.gt_weight:g}); all else is frozen', 'current')

    def after_train(self, runner) -> None:
        """Give the model back."""
        self.detach()
