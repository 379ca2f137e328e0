"""Textures of a reference picture added to features (TTSR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextureTransformer(nn.Module):
    """Soft attention of the texture transformer: X + conv([X, T]) * S.

    Where the reference has nothing alike, S is small and features stay as they are
    (TTSR, arXiv 2006.04139, Eq. 7). The textures T and S come from
    :func:`fpt_plugin.functional.texture_transfer`.

    Args:
        channels: Of the features.
        texture_channels: Of the textures.
    """

    def __init__(self, channels: int, texture_channels: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(channels + texture_channels, channels, 3, padding=1)

    def forward(self, x: Tensor, texture: Tensor, soft: Tensor) -> Tensor:
        """Add textures.

        Args:
            x: (B, C, H, W).
            texture: (B, C', H, W).
            soft: (B, 1, h, w), enlarged bicubically to H and W.

        Returns:
            (B, C, H, W).
        """
        if soft.shape[2:] != x.shape[2:]:
            soft = F.interpolate(soft, x.shape[2:], mode='bicubic')
        return x + self.fuse(torch.cat([x, texture], dim=1)) * soft


class CrossScaleIntegration(nn.Module):
    """Each scale reads all others (TTSR, Sec. 3.2, CSFI).

    Coarse maps are enlarged bicubically before a 1x1 convolution, fine ones are
    made smaller by 3x3 convolutions of stride 2.

    Args:
        channels: Of the maps.
        num_scales: How many there are, each twice as large as the one before.
    """

    def __init__(self, channels: int, num_scales: int) -> None:
        super().__init__()
        self.paths = nn.ModuleDict()
        for source in range(num_scales):
            for target in range(num_scales):
                if source < target:
                    path = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())
                elif source > target:
                    path = nn.Sequential(*(
                        layer for _ in range(source - target) for layer in (
                            nn.Conv2d(channels, channels, 3, 2, 1), nn.ReLU())))
                else:
                    continue
                self.paths[f'{source}_{target}'] = path
        self.merge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(num_scales * channels, channels, 3, padding=1),
                          nn.ReLU()) for _ in range(num_scales))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, 2^i h, 2^i w) for each scale i to the same."""
        outs = []
        for target, merge in enumerate(self.merge):
            read = []
            for source, x in enumerate(maps):
                if source < target:
                    x = F.interpolate(
                        x, maps[target].shape[2:], mode='bicubic')
                if source != target:
                    x = self.paths[f'{source}_{target}'](x)
                read.append(x)
            outs.append(merge(torch.cat(read, dim=1)))
        return outs
