"""Which path a function takes: the choices of each device, in one place.

The tables hold measurements (benchmarks/README.md). Whatever they do not cover
is computed in chunks, which work on every device and in every dtype.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .budget import score_budget
from .checks import is_autocast, is_captured, is_compiled, is_transformed

MIXTURE_PATHS = ('chunked', 'fused', 'eager')
LOCAL_PATHS = ('chunked', 'eager')

# Where torch's fused attention is the fastest path of mixture_attention:
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

# Where all scores at once are faster than chunks of them: (device type,
# similarity) -> most scores of all images and parts, forward alone and where a
# backward pass follows, which does not recompute them then.
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
EAGER = {
    ('cpu', 'dot'): (1 << 19, 5 << 19),
    ('cpu', 'neg_euclid'): (1 << 18, 1 << 20),
}
# The scores, their softmax and its product with the shares are held at once.
EAGER_COPIES = 3


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
        The path, or None: the function chooses. While torch.func or
        forward-mode differentiation is at work, ``'eager'`` whatever is asked
        for: only plain operators can be transformed.

    Raises:
        ValueError: What is asked for is unknown.
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
    """The path of a call of :func:`~.attention.mixture_attention`.

    An argument wins over the environment variable ``FPT_ATTENTION``, and that
    over the choice made here: ``'eager'`` where a graph is traced or exported,
    because exporters and operator counters need plain operators and not a loop
    whose length would be frozen at the traced size, and where the tables say so;
    ``'fused'`` where they do; ``'chunked'`` everywhere else.

    Raises:
        ValueError: What is asked for is unknown.
    """
    path = requested(path, 'FPT_ATTENTION', MIXTURE_PATHS)
    if path:
        return path
    if is_captured() or _eager_is_fastest(query, value, similarity):
        return 'eager'
    fused = _fused_is_fastest(query, value, similarity)
    return 'fused' if fused else 'chunked'


def _eager_is_fastest(query: Tensor, value: Tensor, similarity: str) -> bool:
    limits = EAGER.get((value.device.type, similarity))
    # A compiled graph serves many sizes.
    if limits is None or is_compiled():
        return False
    batch, parts, queries, _ = query.shape
    scores = batch * parts * queries * value.shape[1]
    learns = torch.is_grad_enabled() and (
        query.requires_grad or value.requires_grad)
    # A backward pass inside of autocast would round its products.
    if learns and is_autocast(value.device.type):
        return False
    return scores <= min(limits[learns],
                         score_budget(value.device) // EAGER_COPIES)


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
