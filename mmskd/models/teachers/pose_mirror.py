"""Ask a teacher for the keypoints of the student's batch.

The head of a pose estimator gives its output to its loss as it is, so there is no way to follow: the teacher's
output for the same images is the answer. It is brought in where the student's output meets the loss
module, because MMPose's heads call ``self.forward(feats)`` inside ``loss()``: forward hooks on the head
do not fire there.
"""
from contextlib import nullcontext
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import nn

from ..pairing import map_leaves, pair
from .mirror import ROOT, Tap


class PoseMirror:
    """Hooks on a student that make a teacher's head output ride along with its own into the loss.

    Args:
        student (nn.Module): A top-down mmpose estimator (not a wrapper around it).
        heads (dict): Name of the head -> its loss modules, which are called in the order of the
            head's outputs, once for each stage. Empty: the teacher goes no further than its features.
        share_features (bool): Whether the teacher's heads get the student's own features, instead of
            those that the teacher finds in the images. Defaults to False.

    Attributes:
        teacher (nn.Module, optional): Who is asked, between :meth:`start` and :meth:`stop`; else None.
        dtype (torch.dtype, optional): Autocast the teacher to it. Defaults to None, the student's own.
    """

    def __init__(self, student: nn.Module, heads: Dict[str, Sequence[nn.Module]],
                 share_features: bool = False):
        self.teacher: Optional[nn.Module] = None
        self.dtype: Optional[torch.dtype] = None
        self._heads = list(heads)
        self._answers: List[Any] = []
        if share_features:
            self._handles = [feature_module(student).register_forward_hook(Tap(self._pass_on))]
        else:
            root = student.get_submodule(ROOT)
            self._handles = [root.register_forward_pre_hook(Tap(self._ask))]
        self._handles += [loss.register_forward_pre_hook(Tap(self._join))
                          for losses in heads.values() for loss in losses]

    def start(self, teacher: nn.Module) -> None:
        """Ask this teacher in the forward pass that follows."""
        self._answers.clear()
        self.teacher = teacher

    def stop(self) -> None:
        """Ask nobody from here on."""
        self.teacher = None
        self._answers.clear()

    def remove(self) -> None:
        """Take the hooks off the student."""
        self.stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _ask(self, root: nn.Module, args: tuple) -> None:
        """Images go in: let the teacher answer."""
        if self.teacher is None:
            return
        precision = nullcontext() if self.dtype is None else torch.autocast(
            args[0].device.type, dtype=self.dtype)
        with precision:
            self._answer(self.teacher.extract_feat(*args))

    @torch.no_grad()
    def _pass_on(self, module: nn.Module, args: tuple, features: Any) -> None:
        """Features come out: let the teacher's heads answer."""
        if self.teacher is not None:
            self._answer(features)

    def _answer(self, features: Any) -> None:
        self._answers = []
        for name in self._heads:
            self._answers += stages(self.teacher.get_submodule(name).forward(features))

    def _join(self, loss: nn.Module, args: tuple) -> Optional[tuple]:
        """A prediction enters its loss: let the teacher's ride along."""
        if not self._answers:
            return None
        return (map_leaves(pair, args[0], self._answers.pop(0)), *args[1:])


def feature_module(model: nn.Module) -> nn.Module:
    """The module whose output the head sees: the neck, or the backbone if there is none."""
    return model.neck if getattr(model, 'with_neck', False) else model.backbone


def stages(output: Any) -> List[Any]:
    """The outputs of a head's stages. A tuple is one output (SimCC's x and y), a list is several."""
    return list(output) if isinstance(output, list) else [output]
