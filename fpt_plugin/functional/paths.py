"""Which path a function takes: the choices of each device, in one place.

The tables hold measurements (benchmarks/README.md). Whatever they do not cover
is computed in chunks, which work on every device and in every dtype.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .checks import is_captured

MIXTURE_PATHS = ('chunked', 'fused', 'eager')
LOCAL_PATHS = ('chunked', 'eager')

# Where torch's fused attention is the fastest path of mixture_attention:
# (device type, dtype of the values) -> most channels of queries and values.
#
# cpu: nowhere.
# cuda, on an H200 with torch 2.11, all parts in one call, milliseconds forward /
# forward and backward:
#                                               fused       chunked
#   bfloat16, 16,800 queries and keys, E 128    0.5 / 1.9   7.6 / 30
#   bfloat16, 16,800 queries and keys, E 256    0.8 / 5.2   11 / 40
#   bfloat16, 2 x 67,200 queries, 1,050 keys    0.4 / 9.5   3.9 / 21
#   float32,  16,800 queries and keys, E 128    5.2 / 20    7.6 / 30
#   float32,  2 x 67,200 queries, 1,050 keys    3.6 / 25    3.8 / 21
# The last row is the only kind of call that lost; it was measured before
# queries were cut into pieces. float32 with more channels and float16 were not
# measured: the first stays chunked, because the same kernel was slow in
# bfloat16, the second has the kernels of bfloat16. Other accelerators were not
# measured.
FUSED = {
    ('cuda', torch.bfloat16): 256,
    ('cuda', torch.float16): 256,
    ('cuda', torch.float32): 128,
}
# Fewer queries or keys are chunked: nothing is gained there, and cuDNN has no
# backward pass for a single one.
FEWEST = 64
# Before that generation of GPUs torch has fewer fused kernels.
FUSED_CAPABILITY = 8


def requested(path: str | None,
              variable: str,
              available: tuple[str, ...],
              others: tuple[str, ...] = ()) -> str | None:
    """The path that the caller or else an environment variable asks for.

    Args:
        path: The caller's argument, or None.
        variable: Name of the environment variable.
        available: The paths that the function has.
        others: Paths that other functions have, which the variable may name.

    Returns:
        The path, or None: the function chooses.

    Raises:
        ValueError: What is asked for is unknown.
    """
    origin = 'path'
    if path is None:
        path, origin = os.environ.get(variable), variable
        if path in others and path not in available:
            return None
    if path and path not in available:
        raise ValueError(f'{origin} must be one of {available}, got {path!r}')
    return path or None


def choose_mixture_path(path: str | None, query: Tensor, value: Tensor,
                        similarity: str) -> str:
    """The path of a call of :func:`~.attention.mixture_attention`.

    An argument wins over the environment variable ``FPT_ATTENTION``, and that
    over the choice made here: ``'eager'`` where a graph is traced or exported,
    because exporters and operator counters need plain operators and not a loop
    whose length would be frozen at the traced size; ``'fused'`` where the table
    says so; ``'chunked'`` everywhere else.

    Raises:
        ValueError: What is asked for is unknown.
    """
    path = requested(path, 'FPT_ATTENTION', MIXTURE_PATHS)
    if path:
        return path
    if is_captured():
        return 'eager'
    fused = _fused_is_fastest(query, value, similarity)
    return 'fused' if fused else 'chunked'


def _fused_is_fastest(query: Tensor, value: Tensor, similarity: str) -> bool:
    most = FUSED.get((value.device.type, value.dtype), 0)
    distance = similarity == 'neg_euclid'
    # A distance takes two more columns.
    if max(query.shape[3] + 2 * distance, value.shape[2]) > most:
        return False
    # Squared norms overflow in float16.
    if distance and value.dtype == torch.float16:
        return False
    if min(query.shape[2], value.shape[1]) < FEWEST or len(query) == 0:
        return False
    properties = torch.cuda.get_device_properties(value.device)
    return properties.major >= FUSED_CAPABILITY


def choose_local_path(path: str | None) -> str:
    """The path of a call of :func:`~.local_attention.local_mixture_attention`.

    As :func:`choose_mixture_path`. Unfolded windows were slower on an H200, but
    for batches of one image, where they take eight times the memory.

    Raises:
        ValueError: What is asked for is unknown.
    """
    path = requested(path, 'FPT_ATTENTION', LOCAL_PATHS, others=MIXTURE_PATHS)
    return path or ('eager' if is_captured() else 'chunked')
