"""Checks of arguments and inputs, for all layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ..functional.checks import is_autocast


def check_map(name: str,
              x: Tensor,
              channels: int | None = None,
              weight: Tensor | None = None) -> None:
    """Require a floating point map (B, C, H, W) that is not empty.

    Args:
        name: The argument, for messages.
        x: The map.
        channels: Required number of channels.
        weight: A parameter whose dtype is required, unless autocast is on.

    Raises:
        TypeError: ``x`` is not a floating point tensor, or its dtype is not that of
            the parameters.
        ValueError: ``x`` is not (B, C, H, W), has no pixel, or has a number of
            channels other than ``channels``.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f'{name} must be a tensor (B, C, H, W), got {type(x).__name__}')
    if not x.is_floating_point():
        raise TypeError(f'{name} must be a floating point tensor, got {x.dtype}')
    if weight is not None and x.dtype != weight.dtype \
            and not is_autocast(x.device.type):
        raise TypeError(f'{name} must have the dtype of the parameters, '
                        f'{weight.dtype}, got {x.dtype}')
    if x.dim() != 4 or 0 in x.shape[2:]:
        raise ValueError(f'{name} must be (B, C, H, W) with H and W of at least '
                         f'1, got {tuple(x.shape)}')
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f'{name} must have in_channels={channels} channels, got '
                         f'{x.shape[1]} in {tuple(x.shape)}')


def check_same_batch(fine: Tensor, coarse: Tensor) -> None:
    """Require the same batch size in two maps.

    Raises:
        ValueError: The batch sizes differ.
    """
    if fine.shape[0] != coarse.shape[0]:
        raise ValueError('fine and coarse must have one batch size, got '
                         f'{tuple(fine.shape)} and {tuple(coarse.shape)}')


LARGEST = 2**31 - 1  # of torch's channel counts, sides and strides
# No map can be halved more often. Millions of levels would take for ever to build.
MOST_LEVELS = 64


def check_levels(name: str, number: int) -> int:
    """Require a number of pyramid levels.

    Raises:
        TypeError: ``number`` is not an int.
        ValueError: ``number`` is less than 1 or more than 64.
    """
    if check_positive_int(name, number) > MOST_LEVELS:
        raise ValueError(f'{name} must be at most {MOST_LEVELS}, got {number}')
    return number


def check_positive_int(name: str, number: int) -> int:
    """Require an integer of at least 1.

    Raises:
        TypeError: ``number`` is not an int.
        ValueError: ``number`` is less than 1 or too large for torch.
    """
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f'{name} must be an int, got {number!r}')
    if number < 1:
        raise ValueError(f'{name} must be at least 1, got {number}')
    if number > LARGEST:
        raise ValueError(f'{name} must be at most {LARGEST}, got {number}')
    return number


def check_sides(name: str, sides: int | Sequence[int]) -> tuple[int, int]:
    """Require height and width, or one number for both.

    Raises:
        TypeError: A side is not an int.
        ValueError: There are not two sides, or one is out of range.
    """
    both = list(sides) if isinstance(sides, (list, tuple)) else [sides] * 2
    if len(both) != 2:
        raise ValueError(f'{name} must be height and width, got {sides}')
    height, width = (check_positive_int(name, side) for side in both)
    return height, width


def check_flags(**flags: bool) -> None:
    """Require True or False. The string 'False' would count as True.

    Raises:
        TypeError: A flag is something else.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f'{name} must be True or False, got {flag!r}')


def check_scale(scale: float | None) -> float | None:
    """Require a positive finite number or None.

    Raises:
        TypeError: ``scale`` is not a number.
        ValueError: ``scale`` is not positive and finite.
    """
    if scale is None:
        return None
    if not isinstance(scale, (int, float)) or isinstance(scale, bool):
        raise TypeError(f'scale must be a number or None, got {scale!r}')
    if not 0 < scale < float('inf'):
        raise ValueError(f'scale must be positive and finite, got {scale}')
    return float(scale)


@contextmanager
def refusing(name: str, given: object) -> Iterator[None]:
    """Convert errors of a library's builder to a ValueError that names the argument.

    For a wrong config mmengine, mmcv and torch raise AssertionError, KeyError,
    RuntimeError and others.

    Args:
        name: The argument, or several.
        given: The given value.

    Raises:
        ValueError: The body raised an error other than ImportError, MemoryError,
            OSError, TypeError or ValueError, which are passed on.
    """
    try:
        yield
    except (ImportError, MemoryError, OSError, TypeError, ValueError):
        raise
    except Exception as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(
            f'{name} cannot be built, got {given!r}: {reason}') from error
