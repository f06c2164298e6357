"""Trained heads of a detector teach others: what the student's heads are asked, they are asked too."""
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..pairing import map_leaves
from ..soft_heads import SoftHead, stage_weight
from ..teachers.mirror import Tap, members
from .dense import BOXES, DenseDistiller
from .roi import BOX_HEADS, MASK_HEADS, BoxDistiller, mask_term

ROI_HEADS = ('StandardRoIHead', 'CascadeRoIHead')
HEADS = ('bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head')


class DetectorDistiller:
    """See :func:`~mmskd.models.head_distill.distil`.

    Forward hooks on the student's heads call the teacher's with the same inputs: the same maps, or the
    same RoIs (in a cascade those that the student has refined).

    A norm layer of the teacher uses the statistics of the batch where the student's does. RetinaNet's
    layers are called level by level, each with its own statistics in training and with one mixture in
    evaluation: a student that imitates in training what the teacher says in evaluation does something
    else in evaluation (mAP 0.18 instead of 0.41 with a RetinaNet-R18 on BCCD).
    """

    def __init__(self, model: nn.Module, trained: nn.Module, heads: Sequence[str], gamma: float,
                 gt_weight: float):
        self.teacher = nn.ModuleDict(
            {name.replace('.', '/'): trained.get_submodule(name) for name in heads})
        self._gamma, self._gt_weight = gamma, gt_weight
        self._names = list(heads)
        self._model = model
        self._active = False
        self._terms: Dict[str, Tensor] = {}
        self._masks: Dict[str, Any] = {}
        self._handles: list = []
        self._norms: Dict[str, List[Tuple[nn.Module, nn.Module]]] = {}
        for name in heads:
            head = model.get_submodule(name)
            self._norms[name] = _norms(head, self.teacher[name.replace('.', '/')])
            self._tap(name, head)

    def start(self) -> None:
        """Compare the two in the forward pass that follows."""
        self._active = bool(self._gamma)
        self._terms, self._masks = {}, {}

    def stop(self) -> None:
        """Compare nothing from here on."""
        self._active = False
        self._terms, self._masks = {}, {}

    def finish(self, losses: Dict[str, Any]) -> Dict[str, Any]:
        """The model's losses, with the terms of the forward pass that is over.

        The heads' own losses count by ``gt_weight``; those of frozen parts (the RPN's) are 0. They stay in
        the graph, so that every parameter of the heads has a gradient, as DDP expects.
        """
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
        return [f'model.{name} ({type(self._model.get_submodule(name)).__name__})'
                for name in self._names]

    def _weigh(self, loss: Tensor) -> Tensor:
        return loss * (self._gt_weight if loss.requires_grad else 0.)

    def _tap(self, name: str, head: nn.Module) -> None:
        if type(head).__name__ in MASK_HEADS:
            hooks = [(head, partial(self._keep_masks, name)),
                     (head.loss_mask, partial(self._compare_masks, name))]
        else:
            dense = type(head).__name__ in BOXES
            compare = (DenseDistiller if dense else BoxDistiller)(name, head)
            hooks = [(head, partial(self._compare, name, compare))]
        self._handles += [module.register_forward_hook(Tap(hook)) for module, hook in hooks]

    @torch.no_grad()
    def _ask(self, name: str, student: nn.Module, args: tuple) -> Any:
        """The teacher's answer, in the form in which the student gives it.

        Some heads return more, or in other units, in train mode. Dropout inside stays in eval mode.
        """
        teacher = self.teacher[name.replace('.', '/')]
        teacher.training = student.training
        for mine, theirs in self._norms[name]:
            theirs.training = mine.training
        return teacher(*args)

    def _compare(self, name: str, compare: Callable, head: nn.Module, args: tuple,
                 output: Any) -> None:
        if self._active:
            for key, term in compare(output, self._ask(name, head, args)).items():
                self._add(name, key, term)

    def _keep_masks(self, name: str, head: nn.Module, args: tuple, output: Tensor) -> None:
        """The loss, which knows the classes, comes later; it is not called where there is no RoI."""
        if self._active:
            self._masks[name] = output, self._ask(name, head, args)
            self._add(name, 'loss_mask', output.sum() * 0)

    def _compare_masks(self, name: str, loss: nn.Module, args: tuple, output: Tensor) -> None:
        if name in self._masks:
            head = self._model.get_submodule(name)
            self._add(name, 'loss_mask', mask_term(head, *self._masks.pop(name), args[2]))

    def _add(self, name: str, key: str, term: Tensor) -> None:
        """Log it beside the head's own loss, with the weight of a cascade's stage."""
        stage = name.rpartition('.')[2]
        prefix = f's{stage}.' if stage.isdigit() else ''
        self._terms[f'{prefix}distill_{key}'] = term * self._gamma * stage_weight(self._model, name)


def _norms(student: nn.Module, teacher: nn.Module) -> List[Tuple[nn.Module, nn.Module]]:
    """The layers with running statistics in both; from here on those of the teacher never move."""
    norms = [(mine, theirs) for mine, theirs in zip(student.modules(), teacher.modules())
             if hasattr(theirs, 'track_running_stats')]
    for _, theirs in norms:
        theirs.track_running_stats = False
    return norms


def detector_heads(model: nn.Module, names: Optional[Sequence[str]]) -> List[str]:
    """See :func:`~mmskd.models.head_distill.heads_to_distill`."""
    kind = type(model).__name__
    if hasattr(model, 'decoder'):
        raise ValueError(f'HeadDistillHook: {kind} is not supported: its head is a few linear layers '
                         'behind the decoder, which is what finds the objects and would have to '
                         'start anew as well, with queries of its own. Teach it with DistillHook.')
    modules = dict(model.named_modules())
    found = {name: members(modules, name) for name in (HEADS if names is None else names)}
    missing = [name for name in (names or ()) if not found[name]]
    chosen = [name for group in found.values() for name in group]
    if missing or not chosen:
        there = ', '.join(name for name in HEADS if members(modules, name))
        raise ValueError(f'HeadDistillHook: {kind} has no {" or ".join(missing or HEADS)}. Heads that '
                         f'can learn from a trained one: {there or "none"}.')
    for name in chosen:
        _require_known(model, name, modules[name])
    return chosen


def _require_known(model: nn.Module, name: str, head: nn.Module) -> None:
    kind, in_roi_head = type(head).__name__, name.startswith('roi_head.')
    if in_roi_head and type(model.roi_head).__name__ not in ROI_HEADS:
        raise ValueError(f'HeadDistillHook: model.roi_head is {type(model.roi_head).__name__}, in which '
                         f'heads may be asked in other ways than in {" and ".join(ROI_HEADS)}; these '
                         'are supported.')
    known = [*BOX_HEADS, *MASK_HEADS] if in_roi_head else list(BOXES)
    if kind not in known:
        raise ValueError(f'HeadDistillHook: model.{name} is {kind}, of which it is not known what its '
                         f'outputs mean; supported are {", ".join(known)}.')
    if kind in MASK_HEADS and not getattr(head.loss_mask, 'use_mask', False):
        raise ValueError(f'HeadDistillHook: model.{name}.loss_mask is {type(head.loss_mask).__name__}; '
                         'supported is CrossEntropyLoss with use_mask=True.')
    if kind not in MASK_HEADS:
        SoftHead(name, head).undo()  # refuses a class loss without a soft-target form
