"""Checkpoints are read without running what is written in them.

A checkpoint is a pickle, and a pickle may call anything. PyTorch's ``weights_only=True`` refuses
all but tensors and plain containers, and with them the checkpoints of MMEngine, which hold the
training's history as numpy arrays. Here are the few classes that those need.
"""
import functools
import os
import pickle
import re
import types
import warnings
import zipfile
from typing import Any, Callable, Dict, List
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler

# What numpy calls to make an array and a number from a pickle
RECONSTRUCT = np.zeros(0).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]

# Plain numbers. Types with fields or objects stay out: numpy takes their layout from the pickle on
# trust, so that a crafted one could point into memory.
NUMERIC_DTYPES = tuple(np.dtype(code) for code in '?bhilqBHILQefd')

# Checkpoints hold these functions as getattr(class, name), which is how pickle writes them
CLASS_FUNCTIONS = {
    *((HistoryBuffer, name) for name in ('min', 'max', 'current', 'mean')),
    *((OneCycleParamScheduler, name) for name in ('_annealing_cos', '_annealing_linear')),
}


def numeric_dtype(code: str, *args) -> np.dtype:
    """``numpy.dtype`` for plain numbers, and nothing else."""
    dtype = np.dtype(code, *args)
    if type(dtype) not in map(type, NUMERIC_DTYPES):
        raise pickle.UnpicklingError(f'refused GLOBAL numpy.dtype with {code!r}')
    return dtype


def class_function(owner: type, name: str) -> Callable:
    """``getattr`` for :data:`CLASS_FUNCTIONS`, and nothing else."""
    if (owner, name) not in CLASS_FUNCTIONS:
        raise pickle.UnpicklingError(f'refused GLOBAL getattr of {name!r}')
    return getattr(owner, name)


def _named(function: Callable, module: str, name: str) -> Callable:
    """A function to be called where a checkpoint says ``module.name``."""

    @functools.wraps(function)
    def named(*args):
        return function(*args)

    named.__module__, named.__name__, named.__qualname__ = module, name, name
    return named


@functools.lru_cache(maxsize=None)
def checkpoint_classes() -> List[Callable]:
    """What MMEngine's checkpoints hold beyond tensors and plain containers.

    numpy 2 renamed ``numpy.core`` to ``numpy._core``; a checkpoint may come from either. An empty
    array is pickled as a call of ``bytes``: a data set without a skeleton has some.
    """
    return [
        HistoryBuffer, OneCycleParamScheduler, np.ndarray, bytes,
        *dict.fromkeys(type(dtype) for dtype in NUMERIC_DTYPES),
        _named(numeric_dtype, 'numpy', 'dtype'),
        _named(class_function, 'builtins', 'getattr'),
        *(_named(function, core, function.__name__)
          for core in ('numpy.core.multiarray', 'numpy._core.multiarray')
          for function in (RECONSTRUCT, SCALAR))
    ]


def allow_checkpoint_classes() -> None:
    """Let ``torch.load(..., weights_only=True)`` read the checkpoints of MMEngine.

    Adds :func:`checkpoint_classes` to PyTorch's list of safe globals, once. PyTorch before 2.4 has
    no such list; :func:`load_checkpoint_safely` works there as well.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):
        known = torch.serialization.get_safe_globals()
        torch.serialization.add_safe_globals(
            [entry for entry in checkpoint_classes() if entry not in known])


def load_checkpoint_safely(path: str, map_location: Any = None) -> Any:
    """``torch.load`` that runs nothing of what the file says, on every PyTorch from 2.0 on.

    Args:
        path (str): A local file.
        map_location: As in ``torch.load``. Default: None.

    Returns:
        Any: The checkpoint. ``meta['config']`` is left out of it: MMEngine never writes this key,
        but :meth:`Runner.resume` would execute it as a Python config.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the file needs a class that is not on the list.
        RuntimeError: If the file is not a checkpoint.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no checkpoint {path}')
    try:
        if hasattr(torch.serialization, 'add_safe_globals'):
            # Not only at import: MMEngine's forks take classes off PyTorch's list after a load
            allow_checkpoint_classes()
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        else:
            checkpoint = load_restricted(path, map_location)
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(_refusal(path, error)) from error
    except Exception as error:
        raise RuntimeError(f'{path} cannot be read as a checkpoint: {error}') from error
    _drop_config(checkpoint, path)
    return checkpoint


def _refusal(path: str, error: pickle.UnpicklingError) -> str:
    match = re.search(r'GLOBAL (.+?)(?: was not an allowed| whose module|$)', str(error), re.M)
    what = match.group(1) if match else str(error).rpartition('error: ')[2]
    return (f'{path} was not loaded: it asks for {what}, which is not on the list of what a '
            'checkpoint may hold, and could run code. If you trust the file, save its state_dict '
            'alone and load that.')


def _drop_config(checkpoint: Any, path: str) -> None:
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict) and meta.pop('config', None) is not None:
        warnings.warn(f"{path}: meta['config'] is ignored, because resuming would execute it")


# ------------------------------------------------------------------ PyTorch before 2.4


class RestrictedUnpickler(pickle.Unpickler):
    """Finds what ``weights_only=True`` finds, and :func:`checkpoint_classes`; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which PyTorch writes, has the module names of Python 2
        full_name = f'{module.replace("__builtin__", "builtins")}.{name}'
        try:
            return _restricted_globals()[full_name]
        except KeyError:
            raise pickle.UnpicklingError(f'refused GLOBAL {full_name}') from None


@functools.lru_cache(maxsize=None)
def _restricted_globals() -> Dict[str, Callable]:
    from _codecs import encode  # how protocol 2 writes bytes

    from torch._weights_only_unpickler import _get_allowed_globals
    ours = {f'{entry.__module__}.{entry.__name__}': entry for entry in checkpoint_classes()}
    return {'_codecs.encode': encode, 'builtins.set': set, **_get_allowed_globals(), **ours}


def load_restricted(path: str, map_location: Any = None) -> Any:
    """``torch.load`` through :class:`RestrictedUnpickler`.

    Raises:
        pickle.UnpicklingError: If the file needs a class that is not on the list, or is a
            TorchScript archive, which ``torch.load`` would hand to another loader.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                raise pickle.UnpicklingError('a TorchScript program')
    restricted_pickle = types.SimpleNamespace(
        __name__='restricted_pickle',
        Unpickler=RestrictedUnpickler,
        load=lambda file, **kwargs: RestrictedUnpickler(file, **kwargs).load(),
        UnpicklingError=pickle.UnpicklingError)
    return torch.load(path, map_location=map_location, pickle_module=restricted_pickle,
                      weights_only=False)


# ------------------------------------------------------------------ MMEngine's loader


def load_from_local_safely(filename: str, map_location: Any = None) -> Any:
    """What MMEngine calls for a local file."""
    return load_checkpoint_safely(filename, map_location)


def load_from_http_safely(filename: str, map_location: Any = None) -> Any:
    """What MMEngine calls for a URL; the file is kept in PyTorch's cache."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(filename).path))
    for turn in (get_rank() == 0, get_rank() > 0):  # one downloads, the others find it
        if turn and not os.path.exists(path):
            os.makedirs(folder, exist_ok=True)
            torch.hub.download_url_to_file(filename, path)
        barrier()
    return load_checkpoint_safely(path, map_location)


def use_safe_loading() -> None:
    """Make MMEngine load files and URLs by :func:`load_checkpoint_safely` in this process.

    It holds for ``load_from``, ``resume``, and ``Pretrained`` weights in a config.
    """
    from mmengine.runner import CheckpointLoader
    CheckpointLoader.register_scheme('', load_from_local_safely, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http_safely, force=True)
