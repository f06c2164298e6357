"""Trained heads of a detector teach others.

What the student's heads are asked, they are asked too.
"""
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Union

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError

from ..finite import all_finite, tensors_in
from ..heads import DenseAdapter, HeadAdapter, TaughtHead, adapter_of, stage_weight
from ..heads.choosing import members
from ..heads.roi import BoxHeadAdapter, MaskHeadAdapter
from ..low_precision import as_plain
from ..pairing import map_leaves
from ..ranges import TEACHER, record_function
from ..taps import Tap
from ..teachers.compiled import CompiledTeacher, PlainTeacher, teacher_to_ask
from ..teachers.frozen import FollowedModes
from .dense import DenseDistiller
from .roi import BoxDistiller, mask_term

ROI_HEADS = ('StandardRoIHead', 'CascadeRoIHead')
PLACES = ('bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head')


class DetectorDistiller:
    """See :func:`~mmskd.models.head_distill.distil`.

    Forward hooks on the student's heads call the teacher's with the same inputs: the same maps, or
    the same RoIs (in a cascade those that the student has refined).

    The modules of the teacher are in the modes of the student's. RetinaNet's norm layers are called
    level by level, each with its own statistics in training and with one mixture in evaluation: a
    student that imitates in training what the teacher says in evaluation does something else in
    evaluation (mAP 0.18 instead of 0.41 with a RetinaNet-R18 on BCCD).
    """

    def __init__(self, model: nn.Module, trained: nn.Module, heads: Sequence[HeadAdapter],
                 gamma: float, gt_weight: float, precision: Optional[str] = None):
        self.heads: List[TaughtHead] = []
        self.teacher = nn.ModuleDict(
            {_key(head.name): trained.get_submodule(head.name) for head in heads})
        self._gamma, self._gt_weight = gamma, gt_weight
        self._adapters = list(heads)
        self._model = model
        self._active = False
        self._terms: Dict[str, Tensor] = {}
        self._masks: Dict[str, Any] = {}
        self._asked: Set[str] = set()
        self.refused = 0
        self._handles: list = []
        self._modes: Dict[str, FollowedModes] = {}
        self._forms: Dict[str, Union[CompiledTeacher, PlainTeacher]] = {}
        for head in heads:
            teacher = self.teacher[_key(head.name)]
            self._modes[head.name] = FollowedModes(head.head, teacher)
            self._forms[head.name] = teacher_to_ask(teacher, precision)
            self._tap(head)

    def start(self) -> None:
        """Compare the two in the forward pass that follows."""
        self._active = bool(self._gamma)
        self._terms, self._masks, self._asked = {}, {}, set()

    def stop(self) -> None:
        """Compare nothing from here on."""
        self._active = False
        self._terms, self._masks = {}, {}

    def finish(self, losses: Dict[str, Any]) -> Dict[str, Any]:
        """The model's losses, with the terms of the forward pass that is over.

        The heads' own losses count by ``gt_weight``; those of frozen parts (the RPN's) are 0. They
        stay in the graph, so that every parameter of the heads has a gradient, as DDP expects.
        """
        for adapter in self._adapters if self._active else ():
            if adapter.name not in self._asked and not isinstance(adapter, MaskHeadAdapter):
                raise UsageError(
                    f'{adapter} was not called in this step, so it was not taught. Leave it out '
                    'with the option `heads`.')
        terms, self._terms = self._terms, {}
        self.stop()
        own = {key: map_leaves(self._weigh, value) if 'loss' in key else value
               for key, value in losses.items()}
        return {**own, **terms}

    def remove(self) -> None:
        """Leave the model as it was."""
        self.stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def describe(self) -> List[str]:
        """A line for the log on each head."""
        return list(map(str, self._adapters))

    def _weigh(self, loss: Tensor) -> Tensor:
        return loss * (self._gt_weight if loss.requires_grad else 0.)

    def _tap(self, adapter: HeadAdapter) -> None:
        name, head = adapter.name, adapter.head
        if isinstance(adapter, MaskHeadAdapter):
            hooks = [(head, partial(self._keep_masks, name)),
                     (head.loss_mask, partial(self._compare_masks, name))]
        else:
            kind: Any = DenseDistiller if isinstance(adapter, DenseAdapter) else BoxDistiller
            hooks = [(head, partial(self._compare, name, kind(adapter)))]
        self._handles += [module.register_forward_hook(Tap(hook)) for module, hook in hooks]

    @torch.no_grad()
    def _ask(self, name: str, args: tuple) -> Any:
        """The teacher's answer, in the form in which the student gives it."""
        self._asked.add(name)
        self._modes[name].apply()
        form = self._forms[name]
        form.follow()
        with record_function(TEACHER):
            answer = map_leaves(as_plain, form.ask(form.model, *args))
        if all_finite(tensors_in(answer)):
            return answer
        self.refused += 1
        return None

    def _compare(self, name: str, compare: Callable, head: nn.Module, args: tuple,
                 output: Any) -> None:
        if not self._active:
            return
        answer = self._ask(name, args)
        # Where it is not finite, the student agrees with itself
        taught = answer is not None
        for key, term in compare(output, answer if taught else _detached(output)).items():
            self._add(name, key, term if taught else term * 0)

    def _keep_masks(self, name: str, head: nn.Module, args: tuple, output: Tensor) -> None:
        """The loss, which knows the classes, comes later.

        It is not called where there is no RoI.
        """
        if self._active:
            answer = self._ask(name, args)
            self._masks[name] = output, output.detach() if answer is None else answer
            self._add(name, 'loss_mask', output.sum() * 0)

    def _compare_masks(self, name: str, loss: nn.Module, args: tuple, output: Tensor) -> None:
        if name in self._masks:
            head = self._model.get_submodule(name)
            mine, theirs = self._masks.pop(name)
            self._add(name, 'loss_mask', mask_term(head, mine, theirs, args[2]))

    def _add(self, name: str, key: str, term: Tensor) -> None:
        """Log it beside the head's own loss, with the weight of a cascade's stage."""
        stage = name.rpartition('.')[2]
        prefix = f's{stage}.' if stage.isdigit() else ''
        self._terms[f'{prefix}distill_{key}'] = term * self._gamma * stage_weight(self._model, name)


def detector_heads(model: nn.Module, names: Optional[Sequence[str]]) -> List[HeadAdapter]:
    """See :func:`~mmskd.models.head_distill.heads_to_distill`."""
    kind = type(model).__name__
    if hasattr(model, 'decoder'):
        raise UsageError(
            f'{kind} is not supported: its head is a few linear layers behind the decoder, which '
            'is what finds the objects and would have to start anew as well, with queries of its '
            'own. Teach it with DistillHook.')
    modules = dict(model.named_modules())
    found = {name: members(modules, name) for name in (PLACES if names is None else names)}
    missing = [name for name in (names or ()) if not found[name]]
    chosen = [name for group in found.values() for name in group]
    if missing or not chosen:
        there = ', '.join(name for name in PLACES if members(modules, name))
        raise UsageError(
            f'{kind} has no {" or ".join(missing or PLACES)}. Heads that can learn from a '
            f'trained one: {there or "none"}.')
    adapters = [adapter_of(name, modules[name]) for name in chosen]
    for adapter in adapters:
        _require_known(model, adapter)
    return adapters


def _require_known(model: nn.Module, adapter: HeadAdapter) -> None:
    in_roi_head = adapter.name.startswith('roi_head.')
    if in_roi_head and type(model.roi_head).__name__ not in ROI_HEADS:
        raise UsageError(
            f'model.roi_head is {type(model.roi_head).__name__}, in which heads may be asked in '
            f'other ways than in {" and ".join(ROI_HEADS)}; these are supported.')
    known = (BoxHeadAdapter, MaskHeadAdapter) if in_roi_head else (DenseAdapter, )
    if adapter.refusal or not (adapter.exact and isinstance(adapter, known)):
        raise UsageError(
            f'{adapter} cannot learn from a trained head of its kind: '
            f'{adapter.refusal or "it is not known what its outputs mean"}. An adapter says it '
            '(mmskd.models.heads), for this class itself and not for one that it derives from.')
    if isinstance(adapter, MaskHeadAdapter):
        if not getattr(adapter.head.loss_mask, 'use_mask', False):
            raise UsageError(
                f'model.{adapter.name}.loss_mask is {type(adapter.head.loss_mask).__name__}; '
                'supported is CrossEntropyLoss with use_mask=True.')
    else:
        TaughtHead(adapter, soften=True).remove()  # refuses a class loss without a soft-target form


def _detached(output: Any) -> Any:
    return map_leaves(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)


def _key(name: str) -> str:
    """The name of a head as a key of a ModuleDict."""
    return name.replace('.', '/')
