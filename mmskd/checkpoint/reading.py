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
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler

from mmskd.errors import UsageError

from .safe_numpy import NUMPY_NAMES, NumericArray, NumericDType, with_ndarrays


class UnsafeCheckpointError(UsageError, pickle.UnpicklingError):
    """A checkpoint asks for more than data."""


class UnreadableCheckpointError(UsageError, RuntimeError):
    """A file is no checkpoint, or no longer one."""


def _renamed(what: Callable, name: str) -> Callable:
    """A function or class to be found where a checkpoint says ``name``."""
    what.__module__, _, what.__name__ = name.rpartition('.')
    what.__qualname__ = what.__name__
    return what


def _called(name: str, function: Any) -> Callable:
    """A function of its own that calls another: one may be found under several names."""
    return _renamed(lambda *args: function(*args), name)


def _in_place_of(original: type) -> Callable[[type], Any]:
    """Decorates the class that is found where a checkpoint says ``original``."""
    return lambda cls: _renamed(cls, f'{original.__module__}.{original.__qualname__}')


@_in_place_of(HistoryBuffer)
class RestoredHistory(HistoryBuffer):
    """Becomes a HistoryBuffer as soon as it has its numbers.

    MMEngine's own would take over any attribute from the file, among them those by which an object
    tells numpy where in memory to read, and any function as statistics of all buffers.
    """

    def __init__(self, *lists) -> None:
        if lists:  # of anything, which HistoryBuffer would make arrays of
            raise pickle.UnpicklingError('refused GLOBAL HistoryBuffer that is called')

    def __setstate__(self, state: dict) -> None:
        arrays = {key: state[key] for key in ('_log_history', '_count_history')}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise pickle.UnpicklingError('refused GLOBAL HistoryBuffer of anything but numbers')
        self.__dict__.update(with_ndarrays(arrays), max_length=int(state['max_length']))
        self._set_default_statistics()
        self.__class__ = HistoryBuffer


@_in_place_of(OneCycleParamScheduler)
class NamedScheduler(OneCycleParamScheduler):
    """Is named by checkpoints for its functions; they hold none."""

    def __new__(cls, *args):
        raise pickle.UnpicklingError('refused GLOBAL OneCycleParamScheduler that is called')


# Checkpoints hold these functions as getattr(class, name), which is how pickle writes them
CLASS_FUNCTIONS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def class_function(owner: type, name: str) -> Callable:
    """``getattr`` for :data:`CLASS_FUNCTIONS`, and nothing else."""
    for known, names in CLASS_FUNCTIONS.items():
        if isinstance(owner, type) and issubclass(owner, known) and name in names:
            return getattr(known, name)
    raise pickle.UnpicklingError(f'refused GLOBAL getattr of {name!r}')


@functools.cache
def checkpoint_classes() -> List[Callable]:
    """What MMEngine's checkpoints hold beyond tensors and plain containers.

    None of it is numpy's: see :mod:`mmskd.checkpoint.safe_numpy`. Its two classes are found under
    their own names as well, because PyTorch fills only objects of classes that it may find. An
    empty array is pickled as a call of ``bytes``: a data set without a skeleton has some.
    """
    return [
        RestoredHistory, NamedScheduler, bytes, NumericArray, NumericDType,
        _called('builtins.getattr', class_function),
        *(_called(name, function) for name, function in NUMPY_NAMES.items())
    ]


def _name(entry: Any) -> str:
    """The name under which PyTorch finds an entry of its list."""
    return entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'


def allow_checkpoint_classes() -> None:
    """Let ``torch.load(..., weights_only=True)`` read the checkpoints of MMEngine.

    Adds :func:`checkpoint_classes` to PyTorch's list of safe globals, once. Where someone listed
    numpy's own functions before, these stay in use, because they do not go together with ours.
    PyTorch before 2.4 has no such list; :func:`load_checkpoint_safely` works there as well.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):
        ours = checkpoint_classes()
        taken = {_name(entry) for entry in torch.serialization.get_safe_globals()
                 if entry not in ours}
        torch.serialization.add_safe_globals(
            [entry for entry in ours if _name(entry) not in taken
             and not (_name(entry) in NUMPY_NAMES and taken.intersection(NUMPY_NAMES))])


@contextmanager
def _no_numpy_but_ours() -> Iterator[None]:
    """For a while, PyTorch finds :func:`checkpoint_classes` whatever else was listed.

    Others list numpy's own types: MMEngine's forks for their own loading, and users who followed
    the error message of PyTorch.
    """
    listed = torch.serialization.get_safe_globals()
    ours = checkpoint_classes()
    names = {_name(entry) for entry in ours}
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(ours + [
        entry for entry in listed
        if _name(entry) not in names and not _name(entry).startswith('numpy.')])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(listed)


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
        UnsafeCheckpointError: If the file needs a class that is not on the list.
        UnreadableCheckpointError: If the file is no checkpoint, or damaged.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no checkpoint {path}')
    try:
        if hasattr(torch.serialization, 'add_safe_globals'):
            with _no_numpy_but_ours():
                checkpoint = torch.load(path, map_location=map_location, weights_only=True)
            checkpoint = with_ndarrays(checkpoint)
        else:
            checkpoint = load_restricted(path, map_location)
    except PermissionError:
        raise
    except Exception as error:
        problem = _not_a_checkpoint(path)
        if problem is None and isinstance(error, pickle.UnpicklingError):
            raise UnsafeCheckpointError(_refusal(path, error)) from error
        raise UnreadableCheckpointError(
            f'{path} cannot be read as a checkpoint: {problem or _in_a_line(error)}') from error
    _drop_config(checkpoint, path)
    return checkpoint


def _not_a_checkpoint(path: str) -> Optional[str]:
    """What is wrong with a file that is neither an archive nor a pickle; None if it is one."""
    with open(path, 'rb') as file:
        start = file.read(16)
    if not start:
        return 'it is empty'
    if start[:2] == b'PK':
        return None if _ends_as_an_archive(path) else 'the end of it is missing or damaged'
    if start[:1] == pickle.PROTO:
        return None
    return f'it begins with {start!r}, as no checkpoint does'


def _ends_as_an_archive(path: str) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except Exception:  # it reads the tables at the end, whatever is left of them
        return False


def _in_a_line(error: Exception) -> str:
    return f'{type(error).__name__}: {_first_line(str(error))}'


def _first_line(text: str) -> str:
    return text.strip().partition(chr(10))[0]


def _refusal(path: str, error: pickle.UnpicklingError) -> str:
    match = re.search(r'GLOBAL (.+?)(?: was not an allowed| whose module|$)', str(error), re.M)
    what = match.group(1) if match else _first_line(str(error).rpartition('error: ')[2])
    return (f'{path} was not loaded: it asks for {what}, which is not on the list of what a '
            'checkpoint may hold, and could run code. If you trust the file, save its state_dict '
            'alone and load that.')


def _drop_config(checkpoint: Any, path: str) -> None:
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict) and meta.pop('config', None) is not None:
        warnings.warn(f"{path}: meta['config'] is ignored, because resuming would execute it",
                      stacklevel=2)


# ------------------------------------------------------------------ PyTorch before 2.4


class RestrictedUnpickler(pickle._Unpickler):
    """Finds what ``weights_only=True`` finds, and :func:`checkpoint_classes`; nothing else.

    Like that, it fills only objects of classes that it may find. The unpickler of Python that is
    written in Python lets us check.
    """

    dispatch = pickle._Unpickler.dispatch.copy()

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which PyTorch writes, has the module names of Python 2
        full_name = f'{module.replace("__builtin__", "builtins")}.{name}'
        try:
            return _restricted_globals()[full_name]
        except KeyError:
            raise pickle.UnpicklingError(f'refused GLOBAL {full_name}') from None

    def load_build(self) -> None:
        kind = type(self.stack[-2])  # type: ignore[attr-defined]  # of pickle._Unpickler
        if kind not in _restricted_globals().values():
            raise pickle.UnpicklingError(f'refused GLOBAL {kind.__name__} that is filled')
        super().load_build()  # type: ignore[misc]  # of pickle._Unpickler

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]  # called with our kind


@functools.cache
def _restricted_globals() -> Dict[str, Callable]:
    from _codecs import encode  # how protocol 2 writes bytes

    from torch._weights_only_unpickler import _get_allowed_globals
    ours = {_name(entry): entry for entry in checkpoint_classes()}
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
    return with_ndarrays(torch.load(
        path, map_location=map_location, pickle_module=restricted_pickle, weights_only=False))
