"""Maps as squares of pixels, and back."""

from __future__ import annotations

from torch import Tensor


def split_squares(maps: Tensor, side: int) -> Tensor:
    """Cut maps: (B, C, side * H, side * W) to (B, H, W, C, side, side), a view."""
    x = maps.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    # (B, C, H, side, W, side)
    return x.permute(0, 2, 4, 1, 3, 5)


def join_squares(squares: Tensor) -> Tensor:
    """Put squares together, the reverse of :func:`split_squares`."""
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
