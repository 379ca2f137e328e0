"""Position lambdas as products of banded matrices, strip by strip.

For each pixel n, head h and value channel v::

    out[h, v, n] = sum_k q[h, k, n] * sum_m E[k, m - n] * V[v, m]

where m runs over the r x r window around n (r is odd), and V is zero outside the map.
(This is for one intra depth u; with several, the results are summed.) Unfolding V would
copy it r * r times, and a convolution of V with E makes k * v numbers a pixel. Here all
windows of a small rectangle of pixels are summed by one matrix product.

**Strips, cells and blocks.** The map is cut into strips of T columns, and each strip
into cells of G rows. All windows of a cell lie in its *block* of R x C values, with
R = G + r - 1 and C = T + r - 1. Blocks of neighbouring cells overlap. Here G = 2,
T = 3 and r = 3::

      strip 0   1       2
    . . . | . . . | . . .
    . . + | + + + | + . .
    ------+-------+------
    . . + | o o o | + . .    o: the G x T pixels of one cell
    . . + | o o o | + . .    o and +: its block of R x C = 4 x 5 values
    ------+-------+------
    . . + | + + + | + . .
    . . . | . . . | . . .

The values of a strip, with the r // 2 columns that its windows reach on either side,
are laid out as (v, rows, C). The R rows of a block are then R * C consecutive
numbers, and the block of the next cell starts G * C numbers later. So all blocks of
a strip are one overlapping view (``as_strided``), and no value is copied into several
blocks.

**Banded matrix.** Take G = 1, T = 2 and r = 3: the block has 3 x 4 values, and each of
the two pixels sums 3 x 3 of them::

    block        window of pixel 0   window of pixel 1
    a b c d          a b c .             . b c d
    e f g h          e f g .             . f g h
    i j k l          i j k .             . j k l

With the block flattened to 12 numbers, a weighted sum over a window is a product with
a row of 12 weights, of which 9 are not zero (1 to 9: the weights of a window, row by
row; each pixel has weights of its own)::

                a b c d e f g h i j k l
    pixel 0   [ 1 2 3 . 4 5 6 . 7 8 9 . ]
    pixel 1   [ . 1 2 3 . 4 5 6 . 7 8 9 ]

The row of the next pixel is shifted by one column; that of a pixel one row further
down, by C columns. The entries that are not zero are the *band*. It is a strided view
of the matrix (:meth:`_StripOperands.band_view`), so weights (G, T, r, r) are written
into it by one copy. Then (G * T, R * C) @ (R * C, v) gives the sums of all pixels of
the cell. The zeros are multiplied as well: R * C / r^2 times the multiply-adds that
are needed, but at the speed of a large matrix product.

**Two orders of summation.**

- :class:`AttentionOrder` applies queries to the embedding first. Each pixel and head
  has its own weights A = q E. Every cell has a matrix (G * T * h, R * C) of its own;
  its product with the block is the output.
- :class:`LambdaOrder` applies the embedding to the values first. The weights are E
  itself, so one matrix (G * T * k, R * C) serves all cells; its product with a block
  is the lambdas (k, v) of the cell's pixels, which their queries then multiply.

The cells that are computed together are a tile, see :mod:`.tiles`. The backward passes
walk the same tiles and compute the weights or lambdas again.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod

import torch
from torch import Tensor
from torch.nn import functional as F

from .tiles import Tile, overlap_add, tile_shape, tiles

# Maximum rows G and columns T of a cell. Larger cells multiply more zeros, smaller ones
# have smaller products and more blocks to sum.
# cuda: on an H200 cells of (4, 8) to (8, 16) are equally fast.
CELL = {'cpu': (2, 7), 'cuda': (8, 8)}


def cell_size(height: int, width: int, device_type: str) -> tuple[int, int]:
    """Choose a cell size: the fewest cells, as equal as possible.

    So the cells at the border need little padding.

    Returns:
        Rows G and columns T.
    """
    largest = CELL.get(device_type, CELL['cuda'])
    return tuple(
        ceil(side / ceil(side / cell))
        for side, cell in zip((height, width), largest))


class _StripOperands:
    """Query and values of one call, cut into J strips of I cells each.

    Args:
        query: (B, h, k, H, W).
        value: (B, u, v, H, W).
        embedding: (k, u, r, r); its sides may differ.
        per_pixel: Rows of the matrix for each pixel of a cell; fixes how many cells
            fit into a tile.

    Attributes:
        query: (B, J, I, G, T, h, k).
        value: (B, u, v, I * G + r - 1, J * T + r - 1), padded with zeros.
        window: Rows and columns of a window, (r, r).
        cell: Rows and columns of a cell, (G, T).
        cell_pixels: G * T.
        block: Rows and columns of a block, (R, C).
        block_pixels: R * C.
        tile_size: Images, strips and cells of the largest tile.
    """

    def __init__(self, query: Tensor, value: Tensor, embedding: Tensor,
                 per_pixel: int) -> None:
        _, self.heads, self.depth, *self.size = query.shape
        self.intra, self.channels = value.shape[1:3]
        self.window = tuple(embedding.shape[2:])
        self.cell = cell_size(*self.size, query.device.type)
        self.cell_pixels = prod(self.cell)
        self.block = tuple(c + w - 1 for c, w in zip(self.cell, self.window))
        self.block_pixels = prod(self.block)
        # Rows and columns that are missing to whole cells.
        down, right = (-side % c for side, c in zip(self.size, self.cell))
        self.fill = (0, right, 0, down)
        self.query = self.to_cells(query)
        self.margin = tuple(side // 2 for side in self.window)
        top, left = self.margin
        self.value = F.pad(value, (left, left + right, top, top + down))
        self.tile_size = tile_shape(
            self.query.shape[:3],
            self.cell_pixels * per_pixel * self.block_pixels,
            query.device,
            copied=self.channels * self.block_pixels)

    def to_cells(self, x: Tensor) -> Tensor:
        """Sort pixels by cell: (B, h, D, H, W) to (B, J, I, G, T, h, D)."""
        # (B, I * G, J * T, h, D)
        x = F.pad(x, self.fill).permute(0, 3, 4, 1, 2).contiguous()
        return self._view_cells(x)

    def _view_cells(self, x: Tensor) -> Tensor:
        """View (B, I * G, J * T, h, D) as (B, J, I, G, T, h, D)."""
        x = x.unflatten(2, (-1, self.cell[1])).unflatten(1, (-1, self.cell[0]))
        # (B, I, G, J, T, h, D)
        return x.permute(0, 3, 1, 2, 4, 5, 6)

    def from_cells(self, x: Tensor) -> Tensor:
        """Invert :meth:`to_cells`: a view (B, h, D, H, W)."""
        x = x.permute(0, 2, 3, 1, 4, 5, 6)  # (B, I, G, J, T, h, D)
        x = x.flatten(3, 4).flatten(1, 2)  # (B, I * G, J * T, h, D)
        height, width = self.size
        return x[:, :height, :width].permute(0, 3, 4, 1, 2)

    def crop_values(self, x: Tensor) -> Tensor:
        """Cut the padding off a tensor like :attr:`value`: (B, u, v, H, W)."""
        (top, left), (height, width) = self.margin, self.size
        return x[..., top:top + height, left:left + width]

    def tiles(self) -> Iterator[Tile]:
        """Tiles as an index of (B, J, I, ...)."""
        return tiles(self.query.shape[:3], self.tile_size)

    def visible(self, x: Tensor, tile: Tile, intra: int) -> Tensor:
        """Take the rows and columns that the windows of a tile reach, as a view.

        Args:
            x: Shaped as :attr:`value`.
            tile: Images, strips and cells.
            intra: Index of the intra depth.

        Returns:
            (images, v, rows, columns).
        """
        rows, columns = (
            slice(at.start * cell, (at.stop - 1) * cell + block)
            for at, cell, block in zip((tile.rows, tile.strips), self.cell,
                                       self.block))
        return x[tile.images, intra, :, rows, columns]

    def blocks(self, tile: Tile, intra: int) -> Tensor:
        """Take the block of values of each cell: (cells, v, R * C).

        ``cells`` counts those of all strips and images of the tile. For a tile of one
        strip the result is a view, for several it is a copy.
        """
        x = self.visible(self.value, tile, intra)
        x = x.unfold(3, self.block[1], self.cell[1])
        # (images, v, rows, strips, C) to (images, strips, v, rows, C)
        x = x.permute(0, 3, 1, 2, 4).contiguous()
        image, strip, channel, row, _ = x.stride()
        # The next block starts G rows further down.
        x = x.as_strided(
            (*tile.shape, self.channels, self.block_pixels),
            (image, strip, self.cell[0] * row, channel, 1))
        # (images, strips, cells of a strip, v, R * C)
        return x.flatten(0, 2)

    def add_blocks(self, grad: Tensor, tile: Tile, intra: int,
                   blocks: Tensor) -> None:
        """Add blocks to a gradient of the values: the transpose of :meth:`blocks`.

        Args:
            grad: Shaped as :attr:`value`, changed in place.
            tile: Images, strips and cells.
            intra: Index of the intra depth.
            blocks: (cells, v, R * C).
        """
        images, strips, cells = tile.shape
        blocks = blocks.view(images, strips, cells, self.channels, *self.block)
        # (images, strips, v, cells, R, C) to (images, strips, v, rows, C)
        x = overlap_add(blocks.transpose(2, 3), 3, self.cell[0])
        # (images, v, rows, strips, C) to (images, v, rows, columns)
        x = overlap_add(x.permute(0, 2, 3, 1, 4), 3, self.cell[1])
        grad = self.visible(grad, tile, intra)
        grad += x[:, :, :grad.shape[2], :grad.shape[3]]

    def band_view(self, matrix: Tensor) -> Tensor:
        """View the band of a matrix: the entries inside the pixels' windows.

        Args:
            matrix: (cells, G * T * D, R * C), contiguous, D rows a pixel.

        Returns:
            (cells, G, T, D, r, r).
        """
        count, matrix_rows, width = matrix.shape
        rows, columns = self.cell
        per_pixel = matrix_rows // self.cell_pixels
        # The windows of the next pixel start one column further, those of the next
        # row of pixels one row of the block, C columns of the matrix.
        return matrix.as_strided(
            (count, rows, columns, per_pixel, *self.window),
            (matrix_rows * width, columns * per_pixel * width + self.block[1],
             per_pixel * width + 1, width, self.block[1], 1))

    def take(self, x: Tensor, tile: Tile) -> Tensor:
        """Take a tile of (B, J, I, G, T, h, D): (cells, G * T, h, D)."""
        return x[tile].flatten(3, 4).flatten(0, 2)

    def put(self, x: Tensor, tile: Tile, numbers: Tensor) -> None:
        """Write numbers in the order of :meth:`take`, of any shape, into a tile."""
        x = x[tile]
        x.copy_(numbers.view_as(x))

    @classmethod
    def forward(cls, query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        """Compute the output tile by tile: (B, h, v, H, W)."""
        x = cls(query, value, embedding)
        images, strips, cells, rows, columns, heads, _ = x.query.shape
        out = x._view_cells(query.new_empty(
            images, cells * rows, strips * columns, heads, x.channels))
        # (B, J, I, G, T, h, v)
        for tile in x.tiles():
            x.put(out, tile, x.compute(tile))
        return x.from_cells(out)


class AttentionOrder(_StripOperands):
    """Compute weights q E for each pixel and head, then sum the values by them."""

    def __init__(self, query: Tensor, value: Tensor, embedding: Tensor) -> None:
        super().__init__(query, value, embedding, per_pixel=query.shape[1])
        # (u, r * r, k): the product reads the rows one after the other.
        self.embedding = embedding.flatten(2).permute(1, 2, 0).contiguous()
        rows = prod(self.tile_size) * self.cell_pixels * self.heads
        # Buffer for the weights of a tile, (cells * G * T * h, r * r).
        self._weights = query.new_empty(rows, self.embedding.shape[1])
        # Only the band of a matrix is ever written: one matrix of zeros for each
        # number of cells is enough.
        self._matrices: dict[int, Tensor] = {}

    def banded_weights(self, queries: Tensor, intra: int) -> Tensor:
        """Compute q E as a banded matrix, valid until the next call.

        Args:
            queries: (cells, G * T, h, k).
            intra: Index of the intra depth.

        Returns:
            (cells, G * T * h, R * C).
        """
        cells = len(queries)
        rows = queries.flatten(0, 2)  # (cells * G * T * h, k)
        weights = self._weights[:len(rows)]  # (cells * G * T * h, r * r)
        torch.mm(rows, self.embedding[intra].t(), out=weights)
        if cells not in self._matrices:
            self._matrices[cells] = queries.new_zeros(
                cells, self.cell_pixels * self.heads, self.block_pixels)
        matrix = self._matrices[cells]
        band = self.band_view(matrix)  # (cells, G, T, h, r, r)
        band.copy_(weights.view_as(band))
        return matrix

    def compute(self, tile: Tile) -> Tensor:
        """Compute the output of a tile's pixels: (cells, G * T * h, v)."""
        queries = self.take(self.query, tile)  # (cells, G * T, h, k)
        total = None
        for intra in range(self.intra):
            blocks = self.blocks(tile, intra).transpose(1, 2)  # (cells, R * C, v)
            weights = self.banded_weights(queries, intra)
            total = torch.bmm(weights, blocks) if total is None else \
                torch.baddbmm(total, weights, blocks, out=total)
        return total

    @classmethod
    def backward(cls, query: Tensor, value: Tensor, embedding: Tensor,
                 grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients of query, value and embedding.

        Args:
            query: (B, h, k, H, W).
            value: (B, u, v, H, W).
            embedding: (k, u, r, r).
            grad: The gradient of the output, (B, h, v, H, W).
        """
        x = cls(query, value, embedding)
        grad = x.to_cells(grad)  # (B, J, I, G, T, h, v)
        grad_q, grad_v, grad_e = map(
            torch.zeros_like, (x.query, x.value, x.embedding))
        cells = prod(x.tile_size)
        # Buffers for the gradients of a tile's blocks, matrix and weights.
        d_blocks = query.new_empty(cells, x.channels, x.block_pixels)
        d_matrix = query.new_empty(cells, x.cell_pixels * x.heads, x.block_pixels)
        d_weights = torch.empty_like(x._weights)
        for tile in x.tiles():
            queries = x.take(x.query, tile)  # (cells, G * T, h, k)
            rows = queries.flatten(0, 2)  # (cells * G * T * h, k)
            count = len(queries)
            g = x.take(grad, tile).flatten(1, 2)  # (cells, G * T * h, v)
            d_w = d_weights[:len(rows)]  # (cells * G * T * h, r * r)
            d_query = torch.zeros_like(rows)
            for intra in range(x.intra):
                weights = x.banded_weights(queries, intra)
                # (cells, v, G * T * h) @ (cells, G * T * h, R * C)
                torch.bmm(g.transpose(1, 2), weights, out=d_blocks[:count])
                x.add_blocks(grad_v, tile, intra, d_blocks[:count])
                # (cells, G * T * h, v) @ (cells, v, R * C): only the band counts.
                band = x.band_view(torch.bmm(
                    g, x.blocks(tile, intra), out=d_matrix[:count]))
                d_w.view_as(band).copy_(band)
                # Not in place: FLOP counters only know these operators.
                torch.addmm(grad_e[intra], d_w.t(), rows, out=grad_e[intra])
                torch.addmm(d_query, d_w, x.embedding[intra], out=d_query)
            x.put(grad_q, tile, d_query)
        # (u, r * r, k) to (k, u, r, r)
        grad_e = grad_e.permute(2, 0, 1).reshape(embedding.shape)
        return x.from_cells(grad_q), x.crop_values(grad_v), grad_e


class LambdaOrder(_StripOperands):
    """Compute the lambdas of each pixel, then apply them to its queries."""

    def __init__(self, query: Tensor, value: Tensor, embedding: Tensor) -> None:
        # A tile holds the lambdas, k * v numbers a pixel.
        super().__init__(
            query, value, embedding,
            per_pixel=ceil(query.shape[2] * value.shape[2] /
                           embedding[0, 0].numel()))
        # One matrix serves all cells: (u, G * T * k, R * C).
        self.matrix = embedding.new_zeros(
            self.intra, self.cell_pixels * self.depth, self.block_pixels)
        band = self.band_view(self.matrix)  # (u, G, T, k, r, r)
        band.copy_(embedding.transpose(0, 1)[:, None, None].expand_as(band))

    def lambdas(self, tile: Tile) -> Tensor:
        """Compute the lambda of each pixel: (cells * G * T, k, v)."""
        total = None
        for intra in range(self.intra):
            blocks = self.blocks(tile, intra).transpose(1, 2)  # (cells, R * C, v)
            matrix = self.matrix[intra].expand(len(blocks), -1, -1)
            # (cells, G * T * k, v)
            total = torch.bmm(matrix, blocks) if total is None else \
                torch.baddbmm(total, matrix, blocks, out=total)
        return total.view(-1, self.depth, self.channels)

    def compute(self, tile: Tile) -> Tensor:
        """Compute the output of a tile's pixels: (cells * G * T, h, v)."""
        queries = self.take(self.query, tile).flatten(0, 1)  # (cells * G * T, h, k)
        return torch.bmm(queries, self.lambdas(tile))

    @classmethod
    def backward(cls, query: Tensor, value: Tensor, embedding: Tensor,
                 grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients of query, value and embedding.

        Args:
            query: (B, h, k, H, W).
            value: (B, u, v, H, W).
            embedding: (k, u, r, r).
            grad: The gradient of the output, (B, h, v, H, W).
        """
        x = cls(query, value, embedding)
        grad = x.to_cells(grad)  # (B, J, I, G, T, h, v)
        grad_q, grad_v, grad_m = map(
            torch.zeros_like, (x.query, x.value, x.matrix))
        for tile in x.tiles():
            queries = x.take(x.query, tile).flatten(0, 1)  # (cells * G * T, h, k)
            g = x.take(grad, tile).flatten(0, 1)  # (cells * G * T, h, v)
            x.put(grad_q, tile, torch.bmm(g, x.lambdas(tile).transpose(1, 2)))
            # (cells * G * T, k, v) to (cells, G * T * k, v)
            d_lambdas = torch.bmm(queries.transpose(1, 2), g).view(
                -1, x.cell_pixels * x.depth, x.channels)
            for intra in range(x.intra):
                matrix = x.matrix[intra].expand(len(d_lambdas), -1, -1)
                # (cells, v, G * T * k) @ (cells, G * T * k, R * C)
                x.add_blocks(grad_v, tile, intra,
                             torch.bmm(d_lambdas.transpose(1, 2), matrix))
                # Sum over cells of (G * T * k, v) @ (v, R * C).
                grad_m[intra].addbmm_(d_lambdas, x.blocks(tile, intra))
        # (u, G, T, k, r, r) to (k, u, r, r): all pixels share the embedding.
        grad_e = x.band_view(grad_m).sum(dim=(1, 2)).transpose(0, 1)
        return x.from_cells(grad_q), x.crop_values(grad_v), grad_e
