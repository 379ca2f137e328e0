"""What networks of restoration are made of."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Sequential):
    """x + two convolutions with a ReLU between them.

    Args:
        channels: Of the maps.
        kernel_size: Of the convolutions, odd.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        padding = kernel_size // 2
        super().__init__(
            nn.Conv2d(channels, channels, kernel_size, padding=padding), nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size, padding=padding))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return x + super().forward(x)
