"""Maps cut into strips of columns, and how many are computed together.

A batch of maps is an array of images, strips of columns and rows (or rows of
cells) of each strip. On a CPU a tile is some rows of one strip, so that its
numbers stay in the caches. A GPU wants few large products: a tile is as many
whole strips, and then whole images, as the budget allows.
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
TOGETHER = {'cpu': 1 << 17}


class Tile(NamedTuple):
    """An index of arrays (images, strips, rows, ...)."""

    images: slice
    strips: slice
    rows: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, strips and rows."""
        return tuple(at.stop - at.start for at in self)

    @property
    def one_strip(self) -> bool:
        """Whether the rows are those of one strip of one image."""
        return self.shape[:2] == (1, 1)


def tile_shape(shape: tuple[int, int, int],
               numbers: int,
               device: torch.device,
               copied: int = 0) -> tuple[int, int, int]:
    """Images, strips and rows of the largest tile.

    Several strips only where all their rows fit, and several images only where
    all their strips do.

    Args:
        shape: Images, strips and rows of the whole batch.
        numbers: What is held of a row of a strip.
        device: Of the tensors.
        copied: What more is held of it where strips are put side by side.
    """
    images, strips, rows = shape
    budget = cached_scores(device)
    fitting = budget // numbers
    together = min(budget, TOGETHER.get(device.type, budget))
    together //= (numbers + copied) * rows
    return (max(1, min(images, together // strips)),
            max(1, min(strips, together)), max(1, min(rows, fitting)))


def tiles(shape: tuple[int, int, int],
          steps: tuple[int, int, int]) -> Iterator[Tile]:
    """The tiles of a batch, those of a strip one after the other.

    Args:
        shape: Images, strips and rows of the whole batch.
        steps: Those of the largest tile.
    """
    if not prod(shape):
        return
    for starts in product(*map(range, (0, 0, 0), shape, steps)):
        yield Tile(*(slice(start, min(start + step, end))
                     for start, step, end in zip(starts, steps, shape)))


def overlap_add(x: Tensor, dim: int, step: int) -> Tensor:
    """Sum pieces that overlap: the transpose of ``unfold(dim, length, step)``.

    Args:
        x: (..., pieces, length, ...), with the pieces in dimension ``dim``.
        dim: Of the pieces, not negative.
        step: Distance of the first elements of two pieces.

    Returns:
        (..., at least (pieces - 1) * step + length, ...), the rest zeros.
    """
    pieces, length = x.shape[dim:dim + 2]
    if pieces == 1:
        return x.flatten(dim, dim + 1)
    total = x.new_zeros(*x.shape[:dim], pieces + ceil(length / step) - 1, step,
                        *x.shape[dim + 2:])
    # ``step`` elements of all pieces at a time: no two of them are the same.
    for i, part in enumerate(x.split(step, dim + 1)):
        total.narrow(dim, i, pieces).narrow(
            dim + 1, 0, part.shape[dim + 1]).add_(part)
    return total.flatten(dim, dim + 1)
