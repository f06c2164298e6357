"""NKD: a trained classifier teaches another, class by class."""
from typing import List, Optional, Union

from torch import nn

from mmskd.errors import UsageError
from mmskd.models.heads import HeadAdapter, is_detector, is_pose_estimator
from mmskd.models.heads.adapter import require_teachable_model
from mmskd.models.heads.classifier import classifier_head
from mmskd.options import Options
from mmskd.registry import HOOKS

from .distill_hook import DistillHook


@HOOKS.register_module()
class NKDHook(DistillHook):
    """Normalised knowledge distillation between softmax classifiers.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels", ICCV 2023. Beside the student's own loss,
    which is not touched, the training minimises :class:`~mmskd.models.losses.NKDLoss`, as
    ``loss_nkd``. The teacher sees the student's augmented batch, in eval mode, without gradients;
    it is no part of the student or of its checkpoint.

    Student and teacher are mmpretrain classifiers, or any models that return logits (N, C) in
    ``mode='tensor'`` and, of the student, a dict of losses in ``mode='loss'``, where one module
    computes the classification loss when it is called with logits and labels.

    Without a Runner::

        hook = NKDHook(teacher=model_of_the_teacher)
        hook.attach(model)
        losses = model(inputs, data_samples, mode='loss')  # with loss_nkd
        hook.detach()

    Args:
        teacher (dict | nn.Module): ``config``, a file or ``package::path``, and ``checkpoint``, a
            file or URL. Or a model that is built.
        loss_module (str): Name of the module in the student that computes the classification loss.
            Defaults to 'head.loss_module', where mmpretrain has it.
        loss (dict, optional): Config of the loss. Defaults to None: ``mmskd.NKDLoss`` with the
            paper's weights for ImageNet.

    Raises:
        UsageError: If ``teacher`` has other keys; in :meth:`attach` if the model has no such
            module, its loss is no softmax loss, the checkpoint is that of another model, or the two
            normalise images in different ways; in the first iteration if they differ in their
            classes, or the loss module is not called just once.
        FileNotFoundError: In :meth:`attach`, if there is no such config or checkpoint.
    """

    binding = ('loss', 'loss_module')

    def __init__(self, teacher: Union[dict, nn.Module], loss_module: str = 'head.loss_module',
                 loss: Optional[dict] = None):
        options = Options('NKDHook')
        loss = options.config('loss', loss, optional=True) or dict(type='mmskd.NKDLoss')
        super().__init__(teacher, [loss], schedule='constant', precision=None)
        self.loss_module = options.text('loss_module', loss_module)

    def _choose_heads(self, model: nn.Module) -> List[HeadAdapter]:
        require_teachable_model(model)
        if is_detector(model) or is_pose_estimator(model):
            raise UsageError(
                f'{type(model).__name__} is no classifier: its heads are asked about places that '
                'only DistillHook '
                "keeps together. Use mmskd.DistillHook with losses=[dict(type='mmskd.NKDLoss')].")
        return [classifier_head(model, self.loss_module)]
