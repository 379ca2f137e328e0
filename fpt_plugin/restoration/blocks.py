"""Building blocks of the restoration networks."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Sequential):
    """Residual block: two convolutions with a ReLU between them.

    Args:
        channels: Channels of the maps.
        kernel_size: Odd side of the convolutions.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        padding = kernel_size // 2
        super().__init__(
            nn.Conv2d(channels, channels, kernel_size, padding=padding), nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size, padding=padding))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return x + super().forward(x)
