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
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from torch import nn

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


def load_weights(model: nn.Module, path: str, prefixes: Sequence[str] = ('', )) -> None:
    """Load the weights of a checkpoint into a model, all of them or those of some of its modules.

    Args:
        model (nn.Module): As the checkpoint's model was built.
        path (str): A file or URL.
        prefixes (Sequence[str]): Which keys to load, by their beginning, as ``('backbone.', )``. Defaults
            to all.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks a weight that the model has, has one that the model lacks, or one of
            another shape; names the file and the keys.
        pickle.UnpicklingError, RuntimeError: If it is not a checkpoint.
    """
    load = load_from_http_safely if '://' in path else load_from_local_safely
    checkpoint = load(path, map_location='cpu')
    weights = checkpoint.get('state_dict', checkpoint)
    chosen = lambda state: {key: value for key, value in state.items()  # noqa: E731
                            if key.startswith(tuple(prefixes))}
    wanted, given = chosen(model.state_dict()), chosen(weights)
    problems = {
        'lacks': wanted.keys() - given.keys(),
        'has beyond the model': given.keys() - wanted.keys(),
        'has in another shape': [key for key in wanted.keys() & given.keys()
                                 if wanted[key].shape != given[key].shape]
    }
    found = [f'{what} {len(keys)} weights, such as {sorted(keys)[0]}'
             for what, keys in problems.items() if keys]
    if found:
        hint = ('; it was saved by a distiller that holds two models: '
                'tools/convert_dwpose_checkpoint.py makes a stock checkpoint of it'
                if any(key.startswith('student.') for key in weights) else '')
        raise ValueError(f'{path} does not fit {type(model).__name__}: it {"; ".join(found)}{hint}')
    model.load_state_dict(given, strict=False)


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


# ------------------------------------------------------------------ checkpoints for others


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


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """``torch.save`` with bytes that depend on the checkpoint alone, and not on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as file:  # of a path, PyTorch notes the name in the archive
        torch.save(checkpoint, file)


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
