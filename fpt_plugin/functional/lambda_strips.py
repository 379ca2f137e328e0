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
from math import ceil, prod

import torch
from torch import Tensor
from torch.nn import functional as F

from .tiles import Tile, overlap_add, tile_shape, tiles

# Rows and columns of a cell: larger ones compute more in vain, smaller ones
# have small products and more blocks to sum.
# cuda: on an H200 cells of (4, 8) to (8, 16) are alike.
CELL = {'cpu': (2, 7), 'cuda': (8, 8)}


def cell_size(height: int, width: int, device_type: str) -> tuple[int, int]:
    """A cell that leaves little of the last ones outside of the map."""
    most = CELL.get(device_type, CELL['cuda'])
    return tuple(
        ceil(side / ceil(side / cell)) for side, cell in zip((height, width), most))


class _Strips:
    """The operands of one call as their products want them.

    An image has J strips of I cells each.

    Attributes:
        query: (B, J, I, G, T, h, k).
        value: (B, u, v, H' + r - 1, W' + r - 1), H' and W' in whole cells.
    """

    def __init__(self, query: Tensor, value: Tensor, embedding: Tensor,
                 per_pixel: int) -> None:
        _, self.heads, self.depth, *self.size = query.shape
        self.intra, self.channels = value.shape[1:3]
        self.window = tuple(embedding.shape[2:])
        self.cell = cell_size(*self.size, query.device.type)
        self.pixels = self.cell[0] * self.cell[1]
        self.seen = tuple(c + w - 1 for c, w in zip(self.cell, self.window))
        self.block = self.seen[0] * self.seen[1]
        down, right = (-side % c for side, c in zip(self.size, self.cell))
        self.fill = (0, right, 0, down)
        self.query = self.pixels_first(query)
        self.margin = tuple(side // 2 for side in self.window)
        top, left = self.margin
        self.value = F.pad(value, (left, left + right, top, top + down))
        # Images, strips and rows of cells of a tile.
        self.steps = tile_shape(self.query.shape[:3],
                                self.pixels * per_pixel * self.block,
                                query.device,
                                copied=self.channels * self.block)

    def pixels_first(self, x: Tensor) -> Tensor:
        """(B, h, D, H, W) to (B, J, I, G, T, h, D), pixels of a row together."""
        x = F.pad(x, self.fill).permute(0, 3, 4, 1, 2).contiguous()
        return self._in_cells(x)

    def _in_cells(self, x: Tensor) -> Tensor:
        """(B, H', W', h, D) to (B, J, I, G, T, h, D), a view."""
        x = x.unflatten(2, (-1, self.cell[1])).unflatten(1, (-1, self.cell[0]))
        return x.permute(0, 3, 1, 2, 4, 5, 6)

    def pixels_last(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`pixels_first`, a view."""
        x = x.permute(0, 2, 3, 1, 4, 5, 6).flatten(3, 4).flatten(1, 2)
        height, width = self.size
        return x[:, :height, :width].permute(0, 3, 4, 1, 2)

    def unpadded(self, x: Tensor) -> Tensor:
        """Cut the margins off a gradient of the values: (B, u, v, H, W)."""
        (top, left), (height, width) = self.margin, self.size
        return x[..., top:top + height, left:left + width]

    def tiles(self) -> Iterator[Tile]:
        """Tiles as an index of (B, J, I, ...)."""
        return tiles(self.query.shape[:3], self.steps)

    def reach(self, x: Tensor, tile: Tile, intra: int) -> Tensor:
        """What a tile's windows see of a map like the values, a view.

        Returns:
            (images, v, rows, columns).
        """
        rows, columns = (
            slice(at.start * cell, (at.stop - 1) * cell + seen)
            for at, cell, seen in zip((tile.rows, tile.strips), self.cell,
                                      self.seen))
        return x[tile.images, intra, :, rows, columns]

    def blocks(self, tile: Tile, intra: int) -> Tensor:
        """The values that each cell's windows see: (cells, v, R * C)."""
        x = self.reach(self.value, tile, intra)
        x = x.unfold(3, self.seen[1], self.cell[1])
        x = x.permute(0, 3, 1, 2, 4).contiguous()  # (images, strips, v, rows, C)
        image, strip, channel, row, _ = x.stride()
        x = x.as_strided(
            (*tile.shape, self.channels, self.block),
            (image, strip, self.cell[0] * row, channel, 1))
        return x.flatten(0, 2)  # a view of one strip, a copy of several

    def add_blocks(self, grad: Tensor, tile: Tile, intra: int,
                   blocks: Tensor) -> None:
        """The transpose of :meth:`blocks`: add (cells, v, R * C) to a gradient."""
        images, strips, cells = tile.shape
        blocks = blocks.view(images, strips, cells, self.channels, *self.seen)
        x = overlap_add(blocks.transpose(2, 3), 3, self.cell[0])
        # (images, strips, v, rows, C)
        x = overlap_add(x.permute(0, 2, 3, 1, 4), 3, self.cell[1])
        grad = self.reach(grad, tile, intra)
        grad += x[:, :, :grad.shape[2], :grad.shape[3]]

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

    def of_cells(self, x: Tensor, tile: Tile) -> Tensor:
        """(B, J, I, G, T, h, D) to those of a tile, (cells, G * T, h, D)."""
        return x[tile].flatten(3, 4).flatten(0, 2)

    def to_cells(self, x: Tensor, tile: Tile, numbers: Tensor) -> None:
        """Write (cells, G * T * h, D), or of that many elements, into x."""
        x = x[tile]
        x.copy_(numbers.view_as(x))

    @classmethod
    def forward(cls, query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        """(B, h, v, H, W), tile by tile."""
        x = cls(query, value, embedding)
        images, strips, cells, rows, columns, heads, _ = x.query.shape
        out = x._in_cells(query.new_empty(
            images, cells * rows, strips * columns, heads, x.channels))
        for tile in x.tiles():
            x.to_cells(out, tile, x.of_tile(tile))
        return x.pixels_last(out)


class AttentionOrder(_Strips):
    """Weights q E of the pixels of a window, then their sum of the values."""

    def __init__(self, query: Tensor, value: Tensor, embedding: Tensor) -> None:
        super().__init__(query, value, embedding, per_pixel=query.shape[1])
        # (u, r * r, k): rows that a product reads one after the other.
        self.embedding = embedding.flatten(2).permute(1, 2, 0).contiguous()
        rows = prod(self.steps) * self.pixels * self.heads
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

    def of_tile(self, tile: Tile) -> Tensor:
        """The output of a tile's pixels, (cells, G * T * h, v)."""
        queries = self.of_cells(self.query, tile)
        total = None
        for intra in range(self.intra):
            blocks = self.blocks(tile, intra).transpose(1, 2)
            weights = self.weights(queries, intra)
            total = torch.bmm(weights, blocks) if total is None else \
                torch.baddbmm(total, weights, blocks, out=total)
        return total

    @classmethod
    def backward(cls, query: Tensor, value: Tensor, embedding: Tensor,
                 grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the three operands."""
        x = cls(query, value, embedding)
        grad = x.pixels_first(grad)
        grad_q, grad_v, grad_e = map(
            torch.zeros_like, (x.query, x.value, x.embedding))
        cells = prod(x.steps)
        of_values = query.new_empty(cells, x.channels, x.block)
        of_matrix = query.new_empty(cells, x.pixels * x.heads, x.block)
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
                # Not in place: counters of FLOPs know these forms alone.
                torch.addmm(grad_e[intra], d_entries.t(), rows,
                            out=grad_e[intra])
                torch.addmm(d_query, d_entries, x.embedding[intra], out=d_query)
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

    def lambdas(self, tile: Tile) -> Tensor:
        """(cells * G * T, k, v)."""
        total = None
        for intra in range(self.intra):
            blocks = self.blocks(tile, intra).transpose(1, 2)
            matrix = self.matrix[intra].expand(len(blocks), -1, -1)
            total = torch.bmm(matrix, blocks) if total is None else \
                torch.baddbmm(total, matrix, blocks, out=total)
        return total.view(-1, self.depth, self.channels)

    def of_tile(self, tile: Tile) -> Tensor:
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
