"""Ask a teacher what the student is asked, module by module.

A detector's classification head is the end of a chain of modules: backbone, neck, then, depending on
the family, RoI extractors, a transformer, heads. :class:`Mirror` hooks the links of that chain in the
student. When a link is called, the teacher's link of the same name is called with the teacher's side of
the arguments, and the student's output becomes a pair with it. Between the links pairs pass through the
detector's own code (slicing levels, flattening, concatenating), which therefore needs no counterpart.

So the teacher answers the student's questions, about the same places:

- one-stage: the same priors, whose order both heads share;
- two-stage: the *student's* sampled RoIs. The student's RoI extractor is called with (features, rois);
  only the features have a teacher's side, hence the teacher pools its own features in the same boxes.
  Its own proposals would be other boxes, and a class score is meaningful only for the box it was
  given. Cascades ask stage by stage, with the boxes as the student has refined them;
- query models: the *student's* queries. The teacher's decoder reads the teacher's memory, starting from
  the student's query content, reference points and attention mask, be they learned (DETR), chosen
  from the encoder (two-stage Deformable DETR) or noised ground truth (DINO). The n-th prediction of two
  decoders describes the same object only if both were asked the same n-th question; that question is also
  the one which the student's assignment has matched. Positional codes that the detector adds outside of
  its modules (query and level embeddings) are part of the question and so the student's.
"""
from contextlib import nullcontext
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor, nn

from ..pairing import has_pair, map_leaves, pair, ride, student_side, teacher_side

# The links between the image and the heads, in mmdet's names; those that a model has are hooked. The
# first is called with the images, the others count only when they are called with pairs.
ROOT = 'backbone'
FEATURE_LINKS = ('neck', 'encoder', 'decoder', 'memory_trans_fc', 'memory_trans_norm',
                 'roi_head.bbox_roi_extractor', 'roi_head.shared_head')


class Tap:
    """A forward hook that a deep copy or a pickle of the module replaces by one that does nothing.

    The copy of a student that is being taught is a plain model without a teacher.
    """

    def __init__(self, func: Optional[Callable] = None):
        self.func = func

    def __call__(self, *args, **kwargs):
        return self.func(*args, **kwargs) if self.func else None

    def __reduce__(self):
        return Tap, ()


class Mirror:
    """Hooks on a student that make a teacher's class scores ride along with its own.

    Args:
        student (nn.Module): An mmdet detector (not a wrapper around it).
        heads (dict): Name of each classification head to pair -> overrides for its pairs (see
            :func:`~mmskd.models.pairing.pair`). A head's first output is its class scores.

    Attributes:
        teacher (nn.Module, optional): Who is asked, between :meth:`start` and :meth:`stop`; else None.
        dtype (torch.dtype, optional): Autocast the teacher to it. Defaults to None, the student's own.
    """

    def __init__(self, student: nn.Module, heads: Dict[str, Dict[Callable, Callable]]):
        self.teacher: Optional[nn.Module] = None
        self.dtype: Optional[torch.dtype] = None
        self._student = student
        self._known: Optional[nn.Module] = None  # whose modules these are
        self._counterparts: Dict[nn.Module, nn.Module] = {}
        self._answers: Dict[str, List[Any]] = {}
        self._handles: list = []
        modules = dict(student.named_modules())
        joins = {name: _all_tensors for name in feature_links(student)}
        joins.update({name: _scores_first(overrides) for name, overrides in heads.items()})
        for name in {**dict.fromkeys(_stations(student, modules)), **joins}:
            self._tap(name, modules[name], joins.get(name))

    def start(self, teacher: nn.Module) -> None:
        """Mirror the forward pass that follows with this teacher."""
        self._answers.clear()
        if teacher is not self._known:
            theirs = dict(teacher.named_modules())
            self._counterparts = {
                module: theirs[name]
                for name, module in self._student.named_modules() if name in theirs
            }
            self._known = teacher
        self.teacher = teacher

    def stop(self) -> None:
        """Ask nobody from here on."""
        self.teacher = None
        self._answers.clear()

    def remove(self) -> None:
        """Take the hooks off the student."""
        self.stop()
        self._known, self._counterparts = None, {}
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _tap(self, name: str, module: nn.Module, join: Optional[Callable]) -> None:
        """Hook a module: a link of the chain if there is a way to join the two outputs."""

        def before(module: nn.Module, args: tuple, kwargs: dict):
            """Ask the teacher; then hide the pairs from the module."""
            if self.teacher is None or not (name == ROOT or has_pair((args, kwargs))):
                return None
            if join:
                self._answers.setdefault(name, []).append(self._ask(module, args, kwargs))
            return map_leaves(student_side, args), map_leaves(student_side, kwargs)

        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any):
            """Let the teacher's answer ride along with the output."""
            if self.teacher is None or not self._answers.get(name):
                return None
            return join(output, self._answers[name].pop())

        self._handles += [
            module.register_forward_pre_hook(Tap(before), with_kwargs=True),
            module.register_forward_hook(Tap(after), with_kwargs=True)
        ]

    @torch.no_grad()
    def _ask(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        device_type = next(self.teacher.parameters()).device.type
        precision = nullcontext() if self.dtype is None else torch.autocast(
            device_type, dtype=self.dtype)
        args, kwargs = map_leaves(self._as_teacher, args), map_leaves(self._as_teacher, kwargs)
        with precision:
            return self._counterparts[module](*args, **kwargs)

    def _as_teacher(self, value: Any) -> Any:
        """An argument as the teacher gets it: its own tensor, its own module."""
        if isinstance(value, nn.Module):
            return self._counterparts.get(value, value)
        return teacher_side(value)


def feature_links(model: nn.Module) -> List[str]:
    """The names of the modules between image and heads that a model has."""
    modules = dict(model.named_modules())
    links = [ROOT] + [name for link in FEATURE_LINKS for name in members(modules, link)]
    if getattr(model, 'as_two_stage', False):  # scores the encoder's output to choose the queries
        links.append(f'bbox_head.cls_branches.{model.decoder.num_layers}')
    return [name for name in links if name in modules]


def _stations(model: nn.Module, modules: Dict[str, nn.Module]) -> List[str]:
    """The modules that a detector itself calls: none of them is to meet a pair inside."""
    owners = {'': model, 'roi_head.': modules.get('roi_head')}
    return [name for prefix, owner in owners.items() if owner is not None
            for child, _ in owner.named_children() for name in members(modules, prefix + child)]


def members(modules: Dict[str, nn.Module], name: str) -> List[str]:
    """The module of this name, or the items if it is a list of modules (a cascade's stages)."""
    module = modules.get(name)
    if isinstance(module, nn.ModuleList):
        return [f'{name}.{index}' for index in range(len(module))]
    return [] if module is None else [name]


def _all_tensors(output: Any, answer: Any) -> Any:
    """Pair all of a link's outputs. A bigger teacher has more channels there."""
    join = lambda mine, theirs: ride(mine, theirs) if isinstance(mine, Tensor) else mine  # noqa: E731
    return map_leaves(join, output, answer)


def _scores_first(overrides: Dict[Callable, Callable]) -> Callable:
    """Pair only the first output of a head: its class scores, of all levels or layers."""

    def join(output: Any, answer: Any) -> Any:
        if isinstance(output, Tensor):
            return pair(output, answer, overrides)
        scores = map_leaves(lambda mine, theirs: pair(mine, theirs, overrides), output[0], answer[0])
        return (scores, *output[1:])

    return join
