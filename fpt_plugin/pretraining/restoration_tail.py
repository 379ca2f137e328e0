"""Restore pixels from the maps of a neck."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.checks import check_flags, check_positive_int

# Side in pixels of a cell whose pixels are predicted together: the usual stride of
# a neck's finest map.
CELL = 4


class RestorationTail(BaseModule):
    """Restore images by small filters predicted from a neck's maps.

    Maps of stride 4 and more do not contain single pixels, so these come from the
    degraded image: for each pixel the tail predicts a filter over its neighbours,
    added to the identity, and a residual (kernel prediction, Mildenhall et al.,
    CVPR 2018). The maps only have to encode the content at each position, which
    dense prediction needs too. The last convolution starts at zero: an untrained
    tail returns the degraded image bit for bit.

    One convolution reads all maps, as in the heads of detectors, and the results
    are added at stride 4. All tasks share the tail. Only a scale and a shift of its
    channels depend on the task, so each step trains every parameter.

    Args:
        in_channels: Channels of each map.
        tasks: Number of tasks.
        image_channels: Channels of the images.
        channels: Width of the tail.
        kernel_size: Side of the filters, odd; 1 is a factor for each pixel.
        see_pixels: Whether the tail also reads the pixels of each cell. It needs
            them to find thin streaks, but the maps then have less to learn.
        init_cfg: See BaseModule.

    Raises:
        TypeError: An argument is no int.
        ValueError: One is below 1, or ``kernel_size`` is even.
    """

    def __init__(self,
                 in_channels: int,
                 tasks: int,
                 image_channels: int = 3,
                 channels: int = 64,
                 kernel_size: int = 5,
                 see_pixels: bool = False,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        check_positive_int('channels', channels)
        check_flags(see_pixels=see_pixels)
        if check_positive_int('kernel_size', kernel_size) % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}')
        self.reduce = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.pixels = nn.Conv2d(
            image_channels * CELL**2, channels, 1) if see_pixels else None
        self.task_embedding = nn.Embedding(tasks, 2 * channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.predict = nn.Conv2d(
            channels, CELL**2 * (kernel_size**2 + image_channels), 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the last convolution; give the tasks small random differences."""
        nn.init.normal_(self.task_embedding.weight, std=0.02)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def init_weights(self) -> None:
        """Reset the parameters, which a parent's init_cfg may have changed."""
        super().init_weights()
        self.reset_parameters()

    def forward(self, maps: Sequence[Tensor], images: Tensor,
                tasks: Tensor) -> Tensor:
        """Restore images.

        Args:
            maps: (B, in_channels, h_i, w_i), of any strides.
            images: (B, image_channels, H, W), degraded.
            tasks: Indices of the tasks (B,).

        Returns:
            (B, image_channels, H, W).
        """
        height, width = images.shape[2:]
        size = (-(-height // CELL), -(-width // CELL))
        x = sum(  # (B, channels, H / 4, W / 4)
            self._resized(self.reduce(x), size) for x in maps) / len(maps)
        if self.pixels is not None:
            cells = F.pad(images, (0, -width % CELL, 0, -height % CELL), 'replicate')
            x = x + self.pixels(F.pixel_unshuffle(cells, CELL))
        scale, shift = self.task_embedding(  # (B, channels, 1, 1) each
            tasks)[..., None, None].chunk(2, dim=1)
        x = F.gelu(x * (1 + scale) + shift)
        x = F.gelu(self.mix(x))  # (B, channels, H / 4, W / 4)
        x = F.pixel_shuffle(  # (B, k * k + image_channels, H, W)
            self.predict(x), CELL)[..., :height, :width]
        # The sum over neighbours uses the images' precision, also under autocast.
        x = x.to(images.dtype)
        kernels, residual = x.split([x.shape[1] - images.shape[1], images.shape[1]], 1)
        return images + residual + apply_filters(images, kernels)

    @staticmethod
    def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[2:] == size:
            return x
        return F.interpolate(x, size, mode='bilinear', align_corners=False)


def apply_filters(images: Tensor, kernels: Tensor) -> Tensor:
    """Apply a separate filter to each pixel; the border is replicated.

    Args:
        images: (B, C, H, W).
        kernels: Weights (B, k * k, H, W) of the k x k neighbours of a pixel, row by
            row, shared by all channels.

    Returns:
        (B, C, H, W).
    """
    side = isqrt(kernels.shape[1])
    height, width = images.shape[2:]
    padded = F.pad(images, [side // 2] * 4, mode='replicate')
    out = torch.zeros_like(images)
    # Views of the neighbours: unfolding would save k * k copies of the images.
    for i, weight in enumerate(kernels.split(1, dim=1)):
        top, left = divmod(i, side)
        out = torch.addcmul(
            out, weight, padded[..., top:top + height, left:left + width])
    return out
