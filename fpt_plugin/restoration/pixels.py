"""From normalised images back to pixels."""

from __future__ import annotations

from mmengine.model import BaseDataPreprocessor
from torch import Tensor


def to_pixels(preprocessor: BaseDataPreprocessor, images: Tensor) -> Tensor:
    """Undo what mmengine's ImgDataPreprocessor does.

    Args:
        preprocessor: What has normalised the images, or a plain one.
        images: (B, C, H, W).

    Returns:
        The same in 0..255, not rounded or clipped, with channels in the order of
        the files.
    """
    if getattr(preprocessor, '_enable_normalize', False):
        images = images * preprocessor.std + preprocessor.mean
    if getattr(preprocessor, '_channel_conversion', False):
        images = images.flip(1)
    return images
