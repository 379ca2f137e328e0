"""Run a network of fixed input size on images of any size, without seams."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def in_crops(network: Callable[[Tensor], Tensor], images: Tensor, crop: int,
             overlap: int, scale: int = 1, batch: int = 16) -> Tensor:
    """Run a network on overlapping crops and blend the results.

    Args:
        network: Maps crops (n, C, crop, crop) to
            (n, C', scale * crop, scale * crop).
        images: (B, C, H, W). Images smaller than a crop are padded on the right and
            below by replicating the border.
        crop: Side of a crop.
        overlap: Minimum number of pixels that neighbouring crops share.
        scale: Enlargement of the network.
        batch: Number of crops per call.

    Returns:
        (B, C', scale * H, scale * W).

    Raises:
        ValueError: ``overlap`` is negative or not less than ``crop``.
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
        chunk = places[first:first + batch]
        results = network(torch.stack([  # (n, C', scale * crop, scale * crop)
            images[i, :, row:row + crop, column:column + crop]
            for i, row, column in chunk]))
        if out is None:
            sides = [scale * side for side in images.shape[2:]]
            out = results.new_zeros(len(images), results.shape[1], *sides)
            total = results.new_zeros(len(images), 1, *sides)
        for (i, row, column), result in zip(chunk, results):
            place = (i, slice(None),
                     slice(scale * row, scale * (row + crop)),
                     slice(scale * column, scale * (column + crop)))
            out[place] += weight * result
            total[place] += weight
    out = out / total  # (B, C', scale * H, scale * W), of the padded size
    return out[:, :, :scale * height, :scale * width]


def _starts(side: int, crop: int, overlap: int) -> list[int]:
    """Return the first pixel of each crop, evenly spaced from border to border."""
    count = 1 + -(-(side - crop) // (crop - overlap))
    if count == 1:
        return [0]
    return [round(i * (side - crop) / (count - 1)) for i in range(count)]


def _window(side: int, overlap: int, like: Tensor) -> Tensor:
    """Return a crop's weights (side, side): 1 inside, decreasing to the border."""
    steps = torch.arange(1, side + 1, device=like.device, dtype=like.dtype)
    ramp = torch.minimum(steps, steps.flip(0)).clamp(max=overlap + 1)
    ramp = ramp / (overlap + 1)
    return ramp[:, None] * ramp
