"""Reads what ``tools/test.py`` saved, and nothing else.

A results file is a pickle, and a pickle may call anything. These hold tensors, arrays, numbers and
plain containers, so nothing but those is built.
"""
import functools
import io
import os
import pickle
from _codecs import encode  # how protocol 2 writes bytes
from collections import OrderedDict
from typing import Any, Callable, Dict, List

import numpy as np
import torch

from mmskd.engine.checkpoint import RECONSTRUCT, SCALAR, numeric_dtype


def load_results(path: str) -> List[dict]:
    """Predictions that MMEngine's ``DumpResults`` or MMDetection's ``DumpDetResults`` wrote.

    Args:
        path (str): A pickle file of ``tools/test.py --dump`` or ``--out``, of mmskd or of MMDetection
            and MMPose.

    Returns:
        list[dict]: One data sample per image or instance.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the file needs anything but tensors, arrays and plain containers.
        ValueError: If the file is not a pickle of predictions.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no results file {path}')
    try:
        with open(path, 'rb') as file:
            results = ResultsUnpickler(file).load()
    except Refused as error:
        raise pickle.UnpicklingError(
            f'{path} was not loaded: it asks for {error}, which no saved predictions need, and '
            'which could run code') from error
    except Exception as error:
        raise ValueError(f'{path} cannot be read as a results file: {error}') from error
    if not isinstance(results, list) or not all(isinstance(sample, dict) for sample in results):
        raise ValueError(f'{path} does not hold a list of predictions')
    return results


class Refused(pickle.UnpicklingError):
    """The name of something that a results file may not ask for."""


class ResultsUnpickler(pickle.Unpickler):
    """Finds what tensors and arrays are pickled with; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which MMEngine writes, has the module names of Python 2
        full_name = f'{module.replace("__builtin__", "builtins")}.{name}'
        try:
            return _known_globals()[full_name]
        except KeyError:
            raise Refused(full_name) from None


def _load_storage(data: bytes) -> Any:
    """``torch.storage._load_from_bytes``, which would unpickle anything, for storages."""
    return torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)


@functools.lru_cache(maxsize=None)
def _known_globals() -> Dict[str, Callable]:
    """numpy 2 renamed ``numpy.core`` to ``numpy._core``; a file may come from either."""
    return {
        '_codecs.encode': encode,
        'builtins.bytes': bytes,  # how protocol 2 writes empty ones
        'collections.OrderedDict': OrderedDict,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': numeric_dtype,
        'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
        'torch.storage._load_from_bytes': _load_storage,
        **{f'{core}.{function.__name__}': function
           for core in ('numpy.core.multiarray', 'numpy._core.multiarray')
           for function in (RECONSTRUCT, SCALAR)}
    }
