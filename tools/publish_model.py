"""Write a checkpoint for others: the weights and plain metadata, nothing else.

Every PyTorch loads the file with weights_only=True, without a list of allowed classes, and so do
the tools of MMDetection and MMPose. A checkpoint that was trained with EMAHook has the averaged
weights as its weights already; those are written.
"""
import argparse
import hashlib
import os
import sys
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from mmskd.engine.checkpoint import load_checkpoint_safely


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('in_file', help='checkpoint of a training')
    parser.add_argument(
        'out_file', help='file to write; the beginning of its sha256 is added to the name')
    return parser.parse_args()


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
    weights = OrderedDict(state_dict)
    weights._metadata = getattr(state_dict, '_metadata', OrderedDict())
    return dict(meta=meta, state_dict=weights)


def publish(in_file: str, out_file: str) -> Path:
    """Write ``out_file`` as ``<out_file's name>-<first 8 digits of its sha256>.pth``.

    Returns:
        Path: The file that was written.

    Raises:
        FileNotFoundError: If there is no ``in_file``.
        ValueError, RuntimeError, pickle.UnpicklingError: If it is not a checkpoint to be published.
    """
    checkpoint = publishable(load_checkpoint_safely(in_file, map_location='cpu'))
    stem = out_file[:-len('.pth')] if out_file.endswith('.pth') else out_file
    unfinished = Path(f'{stem}.unfinished')
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with open(unfinished, 'wb') as file:
        torch.save(checkpoint, file)
    digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
    final = Path(f'{stem}-{digest[:8]}.pth')
    os.replace(unfinished, final)
    return final


def main() -> None:
    args = parse_args()
    try:
        print(publish(args.in_file, args.out_file))
    except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
        sys.exit(f'publish_model.py: {error}')


if __name__ == '__main__':
    main()
