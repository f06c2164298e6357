"""USKD: a network makes soft labels for itself, with a weak classifier on a middle feature."""
from contextlib import ExitStack
from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.runner.checkpoint import weights_to_cpu
from torch import Tensor, nn

from mmskd.engine.extra_parameters import join_optimizer, wrap_for_ddp
from mmskd.errors import UsageError
from mmskd.models.heads.adapter import adapter_of, derives_from, refusal_of
from mmskd.models.heads.classifier import classifier_head, find_module
from mmskd.models.losses.softmax_call import SoftmaxCall, read_softmax_calls
from mmskd.models.pairing import student_side
from mmskd.models.taps import Tap
from mmskd.models.teachers.frozen import device_of
from mmskd.options import Options
from mmskd.registry import HOOKS, MODELS

from .preconditions import is_training
from .teaching_hook import TeachingHook

TOKENS = {
    'mean': lambda feature: feature.mean(1),
    'first': lambda feature: feature[:, 0],
    'each': lambda feature: feature.flatten(0, 1),
}


@HOOKS.register_module()
class USKDHook(TeachingHook):
    """Universal self-knowledge distillation for a softmax classifier, in one line of its config.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels", ICCV 2023. Beside the model's own loss, which
    is not touched, the training minimises :class:`~mmskd.models.losses.USKDLoss`, as ``loss_uskd``.

    The weak logits that it needs come from a feature in the middle of the network, averaged over
    the positions, and a fully connected layer. That layer belongs to the hook: the model and its
    state dict stay stock. It is trained by the model's optimizer and saved under ``mmskd_uskd`` for
    a resume.

    Any model works that returns a dict of losses in ``mode='loss'`` and in which one module
    computes the classification loss when it is called with logits (N, C) and labels, once in a
    forward pass: an mmpretrain classifier; a ``BaseModel`` around a torchvision network with a
    ``nn.CrossEntropyLoss``; and

    - the class loss of an RoI head: ``layer='roi_head.bbox_roi_extractor'``,
      ``loss_module='roi_head.bbox_head.loss_cls'``, ``num_classes`` with the background;
    - DETR: ``layer='decoder.layers.2'``, ``tokens='each'``, ``loss_module='bbox_head.loss_cls'``,
      the same. The head calls the loss for every layer of the decoder; the last call, that of the
      last layer, counts;
    - SimCC: ``num_classes`` is the number of all logits of a crop, K * (bins of x + bins of y) for
      K keypoints. A class is a bin, and the target of a keypoint on an axis that with the largest
      label.

    It goes with ``mmskd.PSKDHook`` and ``mmskd.DistillHook`` on the same model.

    Without a Runner::

        hook = USKDHook(layer='backbone.layer3', channels=256, num_classes=100)
        hook.attach(model)
        optimizer = SGD([*model.parameters(), *hook.classifier.parameters()], lr=0.1)
        losses = model(inputs, data_samples, mode='loss')  # with loss_uskd
        hook.detach()

    Args:
        layer (str): Name of the module in the model that gives the middle feature: (N, channels, H,
            W), tokens (N, L, channels) or (N, channels); the first item, if it gives a tuple. The
            paper takes the last stage but one, for ViTs the middle block.
        channels (int): Of that feature.
        num_classes (int): Number of the model's logits for a sample.
        loss_module (str): Name of the module that computes the classification loss. Defaults to
            'head.loss_module', where mmpretrain has it.
        tokens (str): What becomes of tokens (N, L, channels): 'mean' and 'first' (a ViT's class
            token) make them one vector, with 'each' every token is a sample. Defaults to 'mean'.
        loss (dict, optional): Config of the USKD loss. Defaults to None: ``mmskd.USKDLoss`` with
            the paper's weights for ImageNet.

    Attributes:
        classifier (nn.Linear, optional): From the feature to the weak logits; None before the first
            :meth:`attach` (in a Runner, before the run). It stays with the hook after
            :meth:`detach`.

    Raises:
        UsageError: If an option is out of range; in :meth:`attach` if the model has no such
            modules, or its loss is no softmax loss; in the first iteration if feature or logits
            have another shape, or one of the modules is not called just once; before the run, if
            its set-up rules USKD out.
    """

    state_key = 'mmskd_uskd'
    goes_with = ('PSKDHook', 'DistillHook')
    binding = ('layer', 'channels', 'num_classes', 'loss_module', 'tokens')
    _recomputed: bool

    def __init__(self, layer: str, channels: int, num_classes: int,
                 loss_module: str = 'head.loss_module', tokens: str = 'mean',
                 loss: Optional[dict] = None):
        super().__init__()
        options = Options('USKDHook')
        self.layer = options.text('layer', layer)
        self.channels = options.whole('channels', channels, least=1)
        self.num_classes = options.whole('num_classes', num_classes, least=2)
        self.loss_module = options.text('loss_module', loss_module)
        self.tokens = options.choice('tokens', tokens, list(TOKENS))
        loss = options.config('loss', loss, optional=True) or dict(type='mmskd.USKDLoss')
        self.loss = MODELS.build(dict(loss))
        self.classifier: Optional[nn.Linear] = None
        self._called: Any = None  # the classifier, or its DDP wrapper
        self._forget()

    # Without a Runner --------------------------------------------------------------------------

    def set_up(self, model: nn.Module, undo: ExitStack) -> None:
        """Listen to the layer and the loss module."""
        layer = find_module(model, self.layer, 'layer')
        head = classifier_head(model, self.loss_module)
        reason = refusal_of(model) or adapter_of('', head.head).refusal or _classifies_priors(
            head.head)
        if reason:
            raise UsageError(f'{type(model).__name__} with {head} cannot be taught: {reason}')
        _refuse_double_head(model, self.layer)
        loss, = head.target_losses().values()
        if self.classifier is None:
            self._build_classifier().to(device_of(model))
        for handle in (layer.register_forward_hook(Tap(self._after_layer)),
                       loss.register_forward_pre_hook(Tap(self._before_loss), with_kwargs=True)):
            undo.callback(handle.remove)

    def begin(self, model: nn.Module) -> bool:
        """Nothing is known yet of this pass."""
        self._forget()
        self._grad = torch.is_grad_enabled()
        return True

    def _build_classifier(self) -> nn.Linear:
        # the model draws the numbers that it draws without us
        with torch.random.fork_rng(devices=[]):
            self.classifier = self._called = nn.Linear(self.channels, self.num_classes)
        return self.classifier

    def _after_layer(self, layer: nn.Module, args: tuple, output: Any) -> None:
        """The middle feature is there: compute the weak logits."""
        if self._counts():
            self._weak.append(self._called(self._vector(output)))

    def _before_loss(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """The logits meet their labels."""
        if not self._counts() or kwargs.get('reduction_override') == 'none':
            return  # the loss of each sample weighs it (PISA), or tells whether it is a hard one
        weak, calls = self._weak_logits(), read_softmax_calls(module, args, kwargs)
        if sum(self._widths(calls)) != self.num_classes and len(weak):
            self._refuse([call.logits for call in calls], len(weak))
        self._calls.append(calls)

    def _weak_logits(self) -> Tensor:
        """Of this forward pass, now that they are needed."""
        if self._recomputed and not self._weak:
            raise UsageError(
                f'USKDHook: model.{self.layer} runs without gradients, within a module that '
                'recomputes its activations. Take that module out of `activation_checkpointing`.')
        _require_one(self._weak, 'layer', self.layer)
        return self._weak[0]

    def _counts(self) -> bool:
        """Whether a call is a part of what is minimised.

        PISA asks its head without gradients before, to sample.
        """
        counts = self._inside and torch.is_grad_enabled() == self._grad
        self._recomputed = self._recomputed or self._inside and not counts
        return counts

    def _widths(self, calls: List[SoftmaxCall]) -> List[int]:
        """How many logits there are of a sample."""
        samples = max(len(self._weak[0]), 1)
        return [call.logits.numel() // samples for call in calls
                if isinstance(call.logits, Tensor) and call.logits.dim() == 2]

    def end(self, losses: Dict[str, Any]) -> Dict[str, Any]:
        """The model's own losses, with USKD's."""
        weak, calls = self._weak_logits(), self._calls
        if not len(weak):  # no RoIs: a head may skip the loss
            loss = weak.sum() * 0
        else:
            if self.tokens != 'each' or not calls:
                _require_one(calls, 'loss_module', self.loss_module)
            loss = self._loss(weak, calls[-1])
        self._forget()
        return {**losses, 'loss_uskd': loss}

    def _loss(self, weak: Tensor, calls: List[SoftmaxCall]) -> Tensor:
        """Of what one call of the loss module classifies.

        The samples, or SimCC's keypoints on each axis.
        """
        parts = weak.split(self._widths(calls), 1)
        return sum(self.loss(call.logits, part.reshape(call.logits.shape), call.labels, call.weight,
                             call.avg_factor) for call, part in zip(calls, parts))

    def _refuse(self, logits: Sequence[Any], samples: int) -> None:
        got = ' and '.join(
            str(tuple(each.shape)) if isinstance(each, Tensor) else f'a {type(each).__name__}'
            for each in logits) or 'something else'
        raise UsageError(
            f'USKDHook: model.{self.loss_module} is called with {got} where (logits, labels) with '
            f'logits of shape {(samples, self.num_classes)}, as many rows as model.{self.layer} '
            'gives and `num_classes` columns, were expected. It is for heads that classify by a '
            'softmax.')

    def _forget(self) -> None:
        """Forget the forward pass."""
        self._weak: List[Tensor] = []
        self._calls: List[List[SoftmaxCall]] = []
        self._recomputed = False

    def _vector(self, feature: Any) -> Tensor:
        """A vector of each sample, (N, channels)."""
        feature = feature[0] if isinstance(feature, (tuple, list)) else feature
        feature = student_side(feature)
        if feature.dim() == 4:
            feature = feature.mean((2, 3))
        elif feature.dim() == 3:
            feature = TOKENS[self.tokens](feature)
        if feature.dim() != 2 or feature.size(1) != self.channels:
            raise UsageError(
                f'USKDHook: model.{self.layer} gives {tuple(feature.shape)} after averaging, '
                f'which is not (N, {self.channels}). Correct `channels` or `layer`.')
        return feature

    # In a Runner -------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """Make the classifier a part of the training, before an optimizer state is loaded."""
        super().before_run(runner)
        if not is_training(runner) or self.classifier is not None:
            return  # no training, or one that goes on
        self._build_classifier()
        self._called = wrap_for_ddp(runner, self.classifier)
        join_optimizer(runner, self.classifier)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take up the classifier of a run that is being resumed (see ``DistillHook``).

        Raises:
            UsageError: If that run was trained without USKD.
        """
        super().after_load_checkpoint(runner, checkpoint)
        if not self._resumed:
            return
        self.before_run(runner)
        if self.classifier is not None and self._restored is None:
            raise UsageError(
                'USKDHook: the checkpoint was saved by a run without USKD (it has no '
                f'{self.state_key}), so its optimizer state does not fit. Start a new run from its '
                'weights: load_from, without resume.')
        self.require_same_state()

    def state(self) -> Optional[dict]:
        """The classifier."""
        return weights_to_cpu(self.classifier.state_dict())

    def restore(self, state: dict) -> None:
        """Go on with this classifier."""
        self.classifier.load_state_dict(state)

    def announce(self, runner) -> List[str]:
        """What is compared."""
        return [f'USKD: weak logits from model.{self.layer}, labels from model.{self.loss_module}']


def _classifies_priors(head: nn.Module) -> str:
    """Why a one-stage head has no weak logits; empty for other heads."""
    dense = derives_from(head, 'BaseDenseHead')
    if not dense:
        return ''
    return 'it classifies priors, of which a feature in the middle of the network knows nothing'


def _refuse_double_head(model: nn.Module, layer: str) -> None:
    """Double-Head R-CNN takes the features of its RoIs twice, for classes and for boxes.

    Raises:
        UsageError: If ``layer`` is what takes them.
    """
    roi_head = getattr(model, 'roi_head', None)
    if derives_from(roi_head, 'DoubleHeadRoIHead') and layer == 'roi_head.bbox_roi_extractor':
        raise UsageError(
            'USKDHook: model.roi_head.bbox_roi_extractor is called twice in DoubleHeadRoIHead, for '
            'classes '
            "and for boxes. Set layer='roi_head.bbox_head.fc_branch.0', which is of the classes, "
            "with "
            f'channels={roi_head.bbox_head.fc_out_channels}.')


def _require_one(calls: list, option: str, name: str) -> None:
    """Refuse a module that was not called just once.

    Raises:
        UsageError: Names it.
    """
    if len(calls) != 1:
        raise UsageError(
            f'USKDHook: model.{name} was called {len(calls)} times in a forward pass when its '
            f'result was needed, not once. Choose another `{option}`: one classification loss is '
            'needed, of all samples at once.')
