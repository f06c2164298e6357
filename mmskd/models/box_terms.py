"""What a teacher's boxes add to the student's losses in one forward pass."""
from functools import partial
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError

from .finite import all_finite, tensors_in
from .heads import TaughtHead
from .losses.boxes import BoxDistillLoss
from .pairing import map_leaves
from .ranges import LOSS, record_function
from .teachers.question import check_boxes


class BoxTerms:
    """Compares what the heads of student and teacher return, where the mirror joins the two.

    Args:
        heads (sequence[TaughtHead]): The heads.
        losses (sequence[BoxDistillLoss]): What compares their boxes.
        mirror (Mirror): What asks the teacher; not asked for anything without losses.

    Attributes:
        scale (float): Factor of all terms. Defaults to 1; with 0 they are not computed.
        refused (int): Calls of heads so far in which what the teacher said was not finite. Their
            terms are 0.
    """

    def __init__(self, heads: Sequence[TaughtHead], losses: Sequence[BoxDistillLoss],
                 mirror: Any):
        self.scale, self.refused = 1.0, 0
        self._losses = list(losses)
        self._terms: List[Tensor] = []
        for head in heads if losses else ():
            mirror.listen(head.name, partial(self._compare, head))

    def take(self) -> Dict[str, Tensor]:
        """The term since the last time, summed over the heads; none without losses."""
        terms, self._terms = self._terms, []
        return {BoxDistillLoss.log_name: torch.stack(terms).sum()} if terms else {}

    @property
    def names(self) -> List[str]:
        """list[str]: What the terms are logged under."""
        return [BoxDistillLoss.log_name] if self._losses else []

    def remove(self) -> None:
        """Forget what was compared."""
        self._terms = []

    def _compare(self, head: TaughtHead, output: Any, answer: Any) -> None:
        if not (self.scale and torch.is_grad_enabled()):
            return
        finite = all_finite(tensors_in(answer))
        self.refused += not finite
        if not finite:  # the student agrees with itself: all ranks go on to average the weights
            answer = map_leaves(_detached, output)
        device = tensors_in(output)[0].device.type
        with record_function(LOSS), torch.autocast(device, enabled=False):
            lessons = head.adapter.box_lessons(output, answer)
            for loss in self._losses:
                self._terms.append(loss(lessons) * (self.scale * head.weight * finite))


def compares_boxes(loss: nn.Module) -> bool:
    """Whether a loss compares boxes, and neither features nor class scores."""
    return isinstance(loss, BoxDistillLoss)


def require_boxes(heads: Sequence[TaughtHead], teacher: Optional[nn.Module] = None) -> None:
    """Raise UsageError if the boxes of a head cannot be compared, or weighed by its scores.

    Args:
        heads (sequence[TaughtHead]): The heads.
        teacher (nn.Module, optional): The teacher. Defaults to None: the model itself, as it was.
    """
    for head in heads:
        refusal = head.adapter.box_refusal
        if refusal:
            raise UsageError(f'the boxes of {head} cannot be compared: {refusal}. Leave '
                             'BoxDistillLoss out, or this head with the option `heads`')
        head.adapter.class_loss()
    if teacher is not None:
        check_boxes(heads, teacher)


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
