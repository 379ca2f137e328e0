"""Images as units, squares of pixels, and back."""

from __future__ import annotations

from torch import Tensor

from ..functional.squares import join_squares, split_squares


def split_units(images: Tensor, side: int) -> Tensor:
    """Cut maps into squares: (B, C, H, W) to (B, N, C, side, side), row by row."""
    return split_squares(images, side).flatten(1, 2)


def join_units(units: Tensor, columns: int) -> Tensor:
    """Put squares together: (B, N, C, side, side) to (B, C, H, W)."""
    return join_squares(units.unflatten(1, (-1, columns)))


def pick_units(units: Tensor, chosen: Tensor) -> Tensor:
    """Take units by number: (B, N, ...) and (1 or B, K) to (B, K, ...)."""
    if len(chosen) == 1:
        return units.index_select(1, chosen[0])
    index = chosen.view(*chosen.shape, *[1] * (units.dim() - 2))
    return units.take_along_dim(index, 1)
