"""What each hook does with each stock model: teaches it, or refuses it before the first iteration.

Builds the configs that the installed MMDetection and MMPose ship, made small, and takes a training
step of each with each hook of mmskd. A family is one combination of detector, heads, losses and
assigners; one of its configs is tried, or all with --all. The result goes to results/coverage.json
and docs/coverage.md.

A model is *taught* if, in a step,

- PSKDHook: at alpha 0 all losses are bit-equal to the stock ones; where the past self is the
  present one, at alpha 1, the class loss has no gradient; where it differs, each call of a class
  loss changes, and no other loss; "other heads" is the same with each further head in its option
  `heads`;
- DistillHook: a teacher adds a term that reaches every call of a class loss, and leaves the stock
  losses as they are; a copy of the student adds a term without gradient;
- HeadDistillHook: the term is there and reaches the heads alone, labels weigh nothing, and a head
  that equals the trained one has no gradient;
- NKDHook (where a softmax classifies; NKDLoss is DistillHook with that loss) and USKDHook: the term
  is there.

Anything but that or a refusal when the hook is attached is a FAULT, and the exit status 1.
"""
import argparse
import fnmatch
import hashlib
import json
import os
import queue
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import defaultdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from small_models import (
    SIDES,
    SmallModel,
    config_names,
    disturb,
    import_models,
    kind,
    loss_values,
    signature,
)
from torch import Tensor, nn

import mmskd
from mmskd.config import load_config, project_of
from mmskd.engine.hooks import DistillHook, HeadDistillHook, NKDHook, PSKDHook, USKDHook

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(mmskd.__file__).resolve().parent
TAUGHT, REFUSED, NOT_APPLICABLE, FAULT = 'taught', 'refused', '-', 'FAULT'
PACKAGES = ('mmdet', 'mmpose')
TOLERANCE = 1e-4
EXACT = dict(precision=None)
"""In the precision of the student a teacher says exactly what the student says."""
"""A gradient counts as none below this part of the stock one."""


class Fault(Exception):
    """A step was taken, and something about it is wrong."""


class NotApplicable(Exception):
    """There is nothing that the hook could be asked to do."""


class Refused(Exception):
    """The hook does not take the model, and said so when it was attached."""


# What a model's step shows ----------------------------------------------------------------------


class Call(NamedTuple):
    """One call of a class loss: the module's name, what it was given, and what it returned."""
    module: str
    predictions: List[Tensor]
    output: Tensor


class ClassLosses:
    """Watches the modules that compute a model's class and keypoint losses, in its next step.

    It is to be made before a hook is attached.
    """

    def __init__(self, model: nn.Module):
        self.calls: List[Call] = []
        self._pending: Dict[nn.Module, List[Tensor]] = {}
        self._handles = []
        for name, module in class_loss_modules(model).items():
            self._handles += [
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after(name))
            ]

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        tensors = [item for item in (given if isinstance(given, (tuple, list)) else [given])
                   if isinstance(item, Tensor) and item.requires_grad]
        for tensor in tensors:
            tensor.retain_grad()
        self._pending[module] = tensors

    def _after(self, name: str) -> Callable:

        def after(module: nn.Module, args: tuple, output: Any) -> None:
            outputs = list(output.values()) if isinstance(output, dict) else [output]
            total = sum(item.sum() for item in outputs if isinstance(item, Tensor))
            if isinstance(total, Tensor):
                self.calls.append(Call(name, self._pending.pop(module, []), total))

        return after

    def take(self) -> List[Call]:
        """The calls of that step; no more are watched."""
        for handle in self._handles:
            handle.remove()
        return self.calls


def class_loss_modules(model: nn.Module) -> Dict[str, nn.Module]:
    """The modules that compute losses of classes or keypoints, by name."""
    return {name: module for name, module in model.named_modules()
            if re.search(r'(^|\.)(\w*loss_cls|loss_module)(\.\d+)?$', name)
            and not isinstance(module, nn.ModuleList)}


class Step(NamedTuple):
    """A forward pass: the losses by name, and the calls of class losses."""
    losses: Dict[str, Tensor]
    calls: List[Call]


def step(small: SmallModel, model: nn.Module, attach: Optional[Callable[[], None]] = None) -> Step:
    """The losses of a step of ``model``, after ``attach``."""
    watch = ClassLosses(model)
    if attach is not None:
        attach()
    losses = small.losses(model)
    return Step(loss_values(losses), watch.take())


def attach(hook: Any, model: nn.Module) -> None:
    """Attach a hook.

    Raises:
        Refused: If the hook refuses the model, as an error of mmskd, and left it unchanged.
        Fault: If it refuses it in another way.
    """
    before = _traces(model)
    try:
        hook.attach(model)
    except ValueError as error:
        if SOURCE not in Path(_last_frame(error).filename).parents:
            raise
        if _traces(model) != before:
            raise Fault(f'refused, but the model is not as it was: {error}') from error
        raise Refused(str(error)) from error


def detach(hook: Any, model: nn.Module, before: dict) -> None:
    """Detach a hook; a fault if it leaves traces."""
    hook.detach()
    after = _traces(model)
    if after != before:
        changed = next(name for name in before if before[name] != after.get(name))
        raise Fault(f'left traces in model.{changed} after detach()')


def _traces(model: nn.Module) -> dict:
    """All that attaching could leave behind: class, attributes and hooks of each module."""
    return {name: (type(module), sorted(vars(module)), len(module._forward_hooks),
                   len(module._forward_pre_hooks), list(module._modules), module.training,
                   [parameter.requires_grad for parameter in module.parameters(False)])
            for name, module in model.named_modules()}


def _last_frame(error: BaseException) -> traceback.FrameSummary:
    return traceback.extract_tb(error.__traceback__)[-1]


def require(condition: bool, message: str) -> None:
    """Raise a fault unless something holds."""
    if not condition:
        raise Fault(message)


def require_same(stock: Dict[str, Tensor], losses: Dict[str, Tensor], what: str) -> None:
    """Each stock loss is bit-equal in ``losses``."""
    for key, value in stock.items():
        require(key in losses, f'{what}: {key} is missing')
        require(torch.equal(value, losses[key]),
                f'{what}: {key} is {_number(losses[key])} instead of {_number(value)}')


def require_finite(losses: Dict[str, Tensor], what: str) -> None:
    """No infinite loss and no NaN."""
    for key, value in losses.items():
        require(bool(torch.isfinite(value).all()), f'{what}: {key} is {_number(value)}')


def _number(value: Tensor) -> str:
    return f'{float(value.sum()):.6g}'


def backward(total: Any, calls: Sequence[Call]) -> None:
    """Gradients of a total at the predictions of the calls, and of its parameters."""
    for call in calls:
        for tensor in call.predictions:
            tensor.grad = None
    if isinstance(total, Tensor) and total.requires_grad:
        total.backward(retain_graph=True)


def largest(tensors: Sequence[Tensor]) -> float:
    """The largest gradient among those of some tensors."""
    return max((float(tensor.grad.abs().max()) for tensor in tensors
                if tensor.grad is not None and tensor.numel()), default=0.)


def gradient(total: Any, model: nn.Module) -> float:
    """The largest gradient of a total among the parameters of a model."""
    model.zero_grad()
    backward(total, [])
    return largest(list(model.parameters()))


def class_loss(losses: Dict[str, Tensor], rpn: bool = False) -> Any:
    """The sum of those losses that a teacher softens; 0 if there is none."""
    return sum(losses[key].sum() for key in class_losses(losses, rpn))


def class_losses(losses: Dict[str, Tensor], rpn: bool = False) -> List[str]:
    """The names of the losses of classes and keypoints.

    Those of the RPN only where there are no others.

    Args:
        losses (dict): By name.
        rpn (bool): Those of the RPN instead. Defaults to False.
    """
    keys = [key for key in losses if re.search('cls|kpt|heatmap|det_loss', key)
            and not re.search('aux|bbox', key)]
    return [key for key in keys if ('rpn' in key) == rpn] or keys


def without_dropout(model: nn.Module) -> nn.Module:
    """Two passes of one model are then equal."""
    for module in model.modules():
        for key in ('p', 'dropout', 'drop_prob', 'attn_drop', 'proj_drop'):
            if isinstance(vars(module).get(key), float):
                setattr(module, key, 0.)
    return model


def with_frozen_norms(model: nn.Module) -> nn.Module:
    """In training as in evaluation."""
    for module in model.modules():
        if hasattr(module, 'track_running_stats'):
            module.training = False
    return model


class Stock(NamedTuple):
    """A family's small model and what a step of it shows without a hook.

    Attributes:
        small (SmallModel): The model.
        step (Step): Of the stock model.
        norm (float): The largest gradient of the class losses among the parameters.
        counts (list[bool]): Whether a call of a class loss is a part of what is minimised; not
            where nothing was left to classify, or where it serves to assign targets. For the RPN's
            and all others.
        traces (dict): What a step leaves on the model: some heads keep something from their first
            one on.
    """
    small: SmallModel
    step: Step
    norm: float
    counts: List[bool]
    traces: dict

    @property
    def losses(self) -> Dict[str, Tensor]:
        """The stock losses by name."""
        return self.step.losses


def take_stock(name: str) -> Stock:
    """Take a step of a config without any hook, on the smallest images that it can be taken on.

    Raises:
        Exception: Whatever the model raises; it cannot be trained here.
    """
    cfg = load_config(name)
    if 'model' not in cfg:
        raise LookupError('it has no model of its own')
    sizes = [(side, narrow) for side in SIDES for narrow in (True, False)]
    if project_of(cfg) == 'mmpose':  # has a size of its own
        sizes = [(SIDES[0], False)]
    for side, narrow in sizes:
        try:
            small = SmallModel(name, side, cfg, narrow)
            model = small.copy()
            watch = ClassLosses(model)
            losses = small.losses(model)
            total, _ = model.parse_losses(losses)  # as the runner does
            gradient(total, model)
            break
        except ImportError:
            raise
        except Exception:
            if (side, narrow) == sizes[-1]:
                raise
    values, calls = loss_values(losses), watch.take()
    norm = gradient(class_loss(values), model)
    backward(class_loss(values) + class_loss(values, rpn=True), calls)
    counts = [largest(call.predictions) > 0 for call in calls]
    values = {key: value.detach() for key, value in values.items()}
    for key, value in values.items():
        if not torch.isfinite(value).all():
            raise ArithmeticError(f'the stock {key} is {_number(value)}')
    return Stock(small, Step(values, calls), norm, counts, _traces(model))


# What each hook does with it --------------------------------------------------------------------


def check_pskd(stock: Stock, **options) -> None:
    """See the module."""
    small = stock.small
    model, hook = small.copy(), PSKDHook(**options, **EXACT)

    def start(alpha_t: float) -> None:
        attach(hook, model)
        hook.refresh_teacher()
        hook.alpha_t = alpha_t

    hard = step(small, model, lambda: start(0.))
    require_same(stock.losses, hard.losses, 'at alpha 0')
    require(hard.losses.keys() == stock.losses.keys(), 'at alpha 0: there are other losses')
    detach(hook, model, stock.traces)
    _check_fixed_point(stock, options)
    _check_other_past(stock, options)


def _check_fixed_point(stock: Stock, options: dict) -> None:
    """Where the past self is the present one, the class loss has no gradient."""
    model, hook = without_dropout(stock.small.copy()), PSKDHook(**options, **EXACT)

    def start() -> None:
        attach(hook, model)
        hook.refresh_teacher()
        hook.alpha_t = 1.

    soft = step(stock.small, model, start)
    require_finite(soft.losses, 'at alpha 1')
    size = gradient(class_loss(soft.losses, _rpn(options)), model)
    require(size <= TOLERANCE * stock.norm + 1e-9,
            f'at alpha 1 with itself for a past self the class loss has a gradient of {size:.3g} '
            f'(stock: {stock.norm:.3g})')
    hook.detach()


def _check_other_past(stock: Stock, options: dict) -> None:
    """Where it differs, each call of a class loss of a taught head changes, and nothing else."""
    small, model, hook = stock.small, stock.small.copy(), PSKDHook(**options, **EXACT)

    def start() -> None:
        attach(hook, model)
        hook.refresh_teacher()
        disturb(hook.teacher)
        hook.alpha_t = 1.

    soft = step(small, model, start)
    hook.detach()
    require_finite(soft.losses, 'at alpha 1')
    hard = stock.step.calls
    require(
        len(hard) == len(soft.calls),
        f'{len(soft.calls)} calls of class losses instead of {len(hard)}')
    for before, after, counts in zip(hard, soft.calls, stock.counts):
        if counts and _chosen(options, after):
            require(float(before.output) != float(after.output),
                    f'untaught: a call of {before.module} is the stock one at alpha 1')
    changed = [
        key for key, value in stock.losses.items() if not torch.equal(value, soft.losses[key])
    ]
    require(bool(changed), 'untaught: at alpha 1 all losses are the stock ones')
    others = [key for key in changed if key not in class_losses(stock.losses, _rpn(options))]
    require(not others, f'at alpha 1 {", ".join(others)} changes as well')


def _chosen(options: dict, call: Call) -> bool:
    """Whether the call is one of a head that the option `heads` names.

    By default all but the RPN's.
    """
    heads = options.get('heads')
    return 'rpn_head.' not in call.module if heads is None else any(
        call.module.startswith(f'{head}.') for head in heads)


def _rpn(options: dict) -> bool:
    return any('rpn_head' in head for head in options.get('heads', ()))


DEFAULT_HEADS = ('bbox_head', 'roi_head.bbox_head', 'mask_head', 'panoptic_head', 'head',
                 'head.pose_head')


def check_other_heads(stock: Stock) -> None:
    """As PSKDHook, for each head with a class loss not taught by default, or refused."""
    names = dict.fromkeys(
        re.sub(r'\.\w+(\.\d+)?$', '', name) for name in class_loss_modules(stock.small.stock))
    names = dict.fromkeys(re.sub(r'\.\d+$', '', name) for name in names)
    try:
        attach(PSKDHook(**EXACT), stock.small.copy())
        names = [name for name in names if name not in DEFAULT_HEADS]
    except Refused:
        pass
    refusals = []
    for name in names:
        try:
            check_pskd(stock, heads=[name])
        except Refused as refusal:
            refusals.append(str(refusal))
        except Fault as fault:
            raise Fault(f'heads=[{name!r}]: {fault}') from fault
        except Exception as error:
            raise Fault(f'heads=[{name!r}]: {type(error).__name__}: {_one_line(error)} '
                        f'[{_place(error)}]') from error
    if not names:
        raise NotApplicable
    if len(refusals) == len(names):
        raise Refused(refusals[0])


def check_distill(stock: Stock, **options) -> None:
    """See the module."""
    small = stock.small
    model = small.copy()
    hook = DistillHook(teacher=small.another(), schedule='constant', **options, **EXACT)
    taught = step(small, model, lambda: attach(hook, model))
    require_finite(taught.losses, 'with a teacher')
    terms = _terms(stock, taught)
    norm = gradient(sum(terms.values()), model)
    backward(sum(terms.values()), taught.calls)
    require(norm > 0, 'untaught: no gradient of the terms')
    for call, counts in zip(taught.calls, stock.counts):
        asked = counts and _chosen(options, call) and not _by_other_losses(hook, call, taught)
        require(not asked or largest(call.predictions) > 0,
                f'untaught: no gradient of the terms at a call of {call.module}')
    hook.detach()
    if 'losses' in options:  # NKD has a gradient at agreement
        return
    model = with_frozen_norms(without_dropout(small.copy()))
    teacher = without_dropout(small.copy())
    hook = DistillHook(teacher=teacher, schedule='constant', **options, **EXACT)
    agreed = step(small, model, lambda: attach(hook, model))
    if _added(stock, agreed):
        size = gradient(sum(value.sum() for value in _added(stock, agreed).values()), model)
        require(size <= TOLERANCE * norm + 1e-9,
                f'a teacher that equals the student answers something else: gradient {size:.3g} '
                f'(of another one: {norm:.3g})')
    hook.detach()


def _by_other_losses(hook: DistillHook, call: Call, taught: Step) -> bool:
    """Whether the head of a call is taught, and by no loss of classes: RTMO by its bins alone."""
    seen = {each.module for each in taught.calls}
    return any(
        call.module.startswith(f'{head.name}.') and head.losses and not seen & set(head.losses)
        for head in hook.heads_taught)


def _added(stock: Stock, taught: Step) -> Dict[str, Tensor]:
    return {key: value for key, value in taught.losses.items() if key not in stock.losses}


def _terms(stock: Stock, taught: Step) -> Dict[str, Tensor]:
    """The losses that a teacher adds, in a loss of their own or within the class loss."""
    changed = {key: value for key, value in taught.losses.items()
               if key in stock.losses and not torch.equal(stock.losses[key], value)}
    others = [key for key in changed if 'cls' not in key]
    require(not others, f'with a teacher the stock {", ".join(others)} changes')
    terms = {**_added(stock, taught), **changed}
    require(bool(terms), 'untaught: no term was added')
    for key, value in terms.items():
        require(value.requires_grad, f'{key} has no gradient')
    return {key: value.sum() for key, value in terms.items()}


def check_head_distill(stock: Stock) -> None:
    """See the module."""
    small = stock.small
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = os.path.join(folder, 'trained.pth')
        torch.save(dict(state_dict=small.another().state_dict(), meta={}), checkpoint)
        model, hook = small.copy(), HeadDistillHook(checkpoint, **EXACT)
        taught = step(small, model, lambda: attach(hook, model))
        require_finite(taught.losses, 'with a trained head')
        terms = _added(stock, taught)
        require(bool(terms), 'untaught: no term was added')
        for key, value in taught.losses.items():
            if key in terms:
                continue
            weight = float(value.detach().abs().sum())
            require(weight == 0, f'{key} is {weight:.4g} although labels weigh 0')
        total = sum(value.sum() for value in terms.values())
        require(total.requires_grad and float(total) != 0, 'untaught: the term has no gradient')
        total.backward()
        moved = [name for name, parameter in model.named_parameters()
                 if parameter.grad is not None and parameter.grad.abs().max() > 0]
        require(bool(moved), 'untaught: the term has no gradient')
        frozen = [name for name in moved if name.startswith(('backbone.', 'neck.', 'rpn_head.'))]
        require(not frozen, f'model.{frozen[0] if frozen else ""} is not frozen')
        size = max(float(parameter.grad.abs().max()) for parameter in model.parameters()
                   if parameter.grad is not None)
        hook.detach()
        model = with_frozen_norms(without_dropout(small.copy()))
        hook = HeadDistillHook(checkpoint, reinit_head=False, **EXACT)
        agreed = step(small, model, lambda: attach(hook, model))
        total = sum(agreed.losses[key].sum() for key in terms)
        total.backward()
        rest = max((float(parameter.grad.abs().max()) for parameter in model.parameters()
                    if parameter.grad is not None), default=0.)
        require(
            rest <= 1e-3 * size + 1e-7,
            f'a head that equals the trained one has a gradient of {rest:.3g} (another: {size:.3g})'
        )
        hook.detach()


def softmax_loss(stock: Stock) -> Optional[str]:
    """The name of the first class loss of a model that is a softmax; None if there is none."""
    modules = dict(stock.small.stock.named_modules())
    for call in stock.step.calls:
        loss = modules[call.module]
        softmax = type(loss).__name__ in ('CrossEntropyLoss', 'KLDiscretLoss')
        if 'rpn_head.' not in call.module and softmax and \
                not getattr(loss, 'use_sigmoid', False):
            return call.module
    return None


def check_nkd(stock: Stock) -> None:
    """See the module."""
    small, model = stock.small, stock.small.copy()
    hook = NKDHook(teacher=small.another(), loss_module=softmax_loss(stock))
    taught = step(small, model, lambda: attach(hook, model))
    require_finite(taught.losses, 'with a teacher')
    _terms(stock, taught)
    hook.detach()
    try:
        attach(DistillHook(teacher=small.another(), **EXACT), small.copy())
    except Refused as refusal:
        raise Fault(f'teaches what DistillHook refuses: {refusal}') from refusal


def check_nkd_loss(stock: Stock) -> None:
    """See the module."""
    check_distill(stock, losses=[dict(type='mmskd.NKDLoss')])


def check_uskd(stock: Stock) -> None:
    """See the module."""
    small, model = stock.small, stock.small.copy()
    hook = USKDHook(**uskd_options(stock))
    taught = step(small, model, lambda: attach(hook, model))
    require_finite(taught.losses, 'with USKD')
    terms = _added(stock, taught)
    require(bool(terms), 'untaught: no term was added')
    require_same(stock.losses, taught.losses, 'with USKD')
    hook.classifier.zero_grad()
    sum(value.sum() for value in terms.values()).backward()
    require(
        float(hook.classifier.weight.grad.abs().max()) > 0, 'the weak classifier has no gradient')
    hook.detach()


def uskd_options(stock: Stock) -> dict:
    """A middle feature of what a model's softmax classifies, as docs/nkd_uskd.md has it."""
    loss_module = softmax_loss(stock)
    model = stock.small.copy()
    modules = dict(model.named_modules())
    call = next(call for call in stock.step.calls
                if call.module == loss_module and call.predictions)
    tokens = 'mean'
    if 'roi_head.bbox_head.' in loss_module:
        layer, _, stage = loss_module.rpartition('.')[0].partition('.bbox_head')
        layer = f'{layer}.bbox_roi_extractor{stage}'
    elif any(name.endswith('decoder.layers') for name in modules):
        layers = next(name for name in modules
                      if name.endswith('decoder.layers') and 'pixel' not in name)
        layer, tokens = f'{layers}.{len(modules[layers]) // 2}', 'each'
    else:
        layer = _last_stage_but_one(stock.small, model)
    sizes: List[Tensor] = []
    handle = modules[layer].register_forward_hook(lambda module, args, output: sizes.append(
        output if isinstance(output, Tensor) else output[0]))
    stock.small.losses(model)
    handle.remove()
    feature = sizes[0]
    classes = sum(prediction.shape[-1] * (prediction.shape[1] if prediction.dim() == 3 else 1)
                  for prediction in call.predictions)
    return dict(layer=layer, channels=feature.shape[-1] if feature.dim() == 3 else feature.shape[1],
                num_classes=classes, loss_module=loss_module, tokens=tokens)


def _last_stage_but_one(small: SmallModel, model: nn.Module) -> str:
    """Of the backbone's children that give maps."""
    maps: List[str] = []
    backbone = next(name for name, _ in model.named_modules()
                    if name.rpartition('.')[2] == 'backbone')
    handles = [child.register_forward_hook(
        lambda module, args, output, name=name: maps.append(name)
        if isinstance(output, Tensor) and output.dim() == 4 else None)
        for name, child in model.get_submodule(backbone).named_children()]
    small.losses(model)
    for handle in handles:
        handle.remove()
    stages = list(dict.fromkeys(maps))
    return f'{backbone}.{stages[-2]}' if len(stages) > 1 else backbone


CHECKS: Dict[str, Callable[[Stock], None]] = {
    'PSKDHook': check_pskd,
    'other heads': check_other_heads,
    'DistillHook': check_distill,
    'HeadDistillHook': check_head_distill,
    'NKDHook': check_nkd,
    'NKDLoss': check_nkd_loss,
    'USKDHook': check_uskd,
}
SOFTMAX = ('NKDHook', 'NKDLoss', 'USKDHook')


def outcome(stock: Stock, hook: str, check: Optional[Callable[[], None]] = None) -> Tuple[str, str]:
    """What a hook does with a model: one of the four outcomes, and the reason."""
    if check is None:
        if hook in SOFTMAX and not (softmax_loss(stock)
                                    or hook == 'NKDLoss' and not stock.step.calls):
            return NOT_APPLICABLE, ''
        check = lambda: CHECKS[hook](stock)  # noqa: E731
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            check()
    except NotApplicable:
        return NOT_APPLICABLE, ''
    except Refused as refusal:
        return REFUSED, str(refusal)
    except Fault as fault:
        return FAULT, str(fault)
    except Exception as error:
        place = _place(error)
        late = 'refused, but only in the first iteration: ' if isinstance(error, ValueError) and \
            place.startswith('mmskd/') else ''
        return FAULT, f'{late}{type(error).__name__}: {_one_line(error)} [{place}]'
    return TAUGHT, ''


def _one_line(error: BaseException) -> str:
    """Its message, without the folders of this machine."""
    text = re.sub(r'[^\s\'"]*site-packages/', '', ' '.join(str(error).split()))
    return text.replace(f'{SOURCE.parent}/', '')[:400]


def _place(error: BaseException) -> str:
    """Where it was raised: file and line."""
    frame = _last_frame(error)
    file = frame.filename.rpartition('site-packages/')[2].replace(f'{SOURCE.parent}/', '')
    return f'{file}:{frame.lineno}'


# A config in a process of its own ---------------------------------------------------------------


def work() -> None:
    """Answer requests on stdin, {config, hooks}, with a line of JSON each on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    import_models()
    print(json.dumps(dict(ready=True)), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(try_config(request['config'], request['hooks'])), file=answers, flush=True)


def try_config(name: str, hooks: Sequence[str]) -> dict:
    """The outcome of each hook on a config, ``{hook: [outcome, reason]}``.

    For one that cannot be trained, why not.
    """
    try:
        stock = take_stock(name)
    except Exception as error:
        return dict(untrainable=f'{type(error).__name__}: {_one_line(error)}', at=_place(error))
    return dict(side=stock.small.side, hooks={hook: outcome(stock, hook) for hook in hooks})


WORKER = (sys.executable, __file__, '--worker')


class Worker:
    """A process that tries configs, started anew after it has died or had enough of them.

    Args:
        timeout (float): Seconds for one config.
        command (sequence[str]): What does as :func:`work`.
        most (int): Configs for a process; memory is not all given back. Defaults to 20.
    """

    def __init__(self, timeout: float, command: Sequence[str] = WORKER, most: int = 20):
        self._timeout, self._command, self._most = timeout, command, most
        self._process: Optional[subprocess.Popen] = None
        self._done = 0

    def ask(self, name: str, hooks: Sequence[str]) -> dict:
        """What :func:`try_config` returns.

        A process that dies or hangs is a fault of the config.
        """
        if self._process is None or self._done >= self._most:
            self.stop()
            self._start()
        process = self._process
        timer = threading.Timer(self._timeout, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(dict(config=name, hooks=list(hooks))) + '\n')
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ''
        finally:
            hung = not timer.is_alive()
            timer.cancel()
        self._done += 1
        if line:
            return json.loads(line)
        status = process.wait()
        self._process = None
        reason = f'no answer in {self._timeout:g} s' if hung else \
            f'the process ended with status {status}'
        return dict(crashed=reason)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True)
        self._process.stdout.readline()
        self._done = 0


# All of them ------------------------------------------------------------------------------------


def versions() -> Dict[str, str]:
    """Of what the results depend on, by package."""
    found = {}
    for names in (('torch', ), ('mmcv', 'onedl-mmcv'), ('mmengine', 'onedl-mmengine'),
                  ('mmdet', 'onedl-mmdetection'), ('mmpose', 'onedl-mmpose')):
        for name in names[::-1]:
            try:
                found[name] = version(name)
                break
            except PackageNotFoundError:
                continue
    return found


def code_version() -> str:
    """A digest of the code that decides the outcomes and of the installed packages."""
    digest = hashlib.sha1(json.dumps(versions()).encode())
    files = sorted(SOURCE.rglob('*.py')) + [
        Path(__file__), Path(__file__).with_name('small_models.py')
    ]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


class Family(NamedTuple):
    """Configs that are taught in the same way.

    Attributes:
        key (tuple[str]): Their signature.
        configs (list[str]): Their names, the representative first.
    """
    key: Tuple[str, ...]
    configs: List[str]


def find_families(cache: Path) -> Tuple[List[Family], Dict[str, str]]:
    """The families of all shipped configs, and the configs that cannot be read, with the reason."""
    digest = hashlib.sha1((json.dumps(versions()) + Path(__file__).with_name(
        'small_models.py').read_text()).encode()).hexdigest()[:12]
    file = cache / f'index_{digest}.json'
    if file.is_file():
        index = json.loads(file.read_text())
    else:
        index = _read_configs()
        _write(file, index)
    families: Dict[Tuple[str, ...], List[str]] = defaultdict(list)
    for name, entry in index['read'].items():
        families[tuple(entry['signature'])].append(name)
    return [Family(key, sorted(names, key=lambda name: _rank(name, names, index['read'])))
            for key, names in families.items()], index['unread']


def _read_configs() -> dict:
    read, unread = {}, {}
    names = [name for package in PACKAGES for name in config_names(package)]
    progress = Progress(len(names), every=100)
    for name in names:
        progress.tell(f'reading {name}')
        try:
            cfg = load_config(name)
            if 'model' not in cfg:
                continue  # a part of configs
            read[name] = dict(signature=signature(cfg), light=_is_light(cfg),
                              trains=bool(cfg.get('train_dataloader')))
        except Exception as error:
            unread[name] = f'{type(error).__name__}: {_one_line(error)}'
    return dict(read=read, unread=unread)


def _is_light(cfg: Any) -> bool:
    backbone = cfg.model.get('backbone') or {}
    return kind(backbone) == 'ResNet' and backbone.get('depth') in (18, 50)


def _rank(name: str, family: Sequence[str], index: dict) -> tuple:
    """The most typical config of a family first.

    One that trains, on a plain backbone, from its main folder.
    """
    folders = [other.rpartition('/')[0] for other in family]
    return (not index[name]['trains'], not index[name]['light'],
            -folders.count(name.rpartition('/')[0]), len(name), name)


def _write(file: Path, content: Any) -> None:
    """All of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'{file.name}.{os.getpid()}.{threading.get_ident()}')
    part.write_text(json.dumps(content, indent=1) + '\n')
    part.replace(file)


def _cache_file(cache: Path, code: str, name: str) -> Path:
    return cache / code / (re.sub(r'[^\w.-]+', '_', name) + '.json')


def _missing(known: dict, hooks: Sequence[str]) -> List[str]:
    if 'untrainable' in known:
        return []
    return [hook for hook in hooks if hook not in known.get('hooks', {})]


def try_all(names: Sequence[str], hooks: Sequence[str], jobs: int, cache: Path, timeout: float,
            command: Sequence[str] = WORKER) -> Dict[str, dict]:
    """Try each config, as far as it is not known yet.

    Prints what was found and how long it may take.
    """
    code = code_version()
    results = {}
    todo: queue.Queue[str] = queue.Queue()
    for name in names:
        file = _cache_file(cache, code, name)
        results[name] = json.loads(file.read_text()) if file.is_file() else {}
        if not results[name] or _missing(results[name], hooks):
            todo.put(name)
    progress = Progress(todo.qsize())

    def serve() -> None:
        worker = Worker(timeout, command)
        while True:
            try:
                name = todo.get_nowait()
            except queue.Empty:
                return worker.stop()
            known = results[name]
            answer = worker.ask(name, _missing(known, hooks) or hooks)
            if 'crashed' in answer:
                answer = _one_by_one(worker, name, _missing(known, hooks) or hooks)
            answer['hooks'] = {**known.get('hooks', {}), **answer.get('hooks', {})}
            results[name] = answer
            _write(_cache_file(cache, code, name), answer)
            progress.tell(f'{name}: {summary(answer)}')

    threads = [threading.Thread(target=serve) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _one_by_one(worker: Worker, name: str, hooks: Sequence[str]) -> dict:
    """Find the hook that a process dies of."""
    found: Dict[str, Any] = {}
    for hook in hooks:
        answer = worker.ask(name, [hook])
        if 'untrainable' in answer:
            return answer
        found[hook] = answer.get('hooks', {}).get(hook) or [FAULT, answer['crashed']]
    return dict(hooks=found)


class Progress:
    """Prints how far it is, and how long it may still take."""

    def __init__(self, total: int, every: int = 1):
        self._total, self._every, self._done = total, every, 0
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def tell(self, line: str) -> None:
        """One more is done."""
        with self._lock:
            self._done += 1
            left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
            if self._done % self._every == 0:
                print(f'[{self._done}/{self._total}, {left / 60:.0f} min left] {line}', flush=True)


def summary(result: dict) -> str:
    """A few words on what was found."""
    if 'untrainable' in result:
        return f'cannot be trained here: {result["untrainable"]}'[:160]
    words = ', '.join(f'{hook} {status}' for hook, (status, _) in result['hooks'].items()
                      if status != NOT_APPLICABLE)
    return words + ''.join(f'\n    {hook}: {reason}'
                           for hook, (status, reason) in result['hooks'].items()
                           if status == FAULT)


def faults(results: Dict[str, dict]) -> List[Tuple[str, str, str]]:
    """All (config, hook, reason) that are neither taught nor refused."""
    return [(name, hook, reason) for name, result in results.items()
            for hook, (status, reason) in result.get('hooks', {}).items() if status == FAULT]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--all', action='store_true', help='each config, not one of each family')
    parser.add_argument(
        '--only', metavar='PATTERN', action='append',
        help='only configs whose name has this in it (* and ? match); may be repeated')
    parser.add_argument('--hook', action='append', choices=list(CHECKS),
                        help='only this one; may be repeated')
    parser.add_argument('--jobs', type=int, default=1, help='processes, default: 1')
    parser.add_argument('--timeout', type=float, default=900,
                        help='seconds for a config, default: 900')
    parser.add_argument('--cache', type=Path, default=ROOT / 'work_dirs' / 'coverage',
                        help='where results are kept, default: work_dirs/coverage')
    parser.add_argument(
        '--out', type=Path, help='default: results/coverage.json, and docs/coverage.md made of '
        'it, if all families and hooks were tried; with --only or --hook the others stay there')
    parser.add_argument('--render', action='store_true',
                        help='only make docs/coverage.md of the results')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.worker:
        return work()
    committed = ROOT / 'results' / 'coverage.json'
    document = ROOT / 'docs' / 'coverage.md'
    if args.render:
        document.write_text(render(json.loads(committed.read_text())))
        return
    families, unread = find_families(args.cache)
    names = [
        name for family in families for name in (family.configs if args.all else family.configs[:1])
    ]
    if args.only:
        names = list(dict.fromkeys(name for pattern in args.only for name in names
                                   if fnmatch.fnmatch(name, f'*{pattern}*')))
    results = try_all(names, args.hook or list(CHECKS), args.jobs, args.cache, args.timeout)
    found = faults(results)
    for name, hook, reason in found:
        print(f'FAULT {name} {hook}: {reason}')
    print(f'{len(names)} configs, {len(found)} faults')
    whole = not (args.only or args.hook)
    if whole or args.out:
        report = collect(families, unread, results, args.all)
        out = args.out or committed
        _write(out, merge(out, report, whole))
        if out == committed:
            document.write_text(render(json.loads(committed.read_text())))
    sys.exit(bool(found))


# The document -----------------------------------------------------------------------------------


def collect(families: Sequence[Family], unread: Dict[str, str], results: Dict[str, dict],
            every_config: bool) -> dict:
    """All that was found, to be kept."""
    return dict(
        versions=versions(), date=str(date.today()), code=code_version(), every_config=every_config,
        command=shlex.join(['python', 'tools/analysis/coverage.py', *sys.argv[1:]]), unread={
            name: re.sub(r', the current sys\.path is.*', '', reason)
            for name, reason in unread.items()
        }, families=[
            dict(key=list(family.key), configs=len(family.configs),
                 results={name: results[name]
                          for name in family.configs
                          if name in results})
            for family in families
            if any(name in results for name in family.configs)
        ])


def merge(file: Path, report: dict, whole: bool) -> dict:
    """The results of other stacks stay, and of this one those that were not tried again."""
    stacks = json.loads(file.read_text()) if file.is_file() else {}
    name = stack_name(report['versions'])
    if not whole and name in stacks:
        report = renewed(stacks[name], report)
    return {**stacks, name: report}


def renewed(before: dict, part: dict) -> dict:
    """All results of a stack, some of them tried again with later code."""
    families = {tuple(family['key']): family for family in before['families']}
    for family in part['families']:
        known = families.setdefault(tuple(family['key']), family)
        for name, result in family['results'].items():
            there = known['results'].get(name, {})
            hooks = {**there.get('hooks', {}), **result.get('hooks', {})}
            known['results'][name] = {**result, 'hooks': hooks} if hooks else result
    later = dict({key: part[key] for key in ('date', 'code', 'command')}, configs=sorted(
        name for family in part['families'] for name in family['results']))
    return dict(before, families=list(families.values()), later=[*before.get('later', []), later])


def stack_name(packages: Dict[str, str]) -> str:
    """The detection and pose packages of a stack, as a key."""
    return ', '.join(f'{name} {number}' for name, number in packages.items()
                     if 'det' in name or 'pose' in name)


def render(stacks: Dict[str, dict]) -> str:
    """docs/coverage.md: the table of the first stack, and where the others differ from it."""
    reasons: Dict[str, int] = {}
    name, report = next(iter(stacks.items()))
    lines = [HEADER, *_origin(name, report), '', *_totals(report), '']
    for package, title in zip(PACKAGES, ('Detectors', 'Pose estimators')):
        lines += [f'## {title}', '', *_table(report, package, reasons), '']
    lines += [
        '## Reasons', '', 'The first sentence of each message; it goes on with what to do.', ''
    ]
    lines += [f'{number}. {reason}' for reason, number in reasons.items()]
    lines += ['', *_left_out(report)]
    for other, report_of_other in list(stacks.items())[1:]:
        lines += ['', f'## {other}', '', *_origin(other, report_of_other), '',
                  *_differences(report, report_of_other)]
    return '\n'.join(lines) + '\n'


HEADER = """# Which models are taught

<!-- Made by tools/analysis/coverage.py of results/coverage.json; edit neither by hand. -->

Every config that the installed MMDetection and MMPose ship was read, and one of each family (the same detector, heads,
losses and assigners) was built with small images and few layers, random weights and its own heads and losses, and took
a training step with each hook.

- **taught**: PSKDHook leaves the stock losses bit-equal at alpha 0, gives the class loss no gradient where the past self
  is the present one, and otherwise changes each call of a class loss and no other loss. DistillHook adds a term that
  reaches each of these calls and has no gradient where the teacher equals the student. HeadDistillHook's term reaches
  the heads alone, labels weigh nothing, and a head that equals the trained one has no gradient. NKDHook, NKDLoss (in
  DistillHook) and USKDHook add their term.
- **n**: refused when the hook is attached, before the first iteration, for the reason of this number below.
- **-**: there is no softmax (NKDHook, NKDLoss, USKDHook), or no head beside those that PSKDHook teaches by itself.

*other heads* is PSKDHook with each further head in its option `heads`: an RPN, or the heads of a model that it refused.

A trained model is asked for nothing here: this says that a method does what it says, not what it is worth.
"""  # noqa: E501 (paragraphs of a page)


def _origin(name: str, report: dict) -> List[str]:
    packages = ', '.join(f'{package} {number}' for package, number in report['versions'].items())
    runs = [report, *report.get('later', [])]
    said = '; then '.join(f'{run["date"]}, `{run["command"]}`' for run in runs)
    return [f'{packages}; {said}.']


def _tried(report: dict) -> List[Tuple[dict, str, dict]]:
    """(family, config, result) of all configs that could be trained."""
    return [(family, name, result) for family in report['families']
            for name, result in family['results'].items() if 'untrainable' not in result]


def _totals(report: dict) -> List[str]:
    rows = _tried(report)
    lines = ['| ' + ' | '.join(['', *CHECKS]) + ' |', '| --- ' * (len(CHECKS) + 1) + '|']
    for status in (TAUGHT, REFUSED, NOT_APPLICABLE, FAULT):
        counts = [sum(result['hooks'].get(hook, [''])[0] == status for _, _, result in rows)
                  for hook in CHECKS]
        lines.append('| ' + ' | '.join([status, *map(str, counts)]) + ' |')
    return lines


def _table(report: dict, package: str, reasons: Dict[str, int]) -> List[str]:
    columns = ['model', 'heads', 'class loss', 'config', 'configs', *CHECKS]
    lines = ['| ' + ' | '.join(columns) + ' |', '| --- ' * len(columns) + '|']
    for family, name, result in sorted(_tried(report), key=lambda row: (row[0]['key'], row[1])):
        if name.startswith(f'{package}::'):
            cells = [_cell(*result['hooks'][hook], reasons) if hook in result['hooks'] else ''
                     for hook in CHECKS]
            path = name.partition('::')[2][:-len('.py')]
            lines.append(
                '| '
                + ' | '.join([*_label(family['key']), f'`{path}`',
                              str(family['configs']), *cells]) + ' |')
    return lines


def _cell(status: str, reason: str, reasons: Dict[str, int]) -> str:
    if status == REFUSED:
        return str(reasons.setdefault(first_sentence(reason), len(reasons) + 1))
    return status


def first_sentence(message: str) -> str:
    """Of an error, without the name of the hook, which the column says."""
    message = re.sub(r'^\w+Hook: ', '', ' '.join(message.split()))
    return re.split(r'(?<=[a-z)\]])\. (?=[A-Z])', message)[0].rstrip('.') + '.'


def _label(key: Sequence[str]) -> Tuple[str, str, str]:
    """Model, heads and class loss in a signature."""
    model, heads, losses = key[0].partition(':')[2].split()[0], [], []
    for entry in key[1:]:
        part, _, built = entry.partition(':')
        if part.endswith('head') and part != 'rpn_head' and built:
            heads.append(built.split()[0])
        elif part in ('loss_cls', 'loss', 'losses', 'initial_loss_cls', 'keypoint_loss',
                      'heatmap_loss'):
            softmax = {'True': ' (sigmoid)', 'False': ' (softmax)'}
            flag = re.search(r'use_sigmoid=(\w+)', built)
            losses.append(built.split()[0] + (softmax[flag[1]] if flag else ''))
    return model, ', '.join(dict.fromkeys(heads)), ', '.join(dict.fromkeys(losses))


def _left_out(report: dict) -> List[str]:
    """What could not be tried."""
    lines = [
        '## Not tried', '',
        'Families of which no training step can be taken here, without any hook:', ''
    ]
    for family in report['families']:
        for name, result in family['results'].items():
            if 'untrainable' in result:
                lines.append(f'- `{name}`: {first_sentence(result["untrainable"])}')
    groups: Dict[str, List[str]] = defaultdict(list)
    for name, reason in report['unread'].items():
        groups[_why_unread(reason)].append(name)
    lines += ['', 'Configs that cannot be read here:', '']
    for reason, names in groups.items():
        lines.append(f'- {reason}: {", ".join(f"`{name}`" for name in names)}')
    return lines


def _why_unread(reason: str) -> str:
    missing = re.search(r"'imports': \['(\w+)", reason) or re.search(r'(\w+) is not installed',
                                                                     reason)
    return f'{missing[1]} is not installed' if missing else 'a file that it names is not there' \
        if 'FileNotFound' in reason else first_sentence(reason)[:200]


def _differences(first: dict, other: dict) -> List[str]:
    """Outcomes that are not those of the first stack, where both were tried with the same code."""
    again = {name for stack in (first, other) for run in stack.get('later', ())
             for name in run['configs']}
    mine, theirs = ({name: result for _, name, result in _tried(stack) if name not in again}
                    for stack in (first, other))
    same, lines = 0, []
    for name in sorted({**mine, **theirs}):
        for hook in CHECKS:
            here, there = (result.get(name, {}).get('hooks', {}).get(hook, ['not tried', ''])
                           for result in (mine, theirs))
            if here[0] == there[0]:
                same += 1
            else:
                lines.append(
                    f'- `{name}`, {hook}: {there[0]} (here {here[0]}). {there[1]}'.rstrip())
    left = f' {len(again)} configs were tried again, and are not compared.' if again else ''
    return [f'{same} outcomes are the same, {len(lines)} differ.{left}',
            *([''] + lines if lines else [])]


if __name__ == '__main__':
    main()
