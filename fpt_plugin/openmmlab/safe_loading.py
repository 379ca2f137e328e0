"""Let torch's safe loading read the checkpoints that mmengine writes."""

from __future__ import annotations

import os
import re
from pickle import UnpicklingError
from types import FunctionType

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint

from ..io.checkpoints import loads_safely

try:
    from numpy._core import multiarray
except ImportError:  # numpy < 2
    from numpy.core import multiarray

NUMBERS = 'biufc'  # numpy's letters: bool, integers, floats, complex


def allow_safe_resume() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Since torch 2.6 the safe loading is the default, and mmengine stores its
    log in the checkpoint: a HistoryBuffer of numpy arrays, whose methods
    pickle as ``getattr(HistoryBuffer, 'mean')``. Loading such a file fails
    with ``Weights only load failed ... HistoryBuffer``. What it holds is put
    on torch's list of safe globals, with stand-ins where the real thing would
    let a file do more than hold numbers: ``builtins.getattr`` answers
    HistoryBuffer's methods alone, ``numpy.ndarray`` can be named but not
    called (called with bytes of a file it makes an array of raw pointers), and
    ``numpy.dtype`` answers numpy's own kinds of numbers alone (a copy of one
    takes any state from the file, and becomes a kind of pointer). So numbers
    are read in the byte order of the machine.
    """
    if not loads_safely():
        return
    allowed = [
        (_history_buffer_method, 'builtins.getattr'),
        (_ArrayName, 'numpy.ndarray'),
        (_number_dtype, 'numpy.dtype'),
        (np.ndarray, _by_type_only('numpy.ndarray'))
    ]
    # Numpy 2 moved its core; files from either side of the move are read.
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        allowed.append((_empty_array, f'{module}._reconstruct'))
        allowed.append((multiarray.scalar, f'{module}.scalar'))
    # By name, too: who allows the same types for a while takes those off the
    # list again that are on it without one.
    for kind in (HistoryBuffer, slice):
        allowed.append((kind, f'{kind.__module__}.{kind.__qualname__}'))
    for kind in {type(np.dtype(code)) for code in np.typecodes['All']
                 if np.dtype(code).kind in NUMBERS}:
        allowed.append((kind, _by_type_only(f'numpy.dtypes.{kind.__name__}')))
    torch.serialization.add_safe_globals(allowed)


def _by_type_only(name: str) -> str:
    """A name that cannot be spelt in a pickle, so that nothing calls it.

    torch looks an object's type up before it calls __setstate__.
    """
    return f'{name}\nby type only'


class _ArrayName:
    """Stands for numpy.ndarray while a checkpoint is read."""


def _number_dtype(code: str, align: bool = False,
                  copy: bool = False) -> np.dtype:
    """The stand-in for numpy.dtype: numpy's own object, which stays as it is.

    A copy would take any state from the file, fields of pointers too.

    Raises:
        UnpicklingError: The checkpoint asks for anything but numbers.
    """
    if not isinstance(code, str) or not re.fullmatch(rf'[{NUMBERS}]\d+', code):
        raise UnpicklingError('a checkpoint may hold numpy arrays of numbers, '
                              f'got some of dtype {code!r}')
    return np.dtype(code)


def _empty_array(subtype: type, shape: tuple, code: bytes) -> np.ndarray:
    """The stand-in for numpy's _reconstruct: __setstate__ fills the array.

    Raises:
        UnpicklingError: The checkpoint asks for anything but a plain array.
    """
    if subtype is not _ArrayName:
        raise UnpicklingError(
            f'a checkpoint may hold numpy arrays, got {subtype}')
    return multiarray._reconstruct(np.ndarray, (0, ), b'b')


def _history_buffer_method(owner: type, name: str) -> FunctionType:
    """The stand-in for getattr while a checkpoint is read.

    Raises:
        UnpicklingError: Anything but a public method of HistoryBuffer is asked
            for.
    """
    method = HistoryBuffer.__dict__.get(name)
    if owner is not HistoryBuffer or name.startswith('_') \
            or not isinstance(method, FunctionType):
        raise UnpicklingError('a checkpoint may only refer to methods of '
                              f'HistoryBuffer, got {name!r} of {owner!r}')
    return method


def keep_the_stand_ins() -> None:
    """Let the fork's loader read by our list instead of its own.

    Its list has the real ``builtins.getattr`` and ``numpy.ndarray``; beside our
    stand-ins it would be a matter of chance which of them a file gets.
    """
    if loads_safely() and hasattr(checkpoint, 'get_torch_safe_globals'):
        checkpoint.get_torch_safe_globals = _nothing_more


def _nothing_more() -> list:
    """No further safe globals."""
    return []


def refuse_pickles() -> None:
    """Let this process load nothing but weights; the tools call it.

    mmengine leaves it to torch how a file is read, and torch reads what comes
    from a URL unsafely; the fork reads a file again unsafely that the safe way
    refuses. Where the user has set one of torch's two environment variables
    for it, that counts. Older torch reads unsafely: its safe way has no list
    of what mmengine's checkpoints hold.
    """
    if loads_safely() and not os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'):
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
