"""Let torch's safe loading read the checkpoints that mmengine writes."""

from __future__ import annotations

import os
import re
from pickle import UnpicklingError
from types import FunctionType

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
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
    HistoryBuffer's methods and OneCycleLR's annealing only,
    ``numpy.ndarray`` can be named but not called (called with bytes of a file
    it makes an array of raw pointers), and arrays are of numbers, of either
    byte order. What the user allowed himself, under the same names, counts:
    torch picks one of two entries by chance, so each of them works with all
    the others, and a stand-in gives way.
    """
    if not loads_safely():
        return
    allowed = [
        (_method, 'builtins.getattr'),
        (_OneCycle, f'{OneCycleParamScheduler.__module__}.'
                    f'{OneCycleParamScheduler.__qualname__}'),
        (LoadedArray, 'numpy.ndarray'),
        (_number_dtype, 'numpy.dtype'),
        (np.ndarray, _by_type_only('numpy.ndarray')),
        (bytes, 'builtins.bytes'),  # of an array without numbers
    ]
    # Numpy 2 moved its core; files from either side of the move are read.
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        allowed.append((_empty_array, f'{module}._reconstruct'))
        allowed.append((_number, f'{module}.scalar'))
    # By name, too: who allows the same types for a while takes those off the
    # list again that are on it without one.
    for kind in (HistoryBuffer, slice):
        allowed.append((kind, f'{kind.__module__}.{kind.__qualname__}'))
    for kind in {type(np.dtype(code)) for code in np.typecodes['All']
                 if np.dtype(code).kind in NUMBERS}:
        allowed.append((kind, _by_type_only(f'numpy.dtypes.{kind.__name__}')))
    # Without those of this module before it was reloaded.
    others = [entry for entry in torch.serialization.get_safe_globals()
              if getattr(_real(entry), '__module__', '') != __name__]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(others + allowed)


def _by_type_only(name: str) -> str:
    """A name that cannot be spelt in a pickle, so that nothing calls it.

    torch looks an object's type up before it calls __setstate__.
    """
    return f'{name}\nby type only'


def _users(real: object) -> bool:
    """Whether the user put the real thing on torch's list; we never do."""
    return any(real is _real(entry)
               for entry in torch.serialization.get_safe_globals())


def _real(entry: object) -> object:
    """What an entry of torch's list allows, with or without a name."""
    return entry[0] if isinstance(entry, tuple) else entry


class LoadedArray(np.ndarray):
    """An array of a checkpoint; it is saved and copied as a plain one.

    A subclass, because that is what numpy's own ``_reconstruct`` takes and
    what sees the dtype before the bytes are read by it.
    """

    def __new__(cls, *args, **kwargs) -> LoadedArray:
        """Refuse calls: a file's bytes would become raw pointers."""
        raise UnpicklingError('a checkpoint may hold numpy arrays, but not call '
                              'numpy.ndarray')

    def __setstate__(self, state: tuple) -> None:
        """Take shape and numbers from a file, in the machine's byte order.

        Raises:
            UnpicklingError: They are no numbers.
        """
        if not _users(np.dtype):
            *version, shape, dtype, by_columns, content = state
            saved = _plain(dtype)
            native = np.dtype(saved.str[1:])
            if not saved.isnative:
                content = np.frombuffer(content, saved).astype(native).tobytes()
            state = (*version, shape, native, by_columns, content)
        super().__setstate__(state)

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Save it as numpy would save a plain array."""
        return self.view(np.ndarray).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> np.ndarray:
        """Copy it into a plain array."""
        return np.array(self)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """Give plain arrays as results."""
        return array[()] if return_scalar else array.view(np.ndarray)


def _number_dtype(code: str, align: bool = False,
                  copy: bool = False) -> np.dtype:
    """The stand-in for numpy.dtype: a copy, which takes the byte order.

    It takes any state from the file, fields of pointers too; so nothing but
    its kind, size and byte order is used, see :func:`_plain`.

    Raises:
        UnpicklingError: The checkpoint asks for anything but numbers.
    """
    if not _users(np.dtype) and not (
            isinstance(code, str) and re.fullmatch(rf'[{NUMBERS}]\d+', code)):
        raise UnpicklingError('a checkpoint may hold numpy arrays of numbers, '
                              f'got some of dtype {code!r}')
    return np.dtype(code, align, True)


def _plain(dtype: np.dtype) -> np.dtype:
    """The numbers that a dtype of a file stands for.

    Raises:
        UnpicklingError: There are none.
    """
    code = dtype.str if isinstance(dtype, np.dtype) else repr(dtype)
    try:
        if re.fullmatch(rf'[<>|=][{NUMBERS}]\d+', code):
            return np.dtype(code)
    except TypeError:  # numbers of no such size
        pass
    raise UnpicklingError('a checkpoint may hold numpy arrays of numbers, got '
                          f'some of dtype {code!r}')


def _empty_array(subtype: type, shape: tuple, code: bytes) -> np.ndarray:
    """The stand-in for numpy's _reconstruct: __setstate__ fills the array.

    Raises:
        UnpicklingError: The checkpoint asks for anything but a plain array.
    """
    if _users(multiarray._reconstruct):
        return multiarray._reconstruct(subtype, shape, code)
    if subtype is not np.ndarray and _origin(subtype) != _origin(LoadedArray):
        raise UnpicklingError(
            f'a checkpoint may hold numpy arrays, got {subtype}')
    return multiarray._reconstruct(subtype, (0, ), b'b')


def _origin(kind: type) -> tuple[str, str]:
    """Where a class is from, the same for the one from before a reload."""
    return kind.__module__, kind.__qualname__


def _number(dtype: np.dtype, content: bytes) -> np.generic:
    """The stand-in for numpy's scalar.

    Raises:
        UnpicklingError: The checkpoint asks for anything but a number.
    """
    if not _users(multiarray.scalar) and not _users(np.dtype):
        dtype = _plain(dtype)
    return multiarray.scalar(dtype, content)


class _OneCycle:
    """The stand-in for OneCycleParamScheduler, whose annealing is a function."""

    def __new__(cls, *args, **kwargs) -> _OneCycle:
        """Refuse calls."""
        raise UnpicklingError('a checkpoint may name OneCycleParamScheduler, '
                              'but not call it')


def _method(owner: type, name: str) -> FunctionType:
    """The stand-in for getattr while a checkpoint is read.

    Raises:
        UnpicklingError: Anything but a public method of HistoryBuffer or the
            annealing of OneCycleLR is asked for.
    """
    if _users(getattr):
        return getattr(owner, name)
    if owner is _OneCycle and name in ('_annealing_cos', '_annealing_linear'):
        return getattr(OneCycleParamScheduler, name)
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
