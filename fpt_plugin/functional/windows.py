"""Sliding windows as banded matrices, without unfolding a map.

Each query attends to a window of w x w keys of another map. The keys are cut into
strips of T columns, whose windows reach S = T + w - 1 columns. In a strip laid out as
(rows, S, channels), the w rows that the windows of one row of pixels cover are w * S
consecutive pixels: a *block*. The blocks of all rows are an overlapping view of the
strip, without a copy. One batched product of queries and blocks gives each query the
scores of w * S pixels. The w * w scores of its own window are a band of this matrix.

Example with w = 3 and T = 2, so S = 4::

    block of one row     window of pixel 0   window of pixel 1
    a b c d              a b c .             . b c d
    e f g h              e f g .             . f g h
    i j k l              i j k .             . j k l

    scores of pixel 0    a b c . e f g . i j k .      one row of the matrix,
    scores of pixel 1    . b c d . f g h . j k l      w * S = 12 entries

The window of the next pixel is shifted by one column, so the band is a strided view
of the matrix as well (:func:`band_view`). S / w times the needed scores are computed,
but at the speed of large matrix products, and no map is copied w * w times.

The strips of a tile are stacked like one tall strip, so that one product serves them
all. The w - 1 rows whose windows would reach from one strip into the next belong to no
query; their results are computed and ignored.

Shapes: keys (h, w), Q queries share a window, D channels, R rows of a tile's products.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from .tiles import Tile, overlap_add, tile_shape, tiles

# Most columns T of a strip. Wider strips compute more scores that are not needed,
# narrower ones have products that are too small to run at full speed.
STRIP = 12


class Strips:
    """How maps of keys, and the queries of their pixels, are cut into strips.

    Args:
        size: (h, w) of the keys.
        window: Side of a window.
        queries: Queries Q that share a window.

    Attributes:
        margin: w - 1, the rows and columns that windows reach beyond their pixels.
        columns: Columns T of a strip.
        reached: Columns S that the windows of a strip reach.
        width: Columns of all strips, w or a few more.
    """

    def __init__(self, size: tuple[int, int], window: int,
                 queries: int) -> None:
        self.height, width = size
        self.window, self.margin, self.queries = window, window - 1, queries
        self.count = ceil(width / STRIP)
        self.columns = ceil(width / self.count)
        self.reached = self.columns + self.margin
        self.width = self.count * self.columns

    def tiles(self, batch: int, device: torch.device) -> Iterator[Tile]:
        """Iterate over tiles whose scores, w * S of each query, fit the budget."""
        shape = batch, self.count, self.height
        per_row = self.columns * self.queries * self.window * self.reached
        return tiles(shape, tile_shape(shape, per_row, device))

    def rows(self, tile: Tile) -> int:
        """Return the rows R of a tile's products, with w - 1 between two strips."""
        images, strips, rows = tile.shape
        return images * strips * (rows + self.margin) - self.margin

    def _view_keys(self, x: Tensor, tile: Tile) -> Tensor:
        """View the rows and columns that a tile's windows reach.

        Args:
            x: (B, h + w - 1, width + w - 1, D).
            tile: Images, strips and rows.

        Returns:
            (images, rows + w - 1, columns, D).
        """
        return x[tile.images, tile.rows.start:tile.rows.stop + self.margin,
                 tile.strips.start * self.columns:
                 tile.strips.stop * self.columns + self.margin]

    def take_keys(self, x: Tensor, tile: Tile) -> Tensor:
        """Stack the strips of a tile.

        Args:
            x: (B, h + w - 1, width + w - 1, D).
            tile: Images, strips and rows.

        Returns:
            (R + w - 1, S, D), contiguous.
        """
        x = self._view_keys(x, tile)
        if tile.one_strip:
            return x[0].contiguous()
        x = x.unfold(2, self.reached, self.columns)
        # (images, rows, strips, D, S) to (images, strips, rows, S, D)
        return x.permute(0, 2, 1, 4, 3).contiguous().flatten(0, 2)

    def add_to_keys(self, x: Tensor, tile: Tile, blocks: Tensor) -> None:
        """Add blocks to the keys that they consist of: the transpose of taking them.

        Args:
            x: (B, h + w - 1, width + w - 1, D), changed in place.
            tile: Images, strips and rows.
            blocks: (R, w * S, D).
        """
        x = self._view_keys(x, tile)
        if tile.one_strip:
            return add_blocks(x[0], blocks, self.window)
        images, strips, rows = tile.shape
        total = blocks.new_zeros(
            len(blocks) + self.margin, self.reached, blocks.shape[-1])
        add_blocks(total, blocks, self.window)
        # (R + w - 1, S, D) to (images, strips, rows + w - 1, S, D)
        total = total.view(images, strips, rows + self.margin, *total.shape[1:])
        # (images, rows + w - 1, columns, D)
        total = overlap_add(total.transpose(1, 2), 2, self.columns)
        x += total[:, :, :x.shape[2]]

    def _view_queries(self, x: Tensor, tile: Tile) -> Tensor:
        """View a tile of (B, h, width * Q, D): (images, strips, rows, T * Q, D)."""
        batch, height, _, depth = x.shape
        x = x.view(batch, height, self.count, -1, depth)
        return x[tile.images, tile.rows, tile.strips].transpose(1, 2)

    def take_queries(self, x: Tensor, tile: Tile) -> Tensor:
        """Stack the queries of a tile: (B, h, width * Q, D) to (R, T * Q, D).

        The ignored rows between two strips are zeros.
        """
        x = self._view_queries(x, tile)
        if tile.one_strip:
            return x[0, 0]
        # (images, strips, rows + w - 1, T * Q, D)
        x = F.pad(x, (0, 0, 0, 0, 0, self.margin))
        return x.flatten(0, 2)[:self.rows(tile)]

    def put_queries(self, x: Tensor, tile: Tile, numbers: Tensor) -> None:
        """Write (R, T * Q, D) to the queries that :meth:`take_queries` reads."""
        x = self._view_queries(x, tile)
        x.copy_(self._unstack(numbers, tile)[:, :, :tile.shape[2]])

    def expand_to_rows(self, x: Tensor, tile: Tile) -> Tensor:
        """Repeat a number of each image for its rows: (B,) to (R or 1, 1, 1, 1)."""
        x = x[tile.images]
        if not tile.one_strip:
            _, strips, rows = tile.shape
            x = x.repeat_interleave(strips * (rows + self.margin))
        return x[:self.rows(tile), None, None, None]

    def sum_by_image(self, numbers: Tensor, tile: Tile) -> Tensor:
        """Sum a number of each row for each image of a tile: (R,) to (images,)."""
        return self._unstack(numbers, tile).sum(dim=(1, 2))

    def _unstack(self, numbers: Tensor, tile: Tile) -> Tensor:
        """Split (R, ...) into strips: (images, strips, rows + w - 1 or rows, ...)."""
        if tile.one_strip:
            return numbers[None, None]
        images, strips, rows = tile.shape
        fill = numbers.new_zeros(self.margin, *numbers.shape[1:])
        return torch.cat([numbers, fill]).view(
            images, strips, rows + self.margin, *numbers.shape[1:])


def window_blocks(tile: Tensor, window: int) -> Tensor:
    """View the block of pixels that the windows of each row of a tile cover.

    Args:
        tile: (rows + w - 1, S, D), contiguous.
        window: Side w of a window.

    Returns:
        (rows, w * S, D); block r contains rows r to r + w - 1 of the tile.
    """
    rows, columns, depth = tile.shape
    return tile.as_strided((rows - window + 1, window * columns, depth),
                           (columns * depth, depth, 1))


def add_blocks(tile: Tensor, blocks: Tensor, window: int) -> None:
    """Add blocks to their pixels: the transpose of :func:`window_blocks`.

    Args:
        tile: (rows + w - 1, S, D), changed in place.
        blocks: (rows, w * S, D).
        window: Side w of a window.
    """
    rows = blocks.shape[0]
    blocks = blocks.view(rows, window, *tile.shape[1:])  # (rows, w, S, D)
    for offset in range(window):
        tile[offset:offset + rows] += blocks[:, offset]


def window_views(tile: Tensor, window: int) -> Tensor:
    """View the window of each pixel of a tile with one channel.

    Args:
        tile: (rows + w - 1, S).
        window: Side w of a window.

    Returns:
        (rows, T, 1, w, w) with T = S - w + 1.
    """
    down, right = tile.stride()
    rows, columns = (side - window + 1 for side in tile.shape)
    return tile.as_strided((rows, columns, 1, window, window),
                           (down, right, 0, down, right))


def band_view(scores: Tensor, queries: int, window: int) -> Tensor:
    """View the band of a matrix: the entries inside the queries' windows.

    Args:
        scores: (rows, T * Q, w * S), contiguous.
        queries: Queries Q that share a window.
        window: Side w of a window.

    Returns:
        (rows, T, Q, w, w).
    """
    rows, matrix_rows, width = scores.shape
    # The window of the next Q queries starts one column further.
    return scores.as_strided(
        (rows, matrix_rows // queries, queries, window, window),
        (matrix_rows * width, queries * width + 1, width, width // window, 1))


class BandedMatrices:
    """Write windows into matrices that are zero outside the band.

    Only the band is ever written, so one matrix of zeros for each shape is enough.
    """

    def __init__(self) -> None:
        self._matrices: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, entries: Tensor, columns: int) -> Tensor:
        """Write entries; the result is valid until the next call of the same shape.

        Args:
            entries: (rows, T, Q, w, w).
            columns: Columns S that the windows of the strip reach.

        Returns:
            (rows, T * Q, w * S).
        """
        rows, length, queries, window, _ = entries.shape
        shape = (rows, length * queries, window * columns)
        if shape not in self._matrices:
            self._matrices[shape] = entries.new_zeros(shape)
        matrix = self._matrices[shape]
        band_view(matrix, queries, window).copy_(entries)
        return matrix


def centres(fine: int, coarse: int) -> list[int]:
    """Return for each fine pixel the coarse pixel that contains its centre."""
    return [(2 * i + 1) * coarse // (2 * fine) for i in range(fine)]


class QueryGroups:
    """Fine pixels grouped by the coarse pixel that contains their centre.

    All groups are padded with zeros to the same number Q of pixels.

    Args:
        fine: (H, W).
        coarse: (h, w).

    Attributes:
        row_size: Rows of fine pixels in a group.
        column_size: Columns of fine pixels in a group.
        size: Q = row_size * column_size.
    """

    def __init__(self, fine: tuple[int, int], coarse: tuple[int, int]) -> None:
        self.fine, self.coarse = tuple(fine), tuple(coarse)
        self.row_size, self.column_size = (
            ceil(f / c) for f, c in zip(fine, coarse))
        self.size = self.row_size * self.column_size

    def _positions(self, axis: int, device: torch.device) -> Tensor:
        """Compute the position of each fine row or column in the padded groups."""
        fine, coarse = self.fine[axis], self.coarse[axis]
        pixels = torch.arange(fine, device=device)
        owners = (2 * pixels + 1) * coarse // (2 * fine)  # as centres()
        # The first fine pixel whose centre lies in the owner.
        first = (2 * fine * owners + coarse - 1) // (2 * coarse)
        return owners * ceil(fine / coarse) + pixels - first

    def gather(self, x: Tensor) -> Tensor:
        """Sort fine pixels into groups: (..., D, H, W) to (..., h, w * Q, D)."""
        x = x.movedim(-3, -1)  # (..., H, W, D)
        if self.fine == self.coarse:
            return x.contiguous()
        (height, width), depth = self.coarse, x.shape[-1]
        lead = x.shape[:-3]
        # (..., h * row_size, W, D)
        x = x.new_zeros(*lead, height * self.row_size, x.shape[-2],
                        depth).index_copy_(-3, self._positions(0, x.device), x)
        # (..., h * row_size, w * column_size, D)
        x = x.new_zeros(*lead, height * self.row_size,
                        width * self.column_size,
                        depth).index_copy_(-2, self._positions(1, x.device), x)
        x = x.view(*lead, height, self.row_size, width, self.column_size, depth)
        # (..., h, w, row_size, column_size, D)
        return x.transpose(-4, -3).reshape(*lead, height, width * self.size,
                                           depth)

    def scatter(self, x: Tensor) -> Tensor:
        """Invert :meth:`gather`: (..., h, w * Q, D) to (..., D, H, W)."""
        if self.fine != self.coarse:
            lead, depth = x.shape[:-3], x.shape[-1]
            height, width = self.coarse
            x = x.reshape(*lead, height, width, self.row_size,
                          self.column_size, depth)
            # (..., h * row_size, w * column_size, D)
            x = x.transpose(-4, -3).reshape(*lead, height * self.row_size,
                                            width * self.column_size, depth)
            x = x.index_select(-3, self._positions(0, x.device))
            x = x.index_select(-2, self._positions(1, x.device))  # (..., H, W, D)
        return x.movedim(-1, -3).clone(memory_format=torch.contiguous_format)
