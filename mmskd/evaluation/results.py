"""Reads what ``tools/test.py`` saved, and nothing else.

A results file is a pickle, and a pickle may call anything. These hold tensors, arrays, numbers and
plain containers, so nothing but those is built. Arrays are built here from their numbers and not by
numpy from what the file says: numpy takes a layout on trust, also one that points into memory.
"""
import io
import os
import pickle
import types
import zipfile
from _codecs import encode  # how protocol 2 writes bytes
from collections import OrderedDict
from typing import Any, List

import numpy as np
import torch

from mmskd.engine.checkpoint import SCALAR, numeric_dtype


def load_results(path: str) -> List[dict]:
    """Predictions that MMEngine's ``DumpResults`` or MMDetection's ``DumpDetResults`` wrote.

    Args:
        path (str): A pickle file of ``tools/test.py --dump`` or ``--out``, of mmskd or of
            MMDetection and MMPose.

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
            results = _with_plain_arrays(ResultsUnpickler(file).load())
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
        if full_name not in KNOWN:
            raise Refused(full_name)
        return KNOWN[full_name]


class _DType:
    """A numeric dtype, which a pickle makes in two steps: the name, then the byte order."""

    def __init__(self, code: str) -> None:
        self.dtype = numeric_dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if state != (3, order, None, None, None, -1, -1, 0):
            raise pickle.UnpicklingError(f'{self.dtype} with {state} is no number')
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array, which a pickle makes in two steps: an empty one, then its shape, type and data."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.dtype, is_fortran, data))


def _new_dtype(code: str, *align_and_copy) -> _DType:
    return _DType(code)


def _new_array(*kind_and_shape) -> _Array:
    return _Array(0)


def _new_number(dtype: _DType, data: bytes) -> np.generic:
    return SCALAR(dtype.dtype, data)


def _load_storage(data: bytes) -> Any:
    """``torch.storage._load_from_bytes``, which would unpickle anything, for storages."""
    if zipfile.is_zipfile(io.BytesIO(data)):  # not how a storage is pickled; maybe a program
        raise Refused('torch.jit')
    storage_pickle = types.SimpleNamespace(
        __name__='storage_pickle',
        Unpickler=_StorageUnpickler,
        load=lambda file, **kwargs: _StorageUnpickler(file, **kwargs).load())
    return torch.load(io.BytesIO(data), map_location='cpu', pickle_module=storage_pickle,
                      weights_only=False)


class _StorageUnpickler(pickle.Unpickler):
    """Finds nothing: PyTorch takes care of the names of its storages by itself."""

    def find_class(self, module: str, name: str) -> Any:
        raise Refused(f'{module}.{name}')


KNOWN = {
    '_codecs.encode': encode,
    'builtins.bytes': bytes,  # how protocol 2 writes empty ones
    'collections.OrderedDict': OrderedDict,  # every tensor has one, for its hooks
    'numpy.ndarray': None,  # an argument of _reconstruct, which is not called
    'numpy.dtype': _new_dtype,
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch.storage._load_from_bytes': _load_storage,
    # numpy 2 renamed numpy.core to numpy._core; a file may come from either
    'numpy.core.multiarray._reconstruct': _new_array,
    'numpy._core.multiarray._reconstruct': _new_array,
    'numpy.core.multiarray.scalar': _new_number,
    'numpy._core.multiarray.scalar': _new_number,
}


def _with_plain_arrays(data: Any) -> Any:
    if isinstance(data, _Array):
        return data.view(np.ndarray)
    if isinstance(data, dict):
        return {key: _with_plain_arrays(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(map(_with_plain_arrays, data))
    return data
