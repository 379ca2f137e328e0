"""Sliding windows as banded matrices, without unfolding a map.

Where every query of a map attends to a square window of another map, the
scores of a strip of columns are one band of a matrix product. Cut the key map
into strips of T columns, each with the p columns of padding on either side
that its windows reach: C = T + 2p. In a strip laid out (rows, C, channels) the
w rows of a window are one contiguous block of w * C pixels, so that *all*
blocks of the strip are an overlapping view, without a copy. One batched
product with it gives, for each query, the scores of w * C pixels, of which its
own w * w window is a band: another view. Products run at the speed of a matrix
product, and w * C / w^2 = (T + 2p) / w times more of them than needed are
little against w^2 copies of the map.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Columns of a strip: wider ones waste more products, narrower ones have
# products too small to run at full speed.
STRIP = 12


def tiles(height: int, width: int, window: int, queries: int,
          budget: int) -> Iterator[tuple[int, int, int, int]]:
    """(first row, rows, first column, columns) of the tiles of a key map.

    A tile is a strip of STRIP columns, cut where its scores, all w * C of each
    query, would exceed the budget.
    """
    length = min(STRIP, width)
    per_row = length * queries * window * (length + window - 1)
    rows = max(1, min(height, budget // per_row))
    for column in range(0, width, length):
        for row in range(0, height, rows):
            yield (row, min(rows, height - row), column,
                   min(length, width - column))


def window_blocks(tile: Tensor, rows: int, window: int) -> Tensor:
    """What the windows of each row of a tile cover, as a view.

    Args:
        tile: (rows + w - 1, C, D), contiguous.
        rows: Rows of queries.
        window: Side w of a window.

    Returns:
        (rows, w * C, D); row r holds the tile's rows r to r + w - 1.
    """
    _, columns, depth = tile.shape
    return tile.as_strided((rows, window * columns, depth),
                           (columns * depth, depth, 1))


def add_blocks(tile: Tensor, blocks: Tensor, window: int) -> None:
    """Add blocks to the rows that they were seen in: the view's transpose.

    Args:
        tile: (rows + w - 1, C, D), changed in place.
        blocks: (rows, w * C, D).
        window: Side w of a window.
    """
    rows = blocks.shape[0]
    blocks = blocks.view(rows, window, *tile.shape[1:])
    for offset in range(window):
        tile[offset:offset + rows] += blocks[:, offset]


def window_views(tile: Tensor, rows: int, window: int) -> Tensor:
    """The window of each cell of a tile of scalars, as a view.

    Args:
        tile: (rows + w - 1, C).
        rows: Rows of queries.
        window: Side w of a window.

    Returns:
        (rows, T, 1, w, w) with T = C - w + 1.
    """
    down, right = tile.stride()
    return tile.as_strided(
        (rows, tile.shape[1] - window + 1, 1, window, window),
        (down, right, 0, down, right))


def band(scores: Tensor, queries: int, window: int) -> Tensor:
    """The windows' own entries of a product with :func:`window_blocks`.

    Args:
        scores: (rows, T * queries, w * C), contiguous.
        queries: Queries that share a window.
        window: Side w of a window.

    Returns:
        A view (rows, T, queries, w, w).
    """
    rows, total, width = scores.shape
    # The next query group looks one column further.
    return scores.as_strided(
        (rows, total // queries, queries, window, window),
        (total * width, queries * width + 1, width, width // window, 1))


class Band:
    """The inverse of :func:`band`: matrices that are zero outside of it.

    Only the band is ever written, so one zeroed matrix a shape is enough.
    """

    def __init__(self) -> None:
        self._matrices: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, entries: Tensor, columns: int) -> Tensor:
        """Lay entries out; valid until the next call of the same shape.

        Args:
            entries: (rows, T, queries, w, w).
            columns: Columns C of the tile.

        Returns:
            (rows, T * queries, w * C).
        """
        rows, length, queries, window, _ = entries.shape
        shape = (rows, length * queries, window * columns)
        if shape not in self._matrices:
            self._matrices[shape] = entries.new_zeros(shape)
        matrix = self._matrices[shape]
        band(matrix, queries, window).copy_(entries)
        return matrix


def centres(fine: int, coarse: int) -> list[int]:
    """The coarse cell that holds the centre of each of the fine cells."""
    return [(2 * i + 1) * coarse // (2 * fine) for i in range(fine)]


class Grouping:
    """Fine cells sorted by the coarse cell that holds their centre.

    Groups are filled up to one size Q with cells of zeros.

    Args:
        fine: (H, W).
        coarse: (h, w).
        device: Of the maps.
    """

    def __init__(self, fine: tuple[int, int], coarse: tuple[int, int],
                 device: torch.device) -> None:
        self.fine, self.coarse = tuple(fine), tuple(coarse)
        self.rows, self.row_size = self._axis(fine[0], coarse[0], device)
        self.columns, self.column_size = self._axis(fine[1], coarse[1], device)
        self.size = self.row_size * self.column_size

    @staticmethod
    def _axis(fine: int, coarse: int,
              device: torch.device) -> tuple[Tensor, int]:
        """The place of each fine cell in the sorted list; a group's size."""
        owners = centres(fine, coarse)
        size = max(owners.count(owner) for owner in set(owners))
        places = [
            owner * size + i - owners.index(owner)
            for i, owner in enumerate(owners)
        ]
        return torch.tensor(places, device=device), size

    def gather(self, x: Tensor) -> Tensor:
        """(..., D, H, W) to (..., h, w * Q, D)."""
        x = x.movedim(-3, -1)
        if self.fine == self.coarse:
            return x.contiguous()
        (height, width), depth = self.coarse, x.shape[-1]
        lead = x.shape[:-3]
        x = x.new_zeros(*lead, height * self.row_size, x.shape[-2],
                        depth).index_copy_(-3, self.rows, x)
        x = x.new_zeros(*lead, height * self.row_size,
                        width * self.column_size,
                        depth).index_copy_(-2, self.columns, x)
        x = x.view(*lead, height, self.row_size, width, self.column_size, depth)
        return x.transpose(-4, -3).reshape(*lead, height, width * self.size,
                                           depth)

    def scatter(self, x: Tensor) -> Tensor:
        """(..., h, w * Q, D) to (..., D, H, W)."""
        if self.fine != self.coarse:
            lead, depth = x.shape[:-3], x.shape[-1]
            height, width = self.coarse
            x = x.view(*lead, height, width, self.row_size, self.column_size,
                       depth)
            x = x.transpose(-4, -3).reshape(*lead, height * self.row_size,
                                            width * self.column_size, depth)
            x = x.index_select(-3, self.rows).index_select(-2, self.columns)
        return x.movedim(-1, -3).contiguous()
