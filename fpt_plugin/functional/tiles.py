"""Maps cut into strips of columns, and how many of them are computed together.

A batch of maps is treated as an array (images, strips of columns, rows of a strip);
for lambdas, rows of cells. A tile is a part of this array that is computed at once.
On a CPU it is some rows of one strip, so that its numbers stay in the caches. A GPU
is fastest with few large products: there a tile is as many whole strips, and then as
many whole images, as fit the budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor

from .budget import cached_scores

# Most numbers of a tile of several strips. On a CPU larger ones leave the caches.
MULTI_STRIP_BUDGET = {'cpu': 1 << 17}


class Tile(NamedTuple):
    """An index of arrays (images, strips, rows, ...)."""

    images: slice
    strips: slice
    rows: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of images, strips and rows."""
        return tuple(at.stop - at.start for at in self)

    @property
    def one_strip(self) -> bool:
        """Whether all rows are from one strip of one image."""
        return self.shape[:2] == (1, 1)


def tile_shape(shape: tuple[int, int, int],
               numbers: int,
               device: torch.device,
               copied: int = 0) -> tuple[int, int, int]:
    """Choose the images, strips and rows of the largest tile.

    A tile has several strips only if all their rows fit, and several images only if
    all their strips fit.

    Args:
        shape: Images, strips and rows of the whole batch.
        numbers: Numbers held for each row of a strip.
        device: The tensors' device.
        copied: Further numbers for each row of a tile of several strips, which are
            copied to stand side by side.
    """
    images, strips, rows = shape
    budget = cached_scores(device)
    fitting_rows = budget // numbers
    fitting_strips = min(budget, MULTI_STRIP_BUDGET.get(device.type, budget))
    fitting_strips //= (numbers + copied) * rows
    return (max(1, min(images, fitting_strips // strips)),
            max(1, min(strips, fitting_strips)),
            max(1, min(rows, fitting_rows)))


def tiles(shape: tuple[int, int, int],
          steps: tuple[int, int, int]) -> Iterator[Tile]:
    """Iterate over the tiles of a batch, strip by strip.

    Args:
        shape: Images, strips and rows of the whole batch.
        steps: Images, strips and rows of the largest tile.
    """
    if not prod(shape):
        return
    for starts in product(*map(range, (0, 0, 0), shape, steps)):
        yield Tile(*(slice(start, min(start + step, end))
                     for start, step, end in zip(starts, steps, shape)))


def overlap_add(x: Tensor, dim: int, step: int) -> Tensor:
    """Sum overlapping pieces: the transpose of ``unfold(dim, length, step)``.

    Args:
        x: (..., pieces, length, ...), with the pieces in dimension ``dim``.
        dim: The pieces' dimension, not negative.
        step: Distance between the first elements of two neighbouring pieces.

    Returns:
        (..., at least (pieces - 1) * step + length, ...), the rest zeros.
    """
    pieces, length = x.shape[dim:dim + 2]
    if pieces == 1:
        return x.flatten(dim, dim + 1)
    # (..., pieces + ceil(length / step) - 1, step, ...)
    total = x.new_zeros(*x.shape[:dim], pieces + ceil(length / step) - 1, step,
                        *x.shape[dim + 2:])
    # Add ``step`` elements of all pieces at a time: these never overlap.
    for i, part in enumerate(x.split(step, dim + 1)):
        total.narrow(dim, i, pieces).narrow(
            dim + 1, 0, part.shape[dim + 1]).add_(part)
    return total.flatten(dim, dim + 1)
