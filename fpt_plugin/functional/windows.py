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

The strips of a tile stand on top of each other like one tall strip, so that
one product serves them all. Windows that reach from one strip into the next
belong to no query: they are computed and ignored, w - 1 rows a strip.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from .tiles import Tile, overlap_add, tile_shape, tiles

# Columns of a strip: wider ones waste more products, narrower ones have
# products too small to run at full speed.
STRIP = 12


class Strips:
    """How key maps, and the queries of their cells, are cut into strips.

    Args:
        size: (h, w) of the key map.
        window: Side of a window.
        queries: Queries Q that share a window.

    Attributes:
        columns: Columns T of a strip.
        seen: Columns C that the windows of a strip reach.
        width: Columns of all strips, w or a few more.
    """

    def __init__(self, size: tuple[int, int], window: int,
                 queries: int) -> None:
        self.height, width = size
        self.window, self.reach, self.queries = window, window - 1, queries
        self.count = ceil(width / STRIP)
        self.columns = ceil(width / self.count)
        self.seen = self.columns + self.reach
        self.width = self.count * self.columns

    def tiles(self, batch: int, device: torch.device) -> Iterator[Tile]:
        """Tiles whose scores, all w * C of each query, fit the budget."""
        shape = batch, self.count, self.height
        per_row = self.columns * self.queries * self.window * self.seen
        return tiles(shape, tile_shape(shape, per_row, device))

    def rows(self, tile: Tile) -> int:
        """Rows R of the products of a tile, w - 1 between two strips ignored."""
        images, strips, rows = tile.shape
        return images * strips * (rows + self.reach) - self.reach

    def _keys(self, x: Tensor, tile: Tile) -> Tensor:
        """What a tile's windows see of (B, h + w - 1, columns, D), a view."""
        return x[tile.images, tile.rows.start:tile.rows.stop + self.reach,
                 tile.strips.start * self.columns:
                 tile.strips.stop * self.columns + self.reach]

    def keys(self, x: Tensor, tile: Tile) -> Tensor:
        """(B, h + w - 1, columns, D) to (R + w - 1, C, D), contiguous."""
        x = self._keys(x, tile)
        if tile.one_strip:
            return x[0].contiguous()
        x = x.unfold(2, self.seen, self.columns)
        # (images, rows, strips, D, C) to (images, strips, rows, C, D)
        return x.permute(0, 2, 1, 4, 3).contiguous().flatten(0, 2)

    def add_to_keys(self, x: Tensor, tile: Tile, blocks: Tensor) -> None:
        """Add (R, w * C, D) to what it was seen of: the transpose of keys."""
        x = self._keys(x, tile)
        if tile.one_strip:
            return add_blocks(x[0], blocks, self.window)
        images, strips, rows = tile.shape
        total = blocks.new_zeros(
            len(blocks) + self.reach, self.seen, blocks.shape[-1])
        add_blocks(total, blocks, self.window)
        total = total.view(images, strips, rows + self.reach, *total.shape[1:])
        total = overlap_add(total.transpose(1, 2), 2, self.columns)
        x += total[:, :, :x.shape[2]]

    def _queries(self, x: Tensor, tile: Tile) -> Tensor:
        """Those of a tile, (images, strips, rows, T * Q, D), a view."""
        batch, height, _, depth = x.shape
        x = x.view(batch, height, self.count, -1, depth)
        return x[tile.images, tile.rows, tile.strips].transpose(1, 2)

    def of_queries(self, x: Tensor, tile: Tile) -> Tensor:
        """(B, h, width * Q, D) to (R, T * Q, D); ignored rows are zeros."""
        x = self._queries(x, tile)
        if tile.one_strip:
            return x[0, 0]
        x = F.pad(x, (0, 0, 0, 0, 0, self.reach))
        return x.flatten(0, 2)[:self.rows(tile)]

    def to_queries(self, x: Tensor, tile: Tile, numbers: Tensor) -> None:
        """Write (R, T * Q, D) where :meth:`of_queries` reads."""
        x = self._queries(x, tile)
        x.copy_(self._by_strip(numbers, tile)[:, :, :tile.shape[2]])

    def of_images(self, x: Tensor, tile: Tile) -> Tensor:
        """A number of each image, (B), to (R or 1, 1, 1, 1)."""
        x = x[tile.images]
        if not tile.one_strip:
            _, strips, rows = tile.shape
            x = x.repeat_interleave(strips * (rows + self.reach))
        return x[:self.rows(tile), None, None, None]

    def to_images(self, numbers: Tensor, tile: Tile) -> Tensor:
        """Sum a number of each row, (R), by image."""
        return self._by_strip(numbers, tile).sum(dim=(1, 2))

    def _by_strip(self, numbers: Tensor, tile: Tile) -> Tensor:
        """(R, ...) to (images, strips, rows + w - 1 or rows, ...)."""
        if tile.one_strip:
            return numbers[None, None]
        images, strips, rows = tile.shape
        fill = numbers.new_zeros(self.reach, *numbers.shape[1:])
        return torch.cat([numbers, fill]).view(
            images, strips, rows + self.reach, *numbers.shape[1:])


def window_blocks(tile: Tensor, window: int) -> Tensor:
    """The pixels that the windows of each row of a tile cover, as a view.

    Args:
        tile: (rows + w - 1, C, D), contiguous.
        window: Side w of a window.

    Returns:
        (rows, w * C, D); row r holds the tile's rows r to r + w - 1.
    """
    rows, columns, depth = tile.shape
    return tile.as_strided((rows - window + 1, window * columns, depth),
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


def window_views(tile: Tensor, window: int) -> Tensor:
    """The window of each cell of a tile of scalars, as a view.

    Args:
        tile: (rows + w - 1, C).
        window: Side w of a window.

    Returns:
        (rows, T, 1, w, w) with T = C - w + 1.
    """
    down, right = tile.stride()
    rows, columns = (side - window + 1 for side in tile.shape)
    return tile.as_strided((rows, columns, 1, window, window),
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
    """

    def __init__(self, fine: tuple[int, int], coarse: tuple[int, int]) -> None:
        self.fine, self.coarse = tuple(fine), tuple(coarse)
        self.row_size, self.column_size = (
            ceil(f / c) for f, c in zip(fine, coarse))
        self.size = self.row_size * self.column_size

    def _places(self, axis: int, device: torch.device) -> Tensor:
        """The place of each fine cell in the sorted list, on the device."""
        fine, coarse = self.fine[axis], self.coarse[axis]
        cells = torch.arange(fine, device=device)
        owners = (2 * cells + 1) * coarse // (2 * fine)  # as centres()
        # The first cell whose centre is not left of the owner's start.
        first = (2 * fine * owners + coarse - 1) // (2 * coarse)
        return owners * ceil(fine / coarse) + cells - first

    def gather(self, x: Tensor) -> Tensor:
        """(..., D, H, W) to (..., h, w * Q, D)."""
        x = x.movedim(-3, -1)
        if self.fine == self.coarse:
            return x.contiguous()
        (height, width), depth = self.coarse, x.shape[-1]
        lead = x.shape[:-3]
        x = x.new_zeros(*lead, height * self.row_size, x.shape[-2],
                        depth).index_copy_(-3, self._places(0, x.device), x)
        x = x.new_zeros(*lead, height * self.row_size,
                        width * self.column_size,
                        depth).index_copy_(-2, self._places(1, x.device), x)
        x = x.view(*lead, height, self.row_size, width, self.column_size, depth)
        return x.transpose(-4, -3).reshape(*lead, height, width * self.size,
                                           depth)

    def scatter(self, x: Tensor) -> Tensor:
        """(..., h, w * Q, D) to (..., D, H, W)."""
        if self.fine != self.coarse:
            lead, depth = x.shape[:-3], x.shape[-1]
            height, width = self.coarse
            x = x.reshape(*lead, height, width, self.row_size,
                          self.column_size, depth)
            x = x.transpose(-4, -3).reshape(*lead, height * self.row_size,
                                            width * self.column_size, depth)
            x = x.index_select(-3, self._places(0, x.device))
            x = x.index_select(-2, self._places(1, x.device))
        return x.movedim(-1, -3).clone(memory_format=torch.contiguous_format)
