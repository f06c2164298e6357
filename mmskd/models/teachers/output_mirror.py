"""Ask a teacher about the student's batch, where a head's output goes to its loss as it is.

The heads of pose estimators and classifiers do so: there is no way to follow, and the teacher's
output for the same images is the answer. It is brought in where the student's output meets the loss
module, because MMPose's heads call ``self.forward(feats)`` inside ``loss()``: forward hooks on the
head do not fire there.
"""
from typing import Any, Callable, List, Optional, Sequence

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError

from ..heads.taught import TaughtHead
from ..pairing import map_leaves, pair
from ..ranges import TEACHER, record_function
from ..taps import Tap
from .mirror import ROOT, plain_call
from .pose_teacher import stages
from .translated import TranslatedTeacher

Answer = Callable[[nn.Module, tuple], List[Any]]


class OutputMirror:
    """Hooks on a student that make a teacher's output ride along with its own into the loss.

    Args:
        heads (sequence[TaughtHead]): Their losses are called in the order of the answers.

    Attributes:
        teacher (nn.Module, optional): Who is asked, between :meth:`start` and :meth:`stop`; else
            None.
        keypoint_weights (Tensor, optional): How much the latest answers on each keypoint count, (N,
            K). Defaults to None: 1.
    """
    keypoint_weights: Optional[Tensor] = None

    def __init__(self, heads: Sequence[TaughtHead]):
        self.teacher: Optional[nn.Module] = None
        self._call: Callable = plain_call
        self._answers: List[Any] = []
        # Before those that look at what the loss is given
        self._handles = [loss.register_forward_pre_hook(Tap(self._join), prepend=True)
                         for head in heads for loss in head.losses.values()]

    def ask_before(self, module: nn.Module, answer: Answer) -> 'OutputMirror':
        """Ask when a module is called: ``answer(teacher, arguments of the call)``."""

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self.teacher is not None:
                self._ask(answer, args or (kwargs['inputs'], ))

        self._handles.append(module.register_forward_pre_hook(Tap(before), with_kwargs=True))
        return self

    def ask_after(self, module: nn.Module, answer: Answer) -> 'OutputMirror':
        """Ask when a module has been called: ``answer(teacher, (its output, ))``."""

        def after(module: nn.Module, args: tuple, output: Any) -> None:
            if self.teacher is not None:
                self._ask(answer, (output, ))

        self._handles.append(module.register_forward_hook(Tap(after)))
        return self

    def start(self, teacher: nn.Module, call: Optional[Callable] = None) -> None:
        """As :meth:`~mmskd.models.teachers.mirror.Mirror.start`."""
        self._answers, self.keypoint_weights = [], None
        self._call = call or plain_call
        self.teacher = teacher

    def stop(self) -> None:
        """Ask nobody from here on."""
        self._answers = []
        self.teacher = None

    def remove(self) -> None:
        """Take the hooks off the student."""
        self.stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _ask(self, answer: Answer, args: tuple) -> None:
        with record_function(TEACHER):
            self._answers = self._call(answer, self.teacher, args)

    def _join(self, loss: nn.Module, args: tuple) -> Optional[tuple]:
        """A prediction enters its loss: let the teacher's ride along."""
        if not self._answers or not args:
            return None
        return (map_leaves(pair, args[0], self._answers.pop(0)), *args[1:])


def pose_mirror(student: nn.Module, heads: Sequence[TaughtHead]) -> OutputMirror:
    """The teacher finds its own features in the student's crops. Without heads it stops there."""

    def answer(teacher: nn.Module, args: tuple) -> List[Any]:
        if isinstance(teacher, TranslatedTeacher):
            answers, mirror.keypoint_weights = teacher(*args)
            return answers
        return _outputs(teacher, heads, teacher.extract_feat(*args))

    mirror = OutputMirror(heads)
    return mirror.ask_before(student.get_submodule(ROOT), answer)


def shared_features_mirror(student: nn.Module, heads: Sequence[TaughtHead]) -> OutputMirror:
    """The teacher's heads get the student's own features."""

    def answer(teacher: nn.Module, args: tuple) -> List[Any]:
        if isinstance(teacher, TranslatedTeacher):
            answers, mirror.keypoint_weights = teacher(*args)
            return answers
        return _outputs(teacher, heads, *args)

    mirror = OutputMirror(heads)
    return mirror.ask_after(feature_module(student), answer)


def classifier_mirror(student: nn.Module, heads: Sequence[TaughtHead]) -> OutputMirror:
    """The teacher classifies the student's images.

    One prediction, for the one loss of the one head.
    """

    def answer(teacher: nn.Module, args: tuple) -> List[Any]:
        logits = teacher(args[0], mode='tensor')
        if not isinstance(logits, Tensor):
            raise UsageError(
                f'{type(teacher).__name__} returns a {type(logits).__name__} in '
                "mode='tensor', where the logits (N, C) of its one classification were "
                'expected')
        return [logits]

    return OutputMirror(heads).ask_before(student, answer)


def feature_module(model: nn.Module) -> nn.Module:
    """The module whose output the head sees: the neck, or the backbone if there is none."""
    return model.neck if getattr(model, 'with_neck', False) else model.backbone


def _outputs(teacher: nn.Module, heads: Sequence[TaughtHead], features: Any) -> List[Any]:
    """The outputs of all stages of the teacher's heads."""
    return [head.adapter.taught_output(stage) for head in heads
            for stage in stages(teacher.get_submodule(head.name).forward(features))]
