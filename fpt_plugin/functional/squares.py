"""Maps cut into squares of pixels, and joined again."""

from __future__ import annotations

from torch import Tensor


def split_squares(maps: Tensor, side: int) -> Tensor:
    """Cut maps into squares, as a view.

    Args:
        maps: (B, C, side * H, side * W).
        side: Side of a square in pixels.

    Returns:
        (B, H, W, C, side, side).
    """
    x = maps.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    # (B, C, H, side, W, side)
    return x.permute(0, 2, 4, 1, 3, 5)


def join_squares(squares: Tensor) -> Tensor:
    """Join squares to maps, the inverse of :func:`split_squares`.

    Args:
        squares: (B, H, W, C, side, side).

    Returns:
        (B, C, side * H, side * W).
    """
    # (B, C, H, side, W, side)
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
