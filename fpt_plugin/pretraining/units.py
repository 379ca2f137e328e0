"""Convert images to units (squares of pixels) and back."""

from __future__ import annotations

from torch import Tensor

from ..functional.squares import join_squares, split_squares


def split_units(images: Tensor, side: int) -> Tensor:
    """Split maps (B, C, H, W) into squares (B, N, C, side, side), row by row."""
    return split_squares(images, side).flatten(1, 2)


def join_units(units: Tensor, columns: int) -> Tensor:
    """Join squares (B, N, C, side, side) into maps (B, C, H, W)."""
    return join_squares(units.unflatten(1, (-1, columns)))


def pick_units(units: Tensor, chosen: Tensor) -> Tensor:
    """Select units (B, K, ...) of (B, N, ...) by indices (1 or B, K)."""
    if len(chosen) == 1:
        return units.index_select(1, chosen[0])
    index = chosen.view(*chosen.shape, *[1] * (units.dim() - 2))
    return units.take_along_dim(index, 1)
