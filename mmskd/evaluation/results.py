"""Reads what ``tools/test.py`` saved, and nothing else.

A results file is a pickle, and a pickle may call anything. These hold tensors, arrays, numbers and
plain containers, so nothing but those is built; arrays by :mod:`mmskd.checkpoint.safe_numpy`.
"""
import io
import os
import pickle
import types
import zipfile
from _codecs import encode  # how protocol 2 writes bytes
from typing import Any, List

import torch

from mmskd.checkpoint.safe_numpy import NUMPY_NAMES, with_ndarrays


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
            results = with_ndarrays(ResultsUnpickler(file).load())
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
    # Every tensor has one, for its hooks; a plain dict takes no attributes from the file
    'collections.OrderedDict': dict,
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch.storage._load_from_bytes': _load_storage,
    **NUMPY_NAMES,
}
