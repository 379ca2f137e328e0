"""Choose the path of a function by device, dtype and size.

The tables come from measurements (benchmarks/README.md). Cases that they do not cover
are computed in chunks, which work on every device and in every dtype.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .budget import score_budget
from .checks import is_autocast, is_captured, is_compiled, is_transformed

MIXTURE_PATHS = ('chunked', 'fused', 'eager')
LOCAL_PATHS = ('chunked', 'eager')

# Cases in which torch's fused attention is the fastest path of mixture_attention:
# (device type, dtype of the values) -> most channels of queries and values.
#
# cpu: nowhere.
# cuda, on an H200 with torch 2.11 (benchmarks/gpu-nvidia-h200.md), milliseconds
# forward / forward and backward:
#                                                         fused      chunked
#   bfloat16, ST: 2 x 67,200 queries, 1,050 keys, E 128   1.5 / 2.6  4.9 / 22
#   bfloat16, GT: the same                                2.1 / 4.4  9.3 / 41
#   bfloat16, ST: 16,800 queries and keys, E 256          1.7 / 5.6  11 / 38
#   float32,  ST: 2 x 67,200 queries, 1,050 keys, E 128   4.0 / 14   4.7 / 21
#   float32,  GT: the same                                7.2 / 27   9.2 / 40
#   float32,  ST: 16,800 queries and keys, E 256          12 / 40    11 / 38
# float16 has the kernels of bfloat16; its times were not measured. Other
# accelerators were not measured.
FUSED_MAX_CHANNELS = {
    ('cuda', torch.bfloat16): 256,
    ('cuda', torch.float16): 256,
    ('cuda', torch.float32): 128,
}
# With fewer queries or keys the chunked path is as fast, and cuDNN has no backward
# pass for a single one.
FUSED_MIN_TOKENS = 64
# Older GPUs have fewer fused kernels in torch.
FUSED_MIN_CAPABILITY = 8

# Cases in which all scores at once are faster than chunks: (device type, similarity)
# -> most scores of all images and parts, for a forward pass only and for a forward and
# backward pass. The eager backward pass does not compute scores again.
#
# cpu: Intel Xeon (AMX), one thread, torch 2.13, processor time of chunked over
# eager, 1 and 2 images, E = 32 to 128:
#                 dot: forward  with backward   neg_euclid: forward  with backward
#   0.02 to 0.16 M  1.5 to 4.7      2.0 to 4.9           2.1 to 6.4     2.5 to 5.3
#   0.3 to 0.5 M    1.0 to 1.7      1.4 to 2.5           0.8 to 1.2     1.1 to 1.6
#   1.0 to 1.3 M    1.0 to 1.1      1.3 to 1.5           0.7 to 0.9     0.9 to 1.1
#   2.0 to 2.6 M    0.5 to 1.1      1.0 to 1.6           0.6 to 0.7     0.5 to 0.9
#   4 M and more    0.3 to 0.8      0.4 to 1.0           0.2 to 0.6     0.3 to 0.8
# An AMD EPYC, where MKL is slower: 0.7 and 1.6 for dot and 2.2 M, E = 256.
EAGER_MAX_SCORES = {
    ('cpu', 'dot'): (1 << 19, 5 << 19),
    ('cpu', 'neg_euclid'): (1 << 18, 1 << 20),
}
# Scores, their softmax and its product with the mixture weights exist at once.
EAGER_COPIES = 3


def requested_path(path: str | None,
                   variable: str,
                   available: tuple[str, ...],
                   others: tuple[str, ...] = ()) -> str | None:
    """Return the path set by the caller or else by an environment variable.

    Args:
        path: The caller's argument, or None.
        variable: Name of the environment variable.
        available: The paths of the function.
        others: Paths of other functions, which the variable may name as well.

    Returns:
        The path, or None if the function may choose. Always ``'eager'`` under
        torch.func and forward-mode differentiation, which can only transform plain
        operators.

    Raises:
        ValueError: The path is unknown.
    """
    origin = 'path'
    if path is None:
        path, origin = os.environ.get(variable), variable
        if path in others and path not in available:
            path = None
    if path and path not in available:
        raise ValueError(f'{origin} must be one of {available}, got {path!r}')
    return 'eager' if is_transformed() else path or None


def choose_mixture_path(path: str | None, query: Tensor, value: Tensor,
                        similarity: str) -> str:
    """Choose the path of a call of :func:`~.attention.mixture_attention`.

    The argument ``path`` has priority over the environment variable
    ``FPT_ATTENTION``. Without both:

    - ``'eager'`` while a graph is traced or exported: the number of chunks would be
      fixed at the traced size, and operator counters need plain operators;
    - ``'eager'`` or ``'fused'`` in the cases of the tables above;
    - ``'chunked'`` in all other cases.

    Raises:
        ValueError: The path is unknown.
    """
    path = requested_path(path, 'FPT_ATTENTION', MIXTURE_PATHS)
    if path:
        return path
    if is_captured() or _eager_is_fastest(query, value, similarity):
        return 'eager'
    fused = _fused_is_fastest(query, value, similarity)
    return 'fused' if fused else 'chunked'


def _eager_is_fastest(query: Tensor, value: Tensor, similarity: str) -> bool:
    limits = EAGER_MAX_SCORES.get((value.device.type, similarity))
    # A compiled graph serves many sizes.
    if limits is None or is_compiled():
        return False
    batch, parts, queries, _ = query.shape
    scores = batch * parts * queries * value.shape[1]
    needs_grad = torch.is_grad_enabled() and (
        query.requires_grad or value.requires_grad)
    # A backward pass inside autocast would round its products.
    if needs_grad and is_autocast(value.device.type):
        return False
    return scores <= min(limits[needs_grad],
                         score_budget(value.device) // EAGER_COPIES)


def _fused_is_fastest(query: Tensor, value: Tensor, similarity: str) -> bool:
    max_channels = FUSED_MAX_CHANNELS.get((value.device.type, value.dtype), 0)
    distance = similarity == 'neg_euclid'
    # A distance needs two more columns, see attention._fused_operands.
    if max(query.shape[3] + 2 * distance, value.shape[2]) > max_channels:
        return False
    # Squared norms overflow in float16.
    if distance and value.dtype == torch.float16:
        return False
    if min(query.shape[2], value.shape[1]) < FUSED_MIN_TOKENS or len(query) == 0:
        return False
    properties = torch.cuda.get_device_properties(value.device)
    return properties.major >= FUSED_MIN_CAPABILITY


def choose_local_path(path: str | None) -> str:
    """Choose the path of :func:`~.local_attention.local_mixture_attention`.

    As :func:`choose_mixture_path`, without tables: on an H200 unfolded windows were
    slower than chunks, except for single images, where they need eight times the
    memory.

    Raises:
        ValueError: The path is unknown.
    """
    path = requested_path(path, 'FPT_ATTENTION', LOCAL_PATHS, others=MIXTURE_PATHS)
    return path or ('eager' if is_captured() else 'chunked')
