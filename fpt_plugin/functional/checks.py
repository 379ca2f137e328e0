"""Checks of arguments and of torch's modes, for all functions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

SIMILARITIES = ('dot', 'neg_euclid')


def check_floating(tensors: dict[str, Tensor]) -> None:
    """Require floating point tensors.

    Raises:
        TypeError: An argument is something else.
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
        ValueError: ``similarity`` is unknown.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(
            f'similarity must be one of {SIMILARITIES}, got {similarity!r}')


def check_ranks(tensors: dict[str, Tensor], ranks: tuple[int, ...]) -> None:
    """Require a number of dimensions for each tensor.

    Raises:
        ValueError: A tensor has another number of dimensions.
    """
    for (name, tensor), rank in zip(tensors.items(), ranks):
        if tensor.dim() != rank:
            raise ValueError(f'{name} must have {rank} dimensions, got '
                             f'{shapes_of(tensors)}')


def shapes_of(tensors: dict[str, Tensor]) -> str:
    """List names and shapes for the message of a failed check.

    Only call it when a check fails: in a compiled graph it makes sizes constant.
    """
    return ', '.join(f'{n} {tuple(t.shape)}' for n, t in tensors.items())


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any tensor is float64, else float32."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Switch autocast off, where the device has it."""
    if device.type == 'meta':
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_autocast(device_type: str) -> bool:
    """Tell whether autocast is on for a type of device, in any version of torch."""
    try:
        return torch.is_autocast_enabled(device_type)
    except RuntimeError:  # a device without autocast, such as meta
        return False
    except TypeError:  # torch < 2.4 has one function for each device
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


def is_transformed() -> bool:
    """Tell whether a torch.func transform or forward-mode differentiation runs."""
    # The names are not documented, so their absence is allowed for.
    active = getattr(torch._C, '_are_functorch_transforms_active', None)
    return (active is not None and active()) or getattr(
        forward_ad, '_current_level', -1) >= 0


def is_captured() -> bool:
    """Tell whether a graph is being traced or exported, in any version of torch."""
    # torch < 2.7 does not tell whether it exports.
    exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
    return torch.jit.is_tracing() or exporting()


def is_compiled() -> bool:
    """Tell whether torch.compile is tracing, in any version of torch."""
    # In torch < 2.3 only torch._dynamo has the function.
    compiling = getattr(torch.compiler, 'is_compiling', None)
    return compiling() if compiling else torch._dynamo.is_compiling()
