"""Small PixelGPTs, and images in few colours."""

from __future__ import annotations

import torch
from torch import Tensor

from fpt_plugin import PixelGPT

SMALL = dict(depth=2, embed_dims=16, num_heads=2)
COLOURS = 6


def pixel_gpt(size: dict = SMALL, image_size: int | tuple = (5, 4), **settings
              ) -> PixelGPT:
    """A small one that predicts something, with a palette."""
    settings = {'colours': COLOURS, 'palette': colours(), **settings}
    generator = torch.Generator().manual_seed(0)
    model = PixelGPT(size, image_size, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * 0 + 0.4 * noise)
    return model


def colours(count: int = COLOURS) -> Tensor:
    """Different ones, at least 20 apart."""
    steps = torch.arange(count, dtype=torch.float32)
    return torch.stack([20 * steps, 200 - 20 * steps, 10 * steps], 1)


def images(batch: int = 2, size: tuple = (5, 4), count: int = COLOURS,
           seed: int = 0) -> Tensor:
    """Random pixels near the palette's colours: (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(count, (batch, *size), generator=generator)
    noise = torch.randn(batch, 3, *size, generator=generator)
    return (colours(count)[tokens].movedim(3, 1) + noise).clamp(0, 255)
