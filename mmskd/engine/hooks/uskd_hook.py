"""USKD: a network makes soft labels for itself, with a weak classifier on a middle feature."""
from typing import Any, Dict, List, Optional

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner.checkpoint import weights_to_cpu
from torch import Tensor, nn

from mmskd.engine.extra_parameters import join_optimizer, wrap_for_ddp
from mmskd.models.losses.softmax_call import SoftmaxCall, read_softmax_calls
from mmskd.models.pairing import student_side
from mmskd.models.teachers.mirror import Tap
from mmskd.registry import HOOKS, MODELS
from .class_loss import find_loss_module, find_module, refuse_logits, require_one
from .preconditions import is_loss_pass, is_training, refuse_unsupported

STATE_KEY = 'mmskd_uskd'
TOKENS = {
    'mean': lambda feature: feature.mean(1),
    'first': lambda feature: feature[:, 0],
    'each': lambda feature: feature.flatten(0, 1),
}


@HOOKS.register_module()
class USKDHook(Hook):
    """Universal self-knowledge distillation for a softmax classifier, in one line of its config.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels", ICCV 2023. Beside the model's own loss, which is not
    touched, the training minimises :class:`~mmskd.models.losses.USKDLoss`, as ``loss_uskd``.

    The weak logits that it needs come from a feature in the middle of the network, averaged over the
    positions, and a fully connected layer. That layer belongs to the hook: the model and its state dict stay
    stock. It is trained by the model's optimizer and saved under ``mmskd_uskd`` for a resume.

    Any model works that returns a dict of losses in ``mode='loss'`` and in which one module computes the
    classification loss when it is called with logits (N, C) and labels, once in a forward pass: an
    mmpretrain classifier; a ``BaseModel`` around a torchvision network with a ``nn.CrossEntropyLoss``; and

    - the class loss of an RoI head: ``layer='roi_head.bbox_roi_extractor'``,
      ``loss_module='roi_head.bbox_head.loss_cls'``, ``num_classes`` with the background;
    - DETR: ``layer='decoder.layers.2'``, ``tokens='each'``, ``loss_module='bbox_head.loss_cls'``, the same. The
      head calls the loss for every layer of the decoder; the last call, that of the last layer, counts;
    - SimCC: ``num_classes`` is the number of all logits of a crop, K * (bins of x + bins of y) for K
      keypoints. A class is a bin, and the target of a keypoint on an axis that with the largest label.

    It goes with ``mmskd.PSKDHook`` and ``mmskd.DistillHook`` on the same model.

    Without a Runner::

        hook = USKDHook(layer='backbone.layer3', channels=256, num_classes=100)
        hook.attach(model)
        optimizer = SGD([*model.parameters(), *hook.classifier.parameters()], lr=0.1)
        losses = model(inputs, data_samples, mode='loss')  # with loss_uskd
        hook.detach()

    Args:
        layer (str): Name of the module in the model that gives the middle feature: (N, channels, H, W),
            tokens (N, L, channels) or (N, channels); the first item, if it gives a tuple. The paper
            takes the last stage but one, for ViTs the middle block.
        channels (int): Of that feature.
        num_classes (int): Number of the model's logits for a sample.
        loss_module (str): Name of the module that computes the classification loss. Defaults to
            'head.loss_module', where mmpretrain has it.
        tokens (str): What becomes of tokens (N, L, channels): 'mean' and 'first' (a ViT's class token) make
            them one vector, with 'each' every token is a sample. Defaults to 'mean'.
        loss (dict, optional): Config of the USKD loss. Defaults to None: ``mmskd.USKDLoss`` with the
            paper's weights for ImageNet.

    Attributes:
        classifier (nn.Linear, optional): From the feature to the weak logits; None before the first
            :meth:`attach` (in a Runner, before the run). It stays with the hook after :meth:`detach`.

    Raises:
        ValueError: If an option is out of range; in :meth:`attach` if the model has no such modules, or its
            loss is no softmax loss; in the first iteration if feature or logits have another shape.
        RuntimeError: In the first iteration, if one of the modules is not called just once; before the
            run, if its set-up rules USKD out.
    """

    priority = 'NORMAL'

    def __init__(self, layer: str, channels: int, num_classes: int,
                 loss_module: str = 'head.loss_module', tokens: str = 'mean',
                 loss: Optional[dict] = None):
        for name, value, least in (('channels', channels, 1), ('num_classes', num_classes, 2)):
            if value != int(value) or value < least:
                raise ValueError(f'USKDHook: {name} must be a whole number from {least} on, got {value}')
        if tokens not in TOKENS:
            raise ValueError(f"USKDHook: tokens must be 'mean', 'first' or 'each', got {tokens!r}")
        self.layer = layer
        self.channels = channels
        self.num_classes = num_classes
        self.loss_module = loss_module
        self.tokens = tokens
        self.loss = MODELS.build(loss or dict(type='mmskd.USKDLoss'))
        self.classifier: Optional[nn.Linear] = None
        self._called: Optional[nn.Module] = None  # the classifier, or its DDP wrapper
        self._model: Optional[nn.Module] = None
        self._handles: list = []
        self._stop()

    # Without a Runner --------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Add ``loss_uskd`` to what ``model`` (or the model in its DDP wrapper) returns as its losses.

        Args:
            model (nn.Module): See class.

        Raises:
            RuntimeError: If the hook is attached already.
            ValueError: If the model has no such layer or loss module; it is then unchanged.
        """
        if self._model is not None:
            raise RuntimeError('USKDHook is attached to a model already; call detach() first')
        model = model.module if is_model_wrapper(model) else model
        layer = find_module('USKDHook', model, 'layer', self.layer)
        loss_module = find_loss_module('USKDHook', model, self.loss_module)
        if self.classifier is None:
            self._build_classifier()
            self.classifier.to(next(model.parameters()).device)
        self._handles = [
            model.register_forward_pre_hook(Tap(self._before_forward), with_kwargs=True),
            layer.register_forward_hook(Tap(self._after_layer)),
            loss_module.register_forward_pre_hook(Tap(self._before_loss), with_kwargs=True),
            model.register_forward_hook(Tap(self._after_forward))
        ]
        self._model = model

    def detach(self) -> None:
        """Leave the model as it was before :meth:`attach`; without effect if not attached."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._model = [], None
        self._stop()

    def _build_classifier(self) -> None:
        with torch.random.fork_rng(devices=[]):  # the model draws the numbers that it draws without us
            self.classifier = self._called = nn.Linear(self.channels, self.num_classes)

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._stop()
        self._active = is_loss_pass(args, kwargs)

    def _after_layer(self, layer: nn.Module, args: tuple, output: Any) -> None:
        """The middle feature is there: compute the weak logits."""
        if self._active:
            self._weak.append(self._called(self._vector(output)))

    def _before_loss(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """The logits meet their labels."""
        if not self._active:
            return
        require_one('USKDHook', self._weak, 'layer', self.layer)
        calls, weak = read_softmax_calls(module, args, kwargs), self._weak[0]
        if sum(self._widths(calls)) != self.num_classes and len(weak):
            refuse_logits('USKDHook', self.loss_module, [call.logits for call in calls],
                          f'shape {(len(weak), self.num_classes)}, as many rows as model.{self.layer} gives '
                          'and `num_classes` columns,')
        self._calls.append(calls)

    def _widths(self, calls: List[SoftmaxCall]) -> List[int]:
        """How many logits there are of a sample."""
        samples = max(len(self._weak[0]), 1)
        return [call.logits.numel() // samples for call in calls
                if isinstance(call.logits, Tensor) and call.logits.dim() == 2]

    def _after_forward(self, model: nn.Module, args: tuple, losses: Any) -> Optional[Dict[str, Any]]:
        """Add USKD's loss to the model's own."""
        if not self._active:
            return None
        require_one('USKDHook', self._weak, 'layer', self.layer)
        weak, calls = self._weak[0], self._calls
        if torch.is_grad_enabled() and not weak.requires_grad:
            raise RuntimeError(
                f'USKDHook: model.{self.layer} runs without gradients, within a module that recomputes '
                'its activations. Take that module out of `activation_checkpointing`.')
        if not len(weak):  # no RoIs: a head may skip the loss
            loss = weak.sum() * 0
        else:
            if self.tokens != 'each' or not calls:
                require_one('USKDHook', calls, 'loss_module', self.loss_module)
            loss = self._loss(weak, calls[-1])
        self._stop()
        return {**losses, 'loss_uskd': loss}

    def _loss(self, weak: Tensor, calls: List[SoftmaxCall]) -> Tensor:
        """Of what one call of the loss module classifies: the samples, or SimCC's keypoints on each axis."""
        parts = weak.split(self._widths(calls), 1)
        return sum(self.loss(call.logits, part.reshape(call.logits.shape), call.labels, call.weight,
                             call.avg_factor) for call, part in zip(calls, parts))

    def _stop(self) -> None:
        """Forget the forward pass."""
        self._active = False
        self._weak: List[Tensor] = []
        self._calls: List[List[SoftmaxCall]] = []

    def _vector(self, feature: Any) -> Tensor:
        """A vector of each sample, (N, channels)."""
        feature = feature[0] if isinstance(feature, (tuple, list)) else feature
        feature = student_side(feature)
        if feature.dim() == 4:
            feature = feature.mean((2, 3))
        elif feature.dim() == 3:
            feature = TOKENS[self.tokens](feature)
        if feature.dim() != 2 or feature.size(1) != self.channels:
            raise ValueError(f'USKDHook: model.{self.layer} gives {tuple(feature.shape)} after averaging, '
                             f'which is not (N, {self.channels}). Correct `channels` or `layer`.')
        return feature

    # In a Runner -------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """Make the classifier a part of the training, before a resumed optimizer state is loaded."""
        if not is_training(runner) or self.classifier is not None:
            return  # no training, or one that goes on
        refuse_unsupported(runner, self)
        self._build_classifier()
        self._called = wrap_for_ddp(runner, self.classifier)
        join_optimizer(runner, self.classifier)

    def before_train(self, runner) -> None:
        """Attach."""
        self.attach(runner.model)
        print_log(f'USKD: weak logits from model.{self.layer}, labels from model.{self.loss_module}',
                  'current')

    def after_train(self, runner) -> None:
        """Give the model back as it was."""
        self.detach()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save the classifier, beside the state dict of the model."""
        if self.classifier is not None:
            checkpoint[STATE_KEY] = weights_to_cpu(self.classifier.state_dict())

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take up the classifier of a run that is being resumed.

        Raises:
            RuntimeError: If that run was trained without USKD.
        """
        if not runner._resume or self.classifier is None:
            return
        if STATE_KEY not in checkpoint:
            raise RuntimeError(
                f'USKDHook: the checkpoint was saved by a run without USKD (it has no {STATE_KEY}), so '
                'its optimizer state does not fit. Start a new run from its weights: load_from, '
                'without resume.')
        self.classifier.load_state_dict(checkpoint[STATE_KEY])
