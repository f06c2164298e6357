"""numpy's arrays and numbers from a pickle, built of nothing but their bytes.

numpy takes what a pickle says of an array on trust: a buffer, a layout, flags that turn numbers
into pointers. Here are stand-ins for what numpy calls; they take plain numbers and check that the
bytes make up the shape.
"""
import math
import pickle
from typing import Any, Dict, Optional

import numpy as np

# By the codes that a pickle has for them
NUMERIC_DTYPES = {code: np.dtype(code) for code in (
    'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')}


class NumericDType:
    """A dtype of plain numbers, which a pickle makes in two steps: the code, then the byte order.

    Args:
        code (str): A key of :data:`NUMERIC_DTYPES`.

    Raises:
        pickle.UnpicklingError: If the code or the state is of any other dtype.
    """

    def __init__(self, code: str, *align_and_copy) -> None:
        if type(code) is not str or code not in NUMERIC_DTYPES:
            raise pickle.UnpicklingError(f'refused GLOBAL numpy.dtype with {code!r}')
        self.dtype = NUMERIC_DTYPES[code]

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if state != (3, order, None, None, None, -1, -1, 0):
            raise pickle.UnpicklingError(f'refused GLOBAL numpy.dtype with {state!r}')
        self.dtype = self.dtype.newbyteorder(order)


class NumericArray(np.ndarray):
    """An array, which a pickle makes in two steps: an empty one, then its shape, type and bytes.

    It is a class of its own because PyTorch fills only objects of classes that it may find. It is
    pickled as numpy's, and what is computed from it is numpy's. It is read-only: a pickle may
    assign items, and numpy asks what is assigned for the address of its numbers.

    Raises:
        pickle.UnpicklingError: If it is called with anything, as a buffer, or filled twice.
    """

    def __new__(cls, *layout) -> 'NumericArray':
        if layout:
            raise pickle.UnpicklingError('refused GLOBAL numpy.ndarray with a layout')
        array = super().__new__(cls, 0)
        array.flags.writeable = False
        return array

    def __setstate__(self, state: tuple) -> None:
        if self.size:  # numpy would free the numbers, which a tensor may share
            raise pickle.UnpicklingError('refused GLOBAL numpy.ndarray that is filled twice')
        _, shape, dtype, is_fortran, data = state
        array = read_numbers(data, dtype, shape, 'F' if is_fortran else 'C')
        super().__setstate__(array.__reduce__()[2])
        self.flags.writeable = False

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)

    def __array_wrap__(self, array: np.ndarray, *context) -> Any:
        return np.asarray(array)[()]


def read_numbers(data: bytes, dtype: NumericDType, shape: tuple, order: str = 'C') -> np.ndarray:
    """A read-only array of the given shape on the given bytes.

    Raises:
        pickle.UnpicklingError: If these are no bytes of numbers, or too many or too few of them.
    """
    if type(data) is not bytes or type(dtype) is not NumericDType:
        raise pickle.UnpicklingError('refused GLOBAL numpy.ndarray of anything but numbers')
    is_shape = type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape)
    if not is_shape or math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(
            f'refused GLOBAL numpy.ndarray of shape {shape} with {len(data)} bytes')
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def new_array(*kind_and_shape) -> NumericArray:
    """The empty array that ``numpy.core.multiarray._reconstruct`` makes for a pickle."""
    return NumericArray()


def new_number(dtype: NumericDType, data: bytes) -> np.generic:
    """``numpy.core.multiarray.scalar``."""
    return read_numbers(data, dtype, ())[()]


# What takes the place of numpy's names. numpy 2 renamed numpy.core to numpy._core; a file may come
# from either.
NUMPY_NAMES = {
    'numpy.ndarray': NumericArray,
    'numpy.dtype': NumericDType,
    'numpy.core.multiarray._reconstruct': new_array,
    'numpy._core.multiarray._reconstruct': new_array,
    'numpy.core.multiarray.scalar': new_number,
    'numpy._core.multiarray.scalar': new_number,
}


def with_ndarrays(data: Any, done: Optional[Dict[int, tuple]] = None) -> Any:
    """Put numpy's own in the place of every :class:`NumericArray` and :class:`NumericDType`.

    Args:
        data (Any): One of them or a container, whose dicts and lists are changed in place.
        done (dict, optional): What was met already, as (before, after). Default: None.

    Returns:
        Any: The same data. Its arrays are writable copies.
    """
    done = {} if done is None else done
    if id(data) in done:
        return done[id(data)][1]
    after = data
    done[id(data)] = data, after  # it may hold itself
    if isinstance(data, NumericArray):
        after = np.array(data)
    elif isinstance(data, NumericDType):
        after = data.dtype
    elif isinstance(data, dict):
        for key, value in data.items():
            data[key] = with_ndarrays(value, done)
    elif isinstance(data, list):
        data[:] = [with_ndarrays(value, done) for value in data]
    elif type(data) is tuple:
        after = tuple(with_ndarrays(value, done) for value in data)
    done[id(data)] = data, after
    return after
