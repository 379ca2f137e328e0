"""From normalised images back to pixels."""

from __future__ import annotations

from mmengine.model import BaseDataPreprocessor
from torch import Tensor

# Files become RGB in [-1, 1].
RGB = dict(type='ImgDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3,
           bgr_to_rgb=True)


def moments(preprocessor: BaseDataPreprocessor
            ) -> tuple[Tensor | float, Tensor | float]:
    """Mean and standard deviation of what is subtracted and divided by."""
    return getattr(preprocessor, 'mean', 0.), getattr(preprocessor, 'std', 1.)


def to_pixels(preprocessor: BaseDataPreprocessor, images: Tensor) -> Tensor:
    """Undo what mmengine's ImgDataPreprocessor does.

    Args:
        preprocessor: What has normalised the images, or a plain one.
        images: (B, C, H, W).

    Returns:
        The same in 0..255, not rounded or clipped, with channels in the order of
        the files.
    """
    mean, std = moments(preprocessor)
    images = images * std + mean
    if getattr(preprocessor, '_channel_conversion', False):
        images = images.flip(1)
    return images
