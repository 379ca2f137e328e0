"""Images of any size through a network of one size, without seams."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def in_crops(network: Callable[[Tensor], Tensor], images: Tensor, crop: int,
             overlap: int, scale: int = 1, batch: int = 16) -> Tensor:
    """Run a network on overlapping crops and blend what it gives.

    Args:
        network: Crops (n, C, crop, crop) to (n, C', scale * crop, scale * crop).
        images: (B, C, H, W). Those smaller than a crop are continued at their
            right and lower border by its pixels.
        crop: Side of a crop.
        overlap: Pixels that neighbouring crops share at least.
        scale: How much the network enlarges.
        batch: Crops at a time.

    Returns:
        (B, C', scale * H, scale * W).

    Raises:
        ValueError: ``overlap`` is negative, or no less than ``crop``.
    """
    if not 0 <= overlap < crop:
        raise ValueError(f'overlap must be in [0, crop={crop}), got {overlap}')
    height, width = images.shape[2:]
    images = F.pad(images, (0, max(0, crop - width), 0, max(0, crop - height)),
                   mode='replicate')
    rows, columns = (_starts(side, crop, overlap) for side in images.shape[2:])
    places = [(image, row, column) for image in range(len(images))
              for row in rows for column in columns]
    weight = _window(scale * crop, scale * overlap, images)
    out, total = None, None
    for first in range(0, len(places), batch):
        some = places[first:first + batch]
        crops = network(torch.stack([
            images[i, :, row:row + crop, column:column + crop]
            for i, row, column in some]))
        if out is None:
            sides = [scale * side for side in images.shape[2:]]
            out = crops.new_zeros(len(images), crops.shape[1], *sides)
            total = crops.new_zeros(len(images), 1, *sides)
        for (i, row, column), piece in zip(some, crops):
            place = (i, slice(None),
                     slice(scale * row, scale * (row + crop)),
                     slice(scale * column, scale * (column + crop)))
            out[place] += weight * piece
            total[place] += weight
    out = out / total
    return out[:, :, :scale * height, :scale * width]


def _starts(side: int, crop: int, overlap: int) -> list[int]:
    """Where crops begin: the first and last at the borders, evenly between."""
    count = 1 + -(-(side - crop) // (crop - overlap))
    if count == 1:
        return [0]
    return [round(i * (side - crop) / (count - 1)) for i in range(count)]


def _window(side: int, overlap: int, like: Tensor) -> Tensor:
    """Weights of a crop's pixels: 1 inside, falling to its borders."""
    steps = torch.arange(1, side + 1, device=like.device, dtype=like.dtype)
    ramp = torch.minimum(steps, steps.flip(0)).clamp(max=overlap + 1)
    ramp = ramp / (overlap + 1)
    return ramp[:, None] * ramp
