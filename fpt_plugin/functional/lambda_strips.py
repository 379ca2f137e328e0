"""Position lambdas in strips of columns, as products of banded matrices.

A cell has G x T pixels, and its windows reach R x C of them, R = G + r - 1 and
C = T + r - 1. In a strip of values (v, rows, C) the R rows of a cell are one
contiguous block of R * C numbers, so that the blocks of all cells of the strip
are an overlapping view, without a copy. The window of one pixel is a band of
its cell's block: the rest is multiplied by zeros, somewhat more work at the
speed of a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import cached_scores

# Rows and columns of a cell: larger ones compute more in vain, smaller ones
# have small products. Rows also keep the sums of overlapping blocks short.
CELL = (2, 7)


def cell_size(height: int, width: int) -> tuple[int, int]:
    """A cell such that the last ones of a map do not stick out far."""
    return tuple(
        ceil(side / ceil(side / most))
        for side, most in zip((height, width), CELL))


class _Tile(NamedTuple):
    """Cells of a strip of one image, as an index of (B, H, W, ...)."""

    image: int
    rows: slice
    columns: slice


class _Strips:
    """The operands of one call as their products want them.

    Attributes:
        query: (B, H', W', h, k), H' and W' in whole cells.
        value: (B, u, v, H' + r - 1, W' + r - 1).
    """

    def __init__(self, query: Tensor, value: Tensor, embedding: Tensor,
                 per_pixel: int) -> None:
        _, self.heads, self.depth, *self.size = query.shape
        self.intra, self.channels = value.shape[1:3]
        self.window = tuple(embedding.shape[2:])
        self.cell = cell_size(*self.size)
        self.pixels = self.cell[0] * self.cell[1]
        self.seen = tuple(c + w - 1 for c, w in zip(self.cell, self.window))
        self.block = self.seen[0] * self.seen[1]
        down, right = (-side % c for side, c in zip(self.size, self.cell))
        self.fill = (0, right, 0, down)
        self.query = self.pixels_first(query)
        self.margin = tuple(side // 2 for side in self.window)
        top, left = self.margin
        self.value = F.pad(value, (left, left + right, top, top + down))
        # Cells of a tile whose numbers fit the budget.
        fitting = cached_scores(query.device) // (
            self.pixels * per_pixel * self.block)
        self.cells = max(1, min(self.query.shape[1] // self.cell[0], fitting))

    def pixels_first(self, x: Tensor) -> Tensor:
        """(B, h, D, H, W) to (B, H', W', h, D)."""
        return F.pad(x, self.fill).permute(0, 3, 4, 1, 2).contiguous()

    def pixels_last(self, x: Tensor) -> Tensor:
        """The inverse, a view."""
        height, width = self.size
        return x[:, :height, :width].permute(0, 3, 4, 1, 2)

    def unpadded(self, x: Tensor) -> Tensor:
        """What is like the values, without margins: (B, u, v, H, W), a view."""
        (top, left), (height, width) = self.margin, self.size
        return x[..., top:top + height, left:left + width]

    def tiles(self) -> Iterator[_Tile]:
        """All of them, those of a strip one after the other."""
        batch, height, width = self.query.shape[:3]
        step = self.cells * self.cell[0]
        for image in range(batch):
            for column in range(0, width, self.cell[1]):
                for row in range(0, height, step):
                    yield _Tile(image, slice(row, min(row + step, height)),
                                slice(column, column + self.cell[1]))

    def reach(self, x: Tensor, tile: _Tile, intra: int) -> Tensor:
        """What a tile's windows see of what is like the values: (v, rows, C)."""
        image, rows, columns = tile
        return x[image, intra, :, rows.start:rows.stop + self.window[0] - 1,
                 columns.start:columns.start + self.seen[1]]

    def blocks(self, tile: _Tile, intra: int) -> Tensor:
        """The values that each cell's windows see: (cells, v, R * C)."""
        strip = self.reach(self.value, tile, intra).contiguous()
        count = (tile.rows.stop - tile.rows.start) // self.cell[0]
        return strip.as_strided(
            (count, self.channels, self.block),
            (self.cell[0] * self.seen[1], strip.stride(0), 1))

    def add_blocks(self, grad: Tensor, tile: _Tile, intra: int,
                   blocks: Tensor) -> None:
        """The transpose of :meth:`blocks`: add (cells, v, R * C) to a gradient."""
        strip = self.reach(grad, tile, intra)
        blocks = blocks.unflatten(2, self.seen).permute(2, 1, 0, 3)
        step = self.cell[0]
        end = (blocks.shape[2] - 1) * step + 1
        for row, added in enumerate(blocks):
            strip[:, row:row + end:step] += added

    def band(self, matrix: Tensor) -> Tensor:
        """The windows' own entries of a matrix of pixels and blocks.

        Args:
            matrix: (cells, G * T * D, R * C), contiguous.

        Returns:
            A view (cells, G, T, D, r, r).
        """
        count, total, width = matrix.shape
        rows, columns = self.cell
        each = total // self.pixels
        # The next pixel looks one column or one row further.
        return matrix.as_strided(
            (count, rows, columns, each, *self.window),
            (total * width, columns * each * width + self.seen[1],
             each * width + 1, width, self.seen[1], 1))

    def of_cells(self, x: Tensor, tile: _Tile) -> Tensor:
        """(B, H', W', h, D) to those of a tile's cells, (cells, G * T, h, D)."""
        x = x[tile].unflatten(0, (-1, self.cell[0]))
        return x.reshape(len(x), self.pixels, *x.shape[3:])

    def to_cells(self, x: Tensor, tile: _Tile, numbers: Tensor) -> None:
        """Write (cells, G * T * h, D), or of that many elements, into x."""
        x = x[tile]
        x.copy_(numbers.view_as(x))

    @classmethod
    def forward(cls, query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        """(B, h, v, H, W), tile by tile."""
        x = cls(query, value, embedding)
        out = x.query.new_empty(*x.query.shape[:-1], x.channels)
        for tile in x.tiles():
            x.to_cells(out, tile, x.of_tile(tile))
        return x.pixels_last(out)


class AttentionOrder(_Strips):
    """Weights q E of the pixels of a window, then their sum of the values."""

    def __init__(self, query: Tensor, value: Tensor, embedding: Tensor) -> None:
        super().__init__(query, value, embedding, per_pixel=query.shape[1])
        # (u, r * r, k): rows that a product reads one after the other.
        self.embedding = embedding.flatten(2).permute(1, 2, 0).contiguous()
        rows = self.cells * self.pixels * self.heads
        self._entries = query.new_empty(rows, self.embedding.shape[1])
        # Only the bands are ever written, so one matrix a number of cells is
        # enough.
        self._matrices: dict[int, Tensor] = {}

    def weights(self, queries: Tensor, intra: int) -> Tensor:
        """Products q E as a banded matrix, valid until the next call.

        Args:
            queries: (cells, G * T, h, k).
            intra: Index of the intra depth.

        Returns:
            (cells, G * T * h, R * C).
        """
        rows = queries.flatten(0, 2)
        entries = self._entries[:len(rows)]
        torch.mm(rows, self.embedding[intra].t(), out=entries)
        if len(queries) not in self._matrices:
            self._matrices[len(queries)] = queries.new_zeros(
                len(queries), self.pixels * self.heads, self.block)
        matrix = self._matrices[len(queries)]
        band = self.band(matrix)
        band.copy_(entries.view_as(band))
        return matrix

    def of_tile(self, tile: _Tile) -> Tensor:
        """The output of a tile's pixels, (cells, G * T * h, v)."""
        queries = self.of_cells(self.query, tile)
        total = None
        for intra in range(self.intra):
            blocks = self.blocks(tile, intra).transpose(1, 2)
            weights = self.weights(queries, intra)
            total = torch.bmm(weights, blocks) if total is None else \
                total.baddbmm_(weights, blocks)
        return total

    @classmethod
    def backward(cls, query: Tensor, value: Tensor, embedding: Tensor,
                 grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the three operands."""
        x = cls(query, value, embedding)
        grad = x.pixels_first(grad)
        grad_q, grad_v, grad_e = map(
            torch.zeros_like, (x.query, x.value, x.embedding))
        of_values = query.new_empty(x.cells, x.channels, x.block)
        of_matrix = query.new_empty(
            x.cells, x.pixels * x.heads, x.block)
        of_entries = torch.empty_like(x._entries)
        for tile in x.tiles():
            queries = x.of_cells(x.query, tile)
            rows = queries.flatten(0, 2)
            count = len(queries)
            g = x.of_cells(grad, tile).flatten(1, 2)  # (cells, G * T * h, v)
            d_entries = of_entries[:len(rows)]
            d_query = torch.zeros_like(rows)
            for intra in range(x.intra):
                weights = x.weights(queries, intra)
                torch.bmm(g.transpose(1, 2), weights, out=of_values[:count])
                x.add_blocks(grad_v, tile, intra, of_values[:count])
                d_matrix = torch.bmm(
                    g, x.blocks(tile, intra), out=of_matrix[:count])
                band = x.band(d_matrix)
                d_entries.view_as(band).copy_(band)
                grad_e[intra].addmm_(d_entries.t(), rows)
                d_query.addmm_(d_entries, x.embedding[intra])
            x.to_cells(grad_q, tile, d_query)
        grad_e = grad_e.permute(2, 0, 1).reshape(embedding.shape)
        return x.pixels_last(grad_q), x.unpadded(grad_v), grad_e


class LambdaOrder(_Strips):
    """The lambdas of a strip's pixels, then their sum over queries."""

    def __init__(self, query: Tensor, value: Tensor, embedding: Tensor) -> None:
        # A tile holds the lambdas, k * v numbers a pixel.
        super().__init__(
            query, value, embedding,
            per_pixel=ceil(query.shape[2] * value.shape[2] /
                           embedding[0, 0].numel()))
        # One matrix serves all cells: (u, G * T * k, R * C).
        self.matrix = embedding.new_zeros(
            self.intra, self.pixels * self.depth, self.block)
        band = self.band(self.matrix)
        band.copy_(embedding.transpose(0, 1)[:, None, None].expand_as(band))

    def lambdas(self, tile: _Tile) -> Tensor:
        """(cells * G * T, k, v)."""
        total = None
        for intra in range(self.intra):
            blocks = self.blocks(tile, intra).transpose(1, 2)
            matrix = self.matrix[intra].expand(len(blocks), -1, -1)
            total = torch.bmm(matrix, blocks) if total is None else \
                total.baddbmm_(matrix, blocks)
        return total.view(-1, self.depth, self.channels)

    def of_tile(self, tile: _Tile) -> Tensor:
        """The output of a tile's pixels, (cells * G * T, h, v)."""
        queries = self.of_cells(self.query, tile).flatten(0, 1)
        return torch.bmm(queries, self.lambdas(tile))

    @classmethod
    def backward(cls, query: Tensor, value: Tensor, embedding: Tensor,
                 grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the three operands."""
        x = cls(query, value, embedding)
        grad = x.pixels_first(grad)
        grad_q, grad_v, grad_m = map(
            torch.zeros_like, (x.query, x.value, x.matrix))
        for tile in x.tiles():
            queries = x.of_cells(x.query, tile).flatten(0, 1)  # (n, h, k)
            g = x.of_cells(grad, tile).flatten(0, 1)  # (n, h, v)
            x.to_cells(grad_q, tile,
                       torch.bmm(g, x.lambdas(tile).transpose(1, 2)))
            d_lambdas = torch.bmm(queries.transpose(1, 2), g).view(
                -1, x.pixels * x.depth, x.channels)
            for intra in range(x.intra):
                matrix = x.matrix[intra].expand(len(d_lambdas), -1, -1)
                x.add_blocks(grad_v, tile, intra,
                             torch.bmm(d_lambdas.transpose(1, 2), matrix))
                grad_m[intra].addbmm_(d_lambdas, x.blocks(tile, intra))
        grad_e = x.band(grad_m).sum(dim=(1, 2)).transpose(0, 1)
        return x.pixels_last(grad_q), x.unpadded(grad_v), grad_e
