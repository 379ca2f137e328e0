"""What differs between the OpenMMLab distributions and torch versions.

The only place that knows. Each mend is narrow, and does nothing where the
installed versions do not need it.
"""

from __future__ import annotations

from types import FunctionType

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def apply() -> None:
    """Apply every mend; more than once is harmless."""
    allow_safe_resume()


def allow_safe_resume() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Since torch 2.6 the safe loading is the default, and mmengine stores its
    log in the checkpoint: a HistoryBuffer of numpy arrays, whose methods
    pickle as ``getattr(HistoryBuffer, 'mean')``. Loading such a file fails
    with ``Weights only load failed ... HistoryBuffer``. The few names it holds
    are put on torch's list of safe globals; ``builtins.getattr`` itself is
    not, a function that answers HistoryBuffer's methods alone stands in.
    """
    serialization = torch.serialization
    if not hasattr(serialization, 'add_safe_globals'):  # torch < 2.4
        return
    try:
        from numpy._core import multiarray
    except ImportError:  # numpy < 1.25 or so
        from numpy.core import multiarray
    allowed = [
        HistoryBuffer, np.ndarray, np.dtype,
        (_history_buffer_method, 'builtins.getattr')
    ]
    # Numpy 2 moved its core; files from either side of the move are read.
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        allowed.append((multiarray._reconstruct, f'{module}._reconstruct'))
        allowed.append((multiarray.scalar, f'{module}.scalar'))
    for code in ('float64', 'float32', 'int64', 'int32', 'bool'):
        allowed.append(type(np.dtype(code)))
    serialization.add_safe_globals(allowed)


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
