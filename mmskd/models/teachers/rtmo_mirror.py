"""Ask an RTMO about the bins of another one's boxes."""
from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor, nn

from ..heads import TaughtHead
from ..pairing import Pair, map_leaves, pair, ride, unpair
from ..ranges import TEACHER, record_function
from ..taps import Tap
from .mirror import ROOT
from .output_mirror import OutputMirror


class RTMOMirror(OutputMirror):
    """Hooks on a student RTMO that bring a teacher's distributions over its bins to its loss.

    The head chooses some places of the image, by its own scores and the objects, takes the vector
    that its convolutions have there, and lays bins around the box that it predicts. The classifier
    (DCC) compares the vector with a code of each bin's position relative to the place. So a teacher
    of the same strides answers from *its* vector at the same place about the positions of the
    *student's* bins, be there as many of its own or not.

    Where the student's head selects, numbers of the places ride along with its vectors, so that
    both may have any number of channels.

    Args:
        student (nn.Module): The estimator.
        heads (sequence[TaughtHead]): Its head.
    """

    def __init__(self, student: nn.Module, heads: Sequence[TaughtHead]):
        super().__init__(heads)
        for head in heads:
            self._name, dcc = head.name, head.head.dcc
            self.ask_before(student.get_submodule(ROOT), self._vectors)
            self._handles += [
                head.head.head_module.register_forward_hook(Tap(self._number)),
                # What the classifier is asked: first the vectors go in there, then the bins of x
                # and of y in here
                dcc.sigma_fc.register_forward_pre_hook(Tap(self._choose)),
                dcc.spe.register_forward_pre_hook(Tap(self._note_bins), with_kwargs=True)
            ]
        self._places: Optional[Tensor] = None
        self._bins: List[Tensor] = []

    def _vectors(self, teacher: nn.Module, args: tuple) -> List[Tensor]:
        """The teacher's vectors, (images * places, C)."""
        *_, maps = teacher.get_submodule(self._name).head_module(teacher.extract_feat(*args))
        return [torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1).flatten(0, 1)]

    def _number(self, module: nn.Module, args: tuple, output: tuple) -> Optional[tuple]:
        """Let the numbers of the places ride along with the student's vectors."""
        if self.teacher is None:
            return None
        *others, maps = output
        sizes = [level.size(2) * level.size(3) for level in maps]
        images, numbered, start = len(maps[0]), [], 0
        for level, size in zip(maps, sizes):
            first = torch.arange(images, device=level.device).view(-1, 1, 1, 1) * sum(sizes) + start
            place = torch.arange(size, device=level.device).view(1, 1, *level.shape[2:])
            numbered.append(ride(level, (first + place).expand_as(level)))
            start += size
        return (*others, numbered)

    def _choose(self, module: nn.Module, args: tuple) -> Optional[tuple]:
        """The vectors of the places that the student's head has chosen."""
        if self.teacher is None or not isinstance(args[0], Pair):
            return None
        vectors, numbers = unpair(args[0])
        assert numbers is not None  # a Pair has two sides
        self._places, self._bins = numbers[:, 0], []
        return (vectors, *args[1:])

    def _note_bins(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._places is not None:
            self._bins.append((args[0] if args else kwargs['position']).detach())

    @torch.no_grad()
    def _read(self, teacher: nn.Module, vectors: Tensor) -> Sequence[Tensor]:
        """The teacher's distributions over the student's bins, (N, K, bins) of x and of y."""
        dcc = teacher.get_submodule(self._name).dcc
        codes = [
            code(dcc.spe(position=bins)) for code, bins in zip((dcc.x_fc, dcc.y_fc), self._bins)
        ]
        return dcc._apply_softmax(*dcc._pose_feats_to_heatmaps(vectors, *codes))

    def _join(self, loss: nn.Module, args: tuple) -> Any:
        """The student's bins enter their loss."""
        if self._places is None or not self._answers:
            return None
        vectors, self._places = self._answers[0][self._places], None
        with record_function(TEACHER):
            answer = self._call(self._read, self.teacher, vectors)
        return (map_leaves(pair, args[0], tuple(answer)), *args[1:])
