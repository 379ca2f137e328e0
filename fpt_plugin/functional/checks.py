"""Checks and decisions that the attention functions share."""

from __future__ import annotations

import os

import torch
from torch import Tensor

SIMILARITIES = ('dot', 'neg_euclid')
PATHS = ('chunked', 'fused', 'eager')


def check_floating(tensors: dict[str, Tensor]) -> None:
    """Require floating point tensors.

    Raises:
        TypeError: One is something else.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            given = (
                tensor.dtype if isinstance(tensor, Tensor) else
                type(tensor).__name__)
            raise TypeError(
                f'{name} must be a floating point tensor, got {given}')


def check_similarity(similarity: str) -> None:
    """Require a known similarity.

    Raises:
        ValueError: It is unknown.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(
            f'similarity must be one of {SIMILARITIES}, got {similarity!r}')


def check_ranks(tensors: dict[str, Tensor], ranks: tuple[int, ...]) -> str:
    """Require a number of dimensions of each tensor.

    Returns:
        The names and shapes, for further messages.

    Raises:
        ValueError: A tensor has another number of dimensions.
    """
    shapes = ', '.join(f'{n} {tuple(t.shape)}' for n, t in tensors.items())
    for (name, tensor), rank in zip(tensors.items(), ranks):
        if tensor.dim() != rank:
            raise ValueError(f'{name} must have {rank} dimensions, got {shapes}')
    return shapes


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Float64 stays float64; everything else is computed in float32."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def is_captured() -> bool:
    """Whether a graph is being traced or exported, on any torch."""
    # Older than torch 2.7 there is no way to ask for an export.
    exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
    return torch.jit.is_tracing() or exporting()


def choose_path(path: str | None, available: tuple[str, ...] = PATHS) -> str:
    """The one place that decides how a call is computed.

    An argument wins over the environment variable ``FPT_ATTENTION``, and that
    over the choice made here: ``'eager'`` where a graph is traced or exported,
    because exporters and operator counters need plain operators and not a loop
    whose length would be frozen at the traced size; ``'chunked'`` everywhere
    else. ``'fused'``, one call of torch's fused attention a mixture part, was
    slower than ``'chunked'`` wherever the two were measured
    (benchmarks/README.md) and is only taken when it is asked for.

    Args:
        path: What the caller asks for, or None.
        available: The paths that the function has.

    Raises:
        ValueError: What is asked for is unknown.
    """
    origin = 'path'
    if path is None:
        path, origin = os.environ.get('FPT_ATTENTION'), 'FPT_ATTENTION'
        # The variable speaks of all functions: one without that path chooses.
        if path in PATHS and path not in available:
            path = None
    if not path:
        return 'eager' if is_captured() else 'chunked'
    if path not in available:
        raise ValueError(f'{origin} must be one of {available}, got {path!r}')
    return path
