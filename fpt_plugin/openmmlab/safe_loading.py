"""Make torch's safe loading read the checkpoints that mmengine writes."""

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

NUMBERS = 'biufc'  # numpy's kinds: bool, integers, floats, complex


def allow_safe_resume() -> None:
    """Make ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Since torch 2.6 safe loading is the default. mmengine stores its log in the
    checkpoint: a HistoryBuffer of numpy arrays, whose methods are pickled as
    ``getattr(HistoryBuffer, 'mean')``. Loading such a file fails with ``Weights
    only load failed ... HistoryBuffer``.

    This function adds the needed types to torch's list of safe globals. Where the
    real object would let a file do more than hold numbers, a restricted
    replacement is added instead:

    - ``builtins.getattr`` returns only methods of HistoryBuffer and the
      annealing functions of OneCycleLR.
    - ``numpy.ndarray`` can be named but not called: called with bytes from a
      file, it makes an array of raw pointers.
    - Arrays hold only numbers, of either byte order.

    If the user has added an object of the same name to the list, torch picks one
    of the two entries by chance. Therefore each entry works with all others, and
    a replacement then behaves like the user's object.
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
        (bytes, 'builtins.bytes'),  # used by empty arrays
    ]
    # numpy 2 moved its core; files of both versions are read.
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        allowed.append((_empty_array, f'{module}._reconstruct'))
        allowed.append((_number, f'{module}.scalar'))
    # With a name: torch's safe_globals context removes entries without a name
    # on exit, if it was given the same types.
    for kind in (HistoryBuffer, slice):
        allowed.append((kind, f'{kind.__module__}.{kind.__qualname__}'))
    for kind in {type(np.dtype(code)) for code in np.typecodes['All']
                 if np.dtype(code).kind in NUMBERS}:
        allowed.append((kind, _by_type_only(f'numpy.dtypes.{kind.__name__}')))
    # Drop the entries that this module added before it was reloaded.
    others = [entry for entry in torch.serialization.get_safe_globals()
              if getattr(_real(entry), '__module__', '') != __name__]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(others + allowed)


def _by_type_only(name: str) -> str:
    """Return a name that no pickle can contain, so that a file cannot call it.

    torch also looks up an object's type on the list before it calls
    __setstate__, and that works with any name.
    """
    return f'{name}\nby type only'


def _user_allowed(real: object) -> bool:
    """Return whether the user has put the real object on torch's list."""
    return any(real is _real(entry)
               for entry in torch.serialization.get_safe_globals())


def _real(entry: object) -> object:
    """Return the object of an entry of torch's list, which may have a name."""
    return entry[0] if isinstance(entry, tuple) else entry


class LoadedArray(np.ndarray):
    """An array from a checkpoint; it is saved and copied as a plain array.

    A subclass is used because numpy's ``_reconstruct`` accepts it, and because
    its ``__setstate__`` can check the dtype before the bytes are read.
    """

    def __new__(cls, *args, **kwargs) -> LoadedArray:
        """Refuse calls, in which bytes from the file would become raw pointers."""
        raise UnpicklingError('a checkpoint may hold numpy arrays, but not call '
                              'numpy.ndarray')

    def __setstate__(self, state: tuple) -> None:
        """Set shape and numbers from a file, in native byte order.

        Raises:
            UnpicklingError: The dtype is not numeric.
        """
        if not _user_allowed(np.dtype):
            *version, shape, dtype, by_columns, content = state
            saved = _plain(dtype)
            native = np.dtype(saved.str[1:])
            if not saved.isnative:
                content = np.frombuffer(content, saved).astype(native).tobytes()
            state = (*version, shape, native, by_columns, content)
        super().__setstate__(state)

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Pickle it as a plain array."""
        return self.view(np.ndarray).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> np.ndarray:
        """Copy it to a plain array."""
        return np.array(self)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """Return plain arrays from numpy functions."""
        return array[()] if return_scalar else array.view(np.ndarray)


def _number_dtype(code: str, align: bool = False,
                  copy: bool = False) -> np.dtype:
    """Replace numpy.dtype: return a copy, whose byte order the file may set.

    The file can set any state of the copy, including fields of pointers.
    Therefore only its kind, size and byte order are used, see :func:`_plain`.

    Raises:
        UnpicklingError: The dtype is not numeric.
    """
    if not _user_allowed(np.dtype) and not (
            isinstance(code, str) and re.fullmatch(rf'[{NUMBERS}]\d+', code)):
        raise UnpicklingError('a checkpoint may hold numpy arrays of numbers, '
                              f'got some of dtype {code!r}')
    return np.dtype(code, align, True)


def _plain(dtype: np.dtype) -> np.dtype:
    """Return a new numeric dtype like that of a file.

    Raises:
        UnpicklingError: The dtype is not numeric.
    """
    code = dtype.str if isinstance(dtype, np.dtype) else repr(dtype)
    try:
        if re.fullmatch(rf'[<>|=][{NUMBERS}]\d+', code):
            return np.dtype(code)
    except TypeError:  # numpy has no number of that size
        pass
    raise UnpicklingError('a checkpoint may hold numpy arrays of numbers, got '
                          f'some of dtype {code!r}')


def _empty_array(subtype: type, shape: tuple, code: bytes) -> np.ndarray:
    """Replace numpy's _reconstruct: return an array that __setstate__ fills.

    Raises:
        UnpicklingError: The type is not numpy.ndarray.
    """
    if _user_allowed(multiarray._reconstruct):
        return multiarray._reconstruct(subtype, shape, code)
    if subtype is not np.ndarray and _origin(subtype) != _origin(LoadedArray):
        raise UnpicklingError(
            f'a checkpoint may hold numpy arrays, got {subtype}')
    return multiarray._reconstruct(subtype, (0, ), b'b')


def _origin(kind: type) -> tuple[str, str]:
    """Return module and name of a class; a reload of the module keeps them."""
    return kind.__module__, kind.__qualname__


def _number(dtype: np.dtype, content: bytes) -> np.generic:
    """Replace numpy's scalar.

    Raises:
        UnpicklingError: The dtype is not numeric.
    """
    if not _user_allowed(multiarray.scalar) and not _user_allowed(np.dtype):
        dtype = _plain(dtype)
    return multiarray.scalar(dtype, content)


class _OneCycle:
    """Replaces OneCycleParamScheduler, whose annealing functions files refer to."""

    def __new__(cls, *args, **kwargs) -> _OneCycle:
        """Refuse calls."""
        raise UnpicklingError('a checkpoint may name OneCycleParamScheduler, '
                              'but not call it')


def _method(owner: type, name: str) -> FunctionType:
    """Replace getattr while a checkpoint is read.

    Raises:
        UnpicklingError: It is neither a public method of HistoryBuffer nor an
            annealing function of OneCycleLR.
    """
    if _user_allowed(getattr):
        return getattr(owner, name)
    if owner is _OneCycle and name in ('_annealing_cos', '_annealing_linear'):
        return getattr(OneCycleParamScheduler, name)
    method = HistoryBuffer.__dict__.get(name)
    if owner is not HistoryBuffer or name.startswith('_') \
            or not isinstance(method, FunctionType):
        raise UnpicklingError('a checkpoint may only refer to methods of '
                              f'HistoryBuffer, got {name!r} of {owner!r}')
    return method


def keep_restricted_globals() -> None:
    """Make the fork's loader use torch's list of safe globals instead of its own.

    The fork's list has the real ``builtins.getattr`` and ``numpy.ndarray``.
    Together with the restricted replacements it would be a matter of chance
    which of them torch uses.
    """
    if loads_safely() and hasattr(checkpoint, 'get_torch_safe_globals'):
        checkpoint.get_torch_safe_globals = _no_more_globals


def _no_more_globals() -> list:
    """Return no further safe globals."""
    return []


def refuse_pickles() -> None:
    """Make this process load checkpoints only safely; the commands call it.

    By default torch reads files from URLs unsafely, and the fork of mmengine
    reads a file again unsafely if safe loading fails. If the user has set one of
    torch's two environment variables for this choice, nothing is changed. torch
    before 2.6 reads unsafely: it has no list of safe globals to which the types
    in mmengine's checkpoints could be added.
    """
    if loads_safely() and not os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'):
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
