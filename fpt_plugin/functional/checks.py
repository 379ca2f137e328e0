"""Checks that the functions share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

SIMILARITIES = ('dot', 'neg_euclid')


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


def check_ranks(tensors: dict[str, Tensor], ranks: tuple[int, ...]) -> None:
    """Require a number of dimensions of each tensor.

    Raises:
        ValueError: A tensor has another number of dimensions.
    """
    for (name, tensor), rank in zip(tensors.items(), ranks):
        if tensor.dim() != rank:
            raise ValueError(f'{name} must have {rank} dimensions, got '
                             f'{shapes_of(tensors)}')


def shapes_of(tensors: dict[str, Tensor]) -> str:
    """Names and shapes, for messages; no constant of a compiled graph."""
    return ', '.join(f'{n} {tuple(t.shape)}' for n, t in tensors.items())


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Float64 stays float64; everything else is computed in float32."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Compute in the dtypes that are written; some devices have no autocast."""
    if device.type == 'meta':
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_autocast(device_type: str) -> bool:
    """Whether autocast is at work on a kind of device, on any torch."""
    try:
        return torch.is_autocast_enabled(device_type)
    except RuntimeError:  # a device without autocast, as meta
        return False
    except TypeError:  # torch < 2.4 has a function a device
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work."""
    # Not documented, so nothing depends on it.
    active = getattr(torch._C, '_are_functorch_transforms_active', None)
    return (active is not None and active()) or getattr(
        forward_ad, '_current_level', -1) >= 0


def is_captured() -> bool:
    """Whether a graph is being traced or exported, on any torch."""
    # Older than torch 2.7 there is no way to ask for an export.
    exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
    return torch.jit.is_tracing() or exporting()


def is_compiled() -> bool:
    """Whether torch.compile is at work, on any torch."""
    # Older than torch 2.3 only torch._dynamo can tell.
    compiling = getattr(torch.compiler, 'is_compiling', None)
    return compiling() if compiling else torch._dynamo.is_compiling()
