"""What differs between the OpenMMLab distributions and torch versions.

The only place that knows. Each mend is narrow, and does nothing where the
installed versions do not need it.
"""

from __future__ import annotations

from types import FunctionType

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

try:
    from numpy._core import multiarray
except ImportError:  # numpy < 2
    from numpy.core import multiarray


def apply() -> None:
    """Apply every mend; more than once is harmless."""
    allow_safe_resume()


def allow_safe_resume() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Since torch 2.6 the safe loading is the default, and mmengine stores its
    log in the checkpoint: a HistoryBuffer of numpy arrays, whose methods
    pickle as ``getattr(HistoryBuffer, 'mean')``. Loading such a file fails
    with ``Weights only load failed ... HistoryBuffer``. What it holds is put
    on torch's list of safe globals, with stand-ins where the real thing would
    let a file do more than hold numbers: ``builtins.getattr`` answers
    HistoryBuffer's methods alone, and ``numpy.ndarray`` can be named but not
    called (called with bytes of a file it makes an array of raw pointers).
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return
    allowed = [
        HistoryBuffer, np.dtype, (_history_buffer_method, 'builtins.getattr'),
        (_ArrayName, 'numpy.ndarray'),
        # torch looks the type up before it calls __setstate__; a name with a
        # line feed cannot be spelt in a pickle, so it cannot be called.
        (np.ndarray, 'numpy.ndarray\nby type only')
    ]
    # Numpy 2 moved its core; files from either side of the move are read.
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        allowed.append((_empty_array, f'{module}._reconstruct'))
        allowed.append((multiarray.scalar, f'{module}.scalar'))
    for code in ('float64', 'float32', 'int64', 'int32', 'bool'):
        allowed.append(type(np.dtype(code)))
    torch.serialization.add_safe_globals(allowed)


class _ArrayName:
    """Stands for numpy.ndarray while a checkpoint is read."""


def _empty_array(subtype: type, shape: tuple, code: bytes) -> np.ndarray:
    """The stand-in for numpy's _reconstruct: __setstate__ fills the array.

    Raises:
        TypeError: The checkpoint asks for anything but a plain array.
    """
    if subtype is not _ArrayName:
        raise TypeError(f'a checkpoint may hold numpy arrays, got {subtype}')
    return multiarray._reconstruct(np.ndarray, (0, ), b'b')


def _history_buffer_method(owner: type, name: str) -> FunctionType:
    """The stand-in for getattr while a checkpoint is read.

    Raises:
        AttributeError: Anything but a public method of HistoryBuffer is asked
            for.
    """
    method = HistoryBuffer.__dict__.get(name)
    if owner is not HistoryBuffer or name.startswith('_') \
            or not isinstance(method, FunctionType):
        raise AttributeError('a checkpoint may only refer to methods of '
                             f'HistoryBuffer, got {name!r} of {owner!r}')
    return method
