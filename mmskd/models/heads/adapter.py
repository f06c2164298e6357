"""What a head is, in one place for each family; and the register in which it is looked up."""
from typing import Any, Callable, ClassVar, Dict, List, Optional, Tuple, Type, Union

from torch import Tensor, nn

from mmskd.errors import UsageError

from ..losses.boxes import BoxLesson
from ..losses.soft_target import SoftTargetLoss, soft_form
from ..pairing import map_leaves, pair

_ADAPTERS: Dict[Union[str, type], Type['HeadAdapter']] = {}


class HeadAdapter:
    """What mmskd has to know of a head.

    As it stands, of any head that returns its class scores first.

    A family that differs derives from it in a file of its own and is registered by
    :func:`register_head`. What a head is *not* known to do is refused by those who need it.

    Args:
        name (str): The head's name in its model, e.g. 'roi_head.bbox_head.0'.
        head (nn.Module): The head.
        exact (bool): Whether it is of a registered class itself, and not of one that derives from
            it: a subclass may predict anything. Defaults to False.
    """

    refusal: str = ''
    """Why its targets cannot be softened and its scores not compared; empty if they can."""

    rests: ClassVar[bool] = False
    """Whether it may have nothing to classify in a batch with objects."""

    untaught: ClassVar[str] = ''
    """What it predicts that a trained head of its kind would not teach a fresh one.

    Empty if there is nothing.
    """

    beside: ClassVar[Tuple[str, ...]] = ()
    """Its modules that lead only to outputs other than the class scores.

    Not asked where these alone count.
    """

    at_places: ClassVar[bool] = False
    """Whether a teacher answers about places that the student chooses, whatever their number."""

    way_out: ClassVar[str] = 'leave it out with the option `heads`'
    """What to do where it cannot be taught."""

    scores: ClassVar[int] = 0
    """Which of its outputs are the class scores, where it returns several."""

    has_boxes: ClassVar[bool] = False
    """Whether :meth:`box_lessons` reads the boxes off its outputs."""

    decodes: ClassVar[Tuple[str, ...]] = ()
    """Modules of the model that add up coordinates, for which low precision is too coarse."""

    def __init__(self, name: str, head: nn.Module, exact: bool = False):
        self.name = name
        self.head = head
        self.exact = exact
        self.kind = type(head).__name__

    def __str__(self) -> str:
        return f'model.{self.name} ({self.kind})'

    @property
    def foreground(self) -> Optional[int]:
        """int, optional: So many of its first scores are of classes, the others of background.

        None if its loss knows it.
        """
        return None

    @property
    def config_key(self) -> str:
        """str: Where the config names its loss."""
        return f'model.{self.name}.loss_cls'

    def target_losses(self) -> Dict[str, nn.Module]:
        """The modules that compute its losses of classes (or keypoints), by their names in it."""
        return {key: loss for key, loss in self.head.named_children() if key.endswith('loss_cls')}

    def class_loss(self) -> SoftTargetLoss:
        """Its class loss with the teacher's scores for a target, which says what these mean."""
        return soft_form(self.head.loss_cls, self.config_key)

    def loss_functions(self) -> Dict[Callable, nn.Module]:
        """Functions of torch that it calls in place of a loss module, and what to call instead."""
        return {}

    def is_mining(self, call: dict) -> bool:
        """Whether a call of its loss, with these keyword arguments, only helps to choose samples.

        Calls without a gradient do in any case.
        """
        return False

    def advice(self, loss: nn.Module, counterparts: List[str]) -> str:
        """What to do where ``loss``, one of its own, has no soft-target form.

        Such as these have one.
        """
        return (
            f"Set {self.config_key} to one of {', '.join(counterparts)}, register a soft form of "
            "it (mmskd.models.losses.register_soft_loss), or leave the head out with the option "
            "`heads`."
        )

    def obstacle(self, model: nn.Module) -> str:
        """What in ``model`` keeps a teacher's answer from this head, and what to do.

        Empty if nothing.
        """
        return ''

    @property
    def box_refusal(self) -> str:
        """str: Why its boxes cannot be compared with a teacher's; empty if they can."""
        if self.has_boxes and self.exact:
            return ''
        return (
            'it is not known which boxes it predicts (an adapter in mmskd.models.heads says it, '
            'for a class itself and not for those that derive from it)')

    def box_lessons(self, output: Any, answer: Any) -> List[BoxLesson]:
        """The boxes in its output beside those in a teacher's.

        Args:
            output (Any): What the head returned, in train mode.
            answer (Any): The same of the teacher.
        """
        raise NotImplementedError

    def taught_output(self, output: Any) -> Any:
        """What of the output of one of its stages goes into the losses of :meth:`target_losses`."""
        return output

    def links(self, model: nn.Module) -> List[str]:
        """Names of the modules that ``model`` calls between its features and this head."""
        return []

    def join(self, output: Any, answer: Any, overrides: Dict[Callable, Callable]) -> Any:
        """What it returned, with its class scores paired with those of the teacher.

        Args:
            output (Any): Of the student's head.
            answer (Any): Of the teacher's.
            overrides (dict): See :func:`~mmskd.models.pairing.pair`.
        """
        if isinstance(output, Tensor):
            return pair(output, answer, overrides)
        joined, index = list(output), self.scores
        joined[index] = map_leaves(lambda mine, theirs: pair(mine, theirs, overrides),
                                   output[index], answer[index])
        return tuple(joined)


def register_head(*heads: Union[str, type]) -> Callable[[Type[HeadAdapter]], Type[HeadAdapter]]:
    """Decorates the adapter of some head classes, and of those that derive from them.

    Args:
        heads (str | type): Classes, or their names where importing them needs a package that not
            all users have.
    """

    def register(adapter: Type[HeadAdapter]) -> Type[HeadAdapter]:
        _ADAPTERS.update(dict.fromkeys(heads, adapter))
        return adapter

    return register


def refuse_heads(reason: str, *heads: Union[str, type]) -> None:
    """Register classes, and those that derive from them, that cannot be taught.

    Args:
        reason (str): Completes "it cannot be taught: ...".
        heads (str | type): As in :func:`register_head`; of heads or of whole models.
    """
    register_head(*heads)(type('RefusedHead', (HeadAdapter, ), dict(refusal=reason)))


def adapter_of(name: str, head: nn.Module) -> HeadAdapter:
    """The adapter of a head: that of its class, else of the nearest class that it derives from."""
    for kind in type(head).__mro__:
        adapter = _ADAPTERS.get(kind, _ADAPTERS.get(kind.__name__))
        if adapter is not None:
            return adapter(name, head, exact=kind is type(head))
    return HeadAdapter(name, head)


def derives_from(module: nn.Module, name: str) -> bool:
    """Whether a module is of a class of this name, not installed maybe, or a derived one."""
    return any(kind.__name__ == name for kind in type(module).__mro__)


def refusal_of(model: nn.Module) -> str:
    """Why a whole model cannot be taught; empty if nothing is known against it."""
    return adapter_of('', model).refusal


def require_teachable_model(model: nn.Module) -> None:
    """Raise UsageError if a whole model cannot be taught."""
    reason = refusal_of(model)
    if reason:
        raise UsageError(f'{type(model).__name__} cannot be taught: {reason}')


def require_teachable(adapter: HeadAdapter) -> None:
    """Raise UsageError if a head cannot be taught at all."""
    if adapter.refusal:
        raise UsageError(
            f'{adapter} cannot be taught: {adapter.refusal}. Train it without a teacher, or '
            'leave it out with the option `heads`.')
