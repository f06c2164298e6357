"""Whether numbers are numbers: no NaN, no infinity."""
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from torch import Tensor, nn

from mmskd.errors import UsageError


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers in some tensors are finite. Waits for their devices once."""
    flags: Dict[torch.device, List[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            flags.setdefault(tensor.device, []).append(torch.isfinite(tensor.detach()).all())
    return all(bool(torch.stack(each).all()) for each in flags.values())


def first_not_finite(model: nn.Module) -> Optional[str]:
    """The name of the first parameter or persistent buffer of a model that holds NaN or infinity.

    Returns:
        str, optional: None if all are finite.
    """
    weights = named_weights(model)
    if all_finite(tensor for _, tensor in weights):
        return None
    return next(name for name, tensor in weights if not all_finite([tensor]))


def named_weights(model: nn.Module) -> List[Tuple[str, Tensor]]:
    """The tensors of a model's state dict by name.

    What is not saved may hold infinity (masks do).
    """
    return [(name, value)
            for name, value in model.state_dict().items()
            if isinstance(value, Tensor)]


def tensors_in(value: Any) -> List[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]


def require_finite(model: nn.Module, whose: str) -> None:
    """Raise UsageError if a weight of a model that is to teach is not finite."""
    bad = first_not_finite(model)
    if bad:
        raise UsageError(
            f'{whose} cannot teach: its weight {bad} is not finite (NaN or infinity). Take a '
            'checkpoint from before its training broke down')
