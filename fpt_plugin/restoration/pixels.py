"""Convert normalised images back to pixels."""

from __future__ import annotations

from mmengine.model import BaseDataPreprocessor
from torch import Tensor

# Converts image files (BGR) to RGB in [-1, 1].
RGB = dict(type='ImgDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3,
           bgr_to_rgb=True)


def moments(preprocessor: BaseDataPreprocessor
            ) -> tuple[Tensor | float, Tensor | float]:
    """Return the mean and standard deviation that normalise images."""
    return getattr(preprocessor, 'mean', 0.), getattr(preprocessor, 'std', 1.)


def to_pixels(preprocessor: BaseDataPreprocessor, images: Tensor) -> Tensor:
    """Invert the normalisation of mmengine's ImgDataPreprocessor.

    Args:
        preprocessor: The preprocessor of the images.
        images: Normalised images (B, C, H, W).

    Returns:
        Images in 0..255, not rounded or clipped, with channels in the order of the
        files.
    """
    mean, std = moments(preprocessor)
    images = images * std + mean
    if getattr(preprocessor, '_channel_conversion', False):
        images = images.flip(1)
    return images
