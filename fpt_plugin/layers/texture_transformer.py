"""Layers of TTSR: add textures of a reference to features, and exchange scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextureTransformer(nn.Module):
    """Add textures to features with soft attention: X + conv([X, T]) * S.

    If the reference has no similar patch, S is small and the features hardly change
    (TTSR, arXiv 2006.04139, Eq. 7). The textures T and the soft attention S come from
    :func:`fpt_plugin.functional.texture_transfer`.

    Args:
        channels: Channels of the features.
        texture_channels: Channels of the textures.
    """

    def __init__(self, channels: int, texture_channels: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(channels + texture_channels, channels, 3, padding=1)

    def forward(self, x: Tensor, texture: Tensor, soft: Tensor) -> Tensor:
        """Add textures.

        Args:
            x: (B, C, H, W).
            texture: (B, C', H, W).
            soft: (B, 1, h, w), resized to (H, W) by bicubic interpolation.

        Returns:
            (B, C, H, W).
        """
        if soft.shape[2:] != x.shape[2:]:
            soft = F.interpolate(soft, x.shape[2:], mode='bicubic')
        return x + self.fuse(torch.cat([x, texture], dim=1)) * soft


class CrossScaleIntegration(nn.Module):
    """Exchange features between all scales (TTSR, Sec. 3.2, CSFI).

    Coarse maps are resized by bicubic interpolation before a 1x1 convolution, fine maps
    are reduced by 3x3 convolutions with stride 2.

    Args:
        channels: Channels of each map.
        num_scales: Number of maps, each twice as large as the one before.
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
        """Integrate maps (B, C, 2^i h, 2^i w) of scales i; sizes stay the same."""
        outs = []
        for target, merge in enumerate(self.merge):
            sources = []  # of the target's size
            for source, x in enumerate(maps):
                if source < target:
                    x = F.interpolate(
                        x, maps[target].shape[2:], mode='bicubic')
                if source != target:
                    x = self.paths[f'{source}_{target}'](x)
                sources.append(x)
            outs.append(merge(torch.cat(sources, dim=1)))
        return outs
