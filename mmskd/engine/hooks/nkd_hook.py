"""NKD: a trained classifier teaches another one."""
from typing import Any, Dict, List, Optional, Union

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmskd.models.losses.softmax_call import read_softmax_calls
from mmskd.models.teachers.fixed import build_teacher
from mmskd.models.teachers.mirror import Tap
from mmskd.registry import HOOKS, MODELS
from .class_loss import find_loss_module, refuse_logits, require_one
from .preconditions import is_loss_pass, is_training, refuse_unsupported


@HOOKS.register_module()
class NKDHook(Hook):
    """Normalised knowledge distillation between softmax classifiers.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels", ICCV 2023. Beside the student's own loss, which is not
    touched, the training minimises :class:`~mmskd.models.losses.NKDLoss`, as ``loss_nkd``. The teacher sees
    the student's augmented batch, in eval mode, without gradients; it is no part of the student or of its
    checkpoint.

    Student and teacher are mmpretrain classifiers, or any models that return logits (N, C) in
    ``mode='tensor'`` and, of the student, a dict of losses in ``mode='loss'``, where one module computes
    the classification loss when it is called with logits and labels.

    Without a Runner::

        hook = NKDHook(teacher=model_of_the_teacher)
        hook.attach(model)
        losses = model(inputs, data_samples, mode='loss')  # with loss_nkd
        hook.detach()

    Args:
        teacher (dict | nn.Module): ``config``, a file or ``package::path``, and ``checkpoint``, a file or
            URL. Or a model that is built.
        loss_module (str): Name of the module in the student that computes the classification loss.
            Defaults to 'head.loss_module', where mmpretrain has it.
        loss (dict, optional): Config of the loss. Defaults to None: ``mmskd.NKDLoss`` with the paper's
            weights for ImageNet.

    Raises:
        ValueError: If ``teacher`` has other keys; in :meth:`attach` if the model has no such module, its
            loss is no softmax loss, the checkpoint is that of another model, or the two normalise
            images in different ways; in the first iteration if they differ in their classes.
        FileNotFoundError: In :meth:`attach`, if there is no such config or checkpoint.
        RuntimeError: In the first iteration, if the loss module is not called just once; before the
            run, if the config compiles the model.
    """

    priority = 'NORMAL'

    def __init__(self, teacher: Union[dict, nn.Module], loss_module: str = 'head.loss_module',
                 loss: Optional[dict] = None):
        if not isinstance(teacher, nn.Module) and set(teacher) != {'config', 'checkpoint'}:
            raise ValueError('NKDHook: teacher must be dict(config=..., checkpoint=...), got the keys '
                             f'{sorted(teacher)}')
        self.teacher = teacher
        self.loss_module = loss_module
        self.loss = MODELS.build(loss or dict(type='mmskd.NKDLoss'))
        self._model: Optional[nn.Module] = None
        self._teacher: Optional[nn.Module] = None
        self._handles: list = []
        self._stop()

    # Without a Runner --------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Add ``loss_nkd`` to what ``model`` (or the model in its DDP wrapper) returns as its losses.

        Args:
            model (nn.Module): The student.

        Raises: See class. The model is then unchanged.
        """
        if self._model is not None:
            raise RuntimeError('NKDHook is attached to a model already; call detach() first')
        model = model.module if is_model_wrapper(model) else model
        loss_module = find_loss_module('NKDHook', model, self.loss_module)
        teacher = self.teacher if isinstance(self.teacher, nn.Module) else build_teacher(
            **self.teacher)
        if _normalisation(model) != _normalisation(teacher):
            raise ValueError(
                'NKDHook: the teacher would see images that were prepared for the student, but their '
                f'data preprocessors differ: {_normalisation(model)} in the student, '
                f'{_normalisation(teacher)} in the teacher')
        device = next(model.parameters()).device
        self._teacher = teacher.to(device).eval().requires_grad_(False)
        self._handles = [
            model.register_forward_pre_hook(Tap(self._before_forward), with_kwargs=True),
            loss_module.register_forward_pre_hook(Tap(self._before_loss), with_kwargs=True),
            model.register_forward_hook(Tap(self._after_forward))
        ]
        self._model = model

    def detach(self) -> None:
        """Leave the model as it was before :meth:`attach`; without effect if not attached."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._model, self._teacher = [], None, None
        self._stop()

    @torch.no_grad()
    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Ask the teacher about the batch."""
        self._stop()
        if is_loss_pass(args, kwargs):
            self._answer = self._teacher(args[0] if args else kwargs['inputs'], mode='tensor')

    def _before_loss(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """The logits meet their labels: compute NKD's loss."""
        if self._answer is None:
            return
        if not isinstance(self._answer, Tensor):
            raise ValueError(f"NKDHook: the teacher ({type(self._teacher).__name__}) returns no logits in "
                             f"mode='tensor' but a {type(self._answer).__name__}")
        calls = read_softmax_calls(module, args, kwargs)
        if [getattr(call.logits, 'shape', None) for call in calls] != [self._answer.shape]:
            refuse_logits('NKDHook', self.loss_module, [call.logits for call in calls],
                          f'shape {tuple(self._answer.shape)}, which is what the teacher gives,')
        call, = calls
        self._losses.append(
            self.loss(call.logits, self._answer, call.labels, call.weight, call.avg_factor))

    def _after_forward(self, model: nn.Module, args: tuple, losses: Any) -> Optional[Dict[str, Any]]:
        """Add the loss to the model's own."""
        if self._answer is None:
            return None
        own = self._losses
        self._stop()
        require_one('NKDHook', own, 'loss_module', self.loss_module)
        return {**losses, self.loss.log_name: own[0]}

    def _stop(self) -> None:
        """Forget the forward pass."""
        self._answer: Any = None
        self._losses: List[Tensor] = []

    # In a Runner -------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """Refuse what would silently not distil."""
        if is_training(runner):
            refuse_unsupported(runner, self)

    def before_train(self, runner) -> None:
        """Attach."""
        self.attach(runner.model)
        source = '' if isinstance(self.teacher, nn.Module) else f' ({self.teacher["config"]})'
        print_log(f'NKD: {type(self._teacher).__name__}{source} teaches the classes of '
                  f'model.{self.loss_module}', 'current')

    def after_train(self, runner) -> None:
        """Give the model back as it was."""
        self.detach()


def _normalisation(model: nn.Module) -> Dict[str, Any]:
    """What a model's data preprocessor makes of the colours."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None:
        return {}
    settings = {name: value.flatten().tolist() for name, value in preprocessor.named_buffers()}
    return dict(settings, to_rgb=getattr(preprocessor, 'to_rgb', False))
