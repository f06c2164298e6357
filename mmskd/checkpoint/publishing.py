"""Checkpoints for others: weights and plain metadata, which every PyTorch reads."""
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch


def plain(value: Any) -> Any:
    """A value as built of Python's own types.

    Raises:
        TypeError: If it is neither such a type nor a numpy array or number.
    """
    if value is None or isinstance(value, (bool, int, float, str)) \
            and not isinstance(value, np.generic):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    raise TypeError(f'{type(value).__name__} is not a plain type')


def publishable(checkpoint: dict) -> dict:
    """The weights and the plain metadata of a checkpoint.

    Metadata of other types is left out, with a line on the console that says so.

    Raises:
        ValueError: If there are no weights, or something else among them.
    """
    state_dict = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not state_dict:
        raise ValueError('there is no state_dict')
    for key, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f'state_dict[{key!r}] is no tensor but {type(value).__name__}')
    meta = {}
    for key, value in (checkpoint.get('meta') or {}).items():
        try:
            meta[key] = plain(value)
        except TypeError as error:
            print(f'meta[{key!r}] is left out: {error}')
    weights: Any = OrderedDict(state_dict)
    weights._metadata = getattr(state_dict, '_metadata', OrderedDict())
    return dict(meta=meta, state_dict=weights)


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """``torch.save`` with bytes that depend on the checkpoint alone, and not on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as file:  # of a path, PyTorch notes the name in the archive
        torch.save(checkpoint, file)
