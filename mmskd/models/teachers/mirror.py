"""Ask a teacher what the student is asked, module by module.

A detector's classification head is the end of a chain of modules: backbone, neck, then, depending
on the family, RoI extractors, a transformer, heads. :class:`Mirror` hooks the links of that chain
in the student. When a link is called, the teacher's link of the same name is called with the
teacher's side of the arguments, and the student's output becomes a pair with it. Between the links
pairs pass through the detector's own code (slicing levels, flattening, concatenating), which
therefore needs no counterpart.

So the teacher answers the student's questions, about the same places:

- one-stage: the same priors, whose order both heads share;
- two-stage: the *student's* sampled RoIs. The student's RoI extractor is called with (features,
  rois); only the features have a teacher's side, hence the teacher pools its own features in the
  same boxes. Its own proposals would be other boxes, and a class score is meaningful only for the
  box it was given. Cascades ask stage by stage, with the boxes as the student has refined them;
- query models: the *student's* queries. The teacher's decoder reads the teacher's memory, starting
  from the student's query content, reference points and attention mask, be they learned (DETR),
  chosen from the encoder (two-stage Deformable DETR) or noised ground truth (DINO). The n-th
  prediction of two decoders describes the same object only if both were asked the same n-th
  question; that question is also the one which the student's assignment has matched. Positional
  codes that the detector adds outside of its modules (query and level embeddings) are part of the
  question and so the student's.
"""
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from ..heads.adapter import HeadAdapter
from ..heads.choosing import members
from ..heads.taught import TaughtHead
from ..pairing import has_pair, map_leaves, ride, student_side, teacher_side
from ..ranges import TEACHER, record_function
from ..taps import Tap
from .shared_prefix import SharedPrefix

# What every detector calls first: the one with the images, the other with what that makes of them.
# What lies between these and a head is known to its adapter, and asked only when it is called with
# pairs.
ROOT, NECK = 'backbone', 'neck'


class Mirror:
    """Hooks on a student that make a teacher's class scores ride along with its own.

    Args:
        student (nn.Module): An mmdet detector (not a wrapper around it).
        heads (sequence[TaughtHead]): The heads whose scores are paired. Without any, the teacher
            goes no further than its features.

    Attributes:
        teacher (nn.Module, optional): Who is asked, between :meth:`start` and :meth:`stop`; else
            None.
    """

    def __init__(self, student: nn.Module, heads: Sequence[TaughtHead]):
        self.teacher: Optional[nn.Module] = None
        self._call: Callable = plain_call
        self._student = student
        self._known: Optional[nn.Module] = None  # whose modules these are
        self._shared: Optional[SharedPrefix] = None
        self._waiting: Optional[tuple] = None  # the question of the root
        self._counterparts: Dict[nn.Module, nn.Module] = {}
        self._answers: Dict[str, List[Any]] = {}
        self._listeners: Dict[str, List[Callable]] = {}
        self._handles: list = []
        modules = dict(student.named_modules())
        joins: Dict[str, Callable] = dict.fromkeys(
            feature_links(student, [head.adapter for head in heads]), _all_tensors)
        joins.update({head.name: partial(head.adapter.join, overrides=head.overrides)
                      for head in heads})
        for name in {**dict.fromkeys(_stations(student, modules)), **joins}:
            self._tap(name, modules[name], joins.get(name))

    def start(self, teacher: nn.Module, call: Optional[Callable] = None) -> None:
        """Mirror the forward pass that follows.

        Args:
            teacher (nn.Module): Who is asked.
            call (Callable, optional): Calls a module of it with arguments (see
                :meth:`~mmskd.models.teachers.compiled.CompiledTeacher.ask`). Defaults to None: just
                so.
        """
        self._answers.clear()
        self._call = call or plain_call
        if teacher is not self._known:
            theirs = dict(teacher.named_modules())
            self._counterparts = {
                module: theirs[name]
                for name, module in self._student.named_modules() if name in theirs
            }
            self._known = teacher
        self.teacher = teacher

    def share(self, prefix: SharedPrefix) -> None:
        """Let the teacher go on from where the student's backbone is, whenever ``prefix`` holds."""
        handle = prefix.listen(self._ask_root)
        if handle is not None:
            self._shared = prefix
            self._handles.append(handle)

    def stop(self) -> None:
        """Ask nobody from here on."""
        self.teacher = self._waiting = None
        self._answers.clear()

    def listen(self, name: str, listener: Callable[[Any, Any], None]) -> None:
        """Call ``listener`` with all that this head and the teacher's return, each time."""
        self._listeners.setdefault(name, []).append(listener)

    def remove(self) -> None:
        """Take the hooks off the student."""
        self.stop()
        self._listeners.clear()
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
            if name == ROOT and self._shared is not None and self._shared.holds():
                self._waiting = module, args, kwargs
                return None
            if join:
                self._answers.setdefault(name, []).append(self._ask(module, args, kwargs))
            return map_leaves(student_side, args), map_leaves(student_side, kwargs)

        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any):
            """Let the teacher's answer ride along with the output."""
            if self.teacher is None or join is None or not self._answers.get(name):
                return None
            answer = self._answers[name].pop()
            for listener in self._listeners.get(name, ()):
                listener(output, answer)
            return join(output, answer)

        self._handles += [
            module.register_forward_pre_hook(Tap(before), with_kwargs=True),
            module.register_forward_hook(Tap(after), with_kwargs=True)
        ]

    def _ask_root(self, value: Tensor) -> None:
        """The student has come to the end of what it shares with the teacher."""
        if self._waiting is None:
            return
        module, args, kwargs = self._waiting
        self._waiting = None
        with self._shared.given(value):
            self._answers.setdefault(ROOT, []).append(self._ask(module, args, kwargs))

    @torch.no_grad()
    def _ask(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        args, kwargs = map_leaves(self._as_teacher, args), map_leaves(self._as_teacher, kwargs)
        with record_function(TEACHER):
            return self._call(self._counterparts[module], *args, **kwargs)

    def _as_teacher(self, value: Any) -> Any:
        """An argument as the teacher gets it: its own tensor, its own module."""
        if isinstance(value, nn.Module):
            return self._counterparts.get(value, value)
        return teacher_side(value)


def plain_call(question: Callable, *args, **kwargs) -> Any:
    """Ask a teacher in the precision of the student."""
    return question(*args, **kwargs)


def feature_links(model: nn.Module, heads: Sequence[HeadAdapter]) -> List[str]:
    """The names of the modules between image and heads that a model has."""
    modules = dict(model.named_modules())
    links = [ROOT, NECK, *(link for head in heads for link in head.links(model))]
    return list(dict.fromkeys(name for link in links for name in members(modules, link)))


def _stations(model: nn.Module, modules: Dict[str, nn.Module]) -> List[str]:
    """The modules that a detector itself calls: none of them is to meet a pair inside."""
    owners = {'': model, 'roi_head.': modules.get('roi_head')}
    return [name for prefix, owner in owners.items() if owner is not None
            for child, _ in owner.named_children() for name in members(modules, prefix + child)]


def _all_tensors(output: Any, answer: Any) -> Any:
    """Pair all of a link's outputs. A bigger teacher has more channels there."""
    join = lambda mine, theirs: ride(mine, theirs) if isinstance(mine, Tensor) else mine  # noqa: E731
    return map_leaves(join, output, answer)
