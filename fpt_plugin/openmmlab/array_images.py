"""Load images given as arrays in the same way as image files.

mmdet and mmseg rewrite the first step of the test pipeline when the first image
is an array. A path after an array, or an array after a path, then raises a
KeyError. Grey arrays do not fit the mean of three channels. Arrays of 16 bits or
with values from 0 to 1 are silently normalised as if they were from 0 to 255.
"""

from __future__ import annotations

import numpy as np
from mmcv.transforms import LoadImageFromFile


def load_arrays_as_files() -> None:
    """Make the image loaders of mmdet and mmseg accept both paths and arrays."""
    LoadImageFromFile.__call__ = _load


def _load(loader: LoadImageFromFile, results: dict) -> dict | None:
    """Load an image as ``loader.transform`` does, from a path or an array."""
    if not isinstance(results, dict):
        return loader.transform(results)
    cls, reads_files = type(loader), LoadImageFromFile.transform
    is_array_loader = any(
        c.__name__ == 'LoadImageFromNDArray' for c in cls.__mro__)
    if results.get('img_path') is not None or 'img' not in results:
        if is_array_loader and 'img' not in results:
            return reads_files(loader, results)
        return loader.transform(results)
    image = results['img']
    if isinstance(image, np.ndarray) and _decodes_to_bytes(loader):
        image = _as_decoded(image, loader.color_type)
    results = dict(results, img=image)
    if cls.transform is not reads_files:
        return loader.transform(results)
    if loader.to_float32:
        image = image.astype(np.float32)
    return dict(results, img=image, img_path=None, img_shape=image.shape[:2],
                ori_shape=image.shape[:2])


def _decodes_to_bytes(loader: LoadImageFromFile) -> bool:
    """Return whether the loader decodes every file to values from 0 to 255."""
    return loader.color_type != 'unchanged' \
        and loader.imdecode_backend != 'tifffile'


def _as_decoded(image: np.ndarray, color_type: str) -> np.ndarray:
    """Convert an array to the image that decoding its file would give.

    Raises:
        ValueError: The shape is not (H, W) or (H, W, C), or the values are not
            from 0 to 255.
    """
    shape = image.shape
    channels = shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or not image.size \
            or channels > 4 and shape[0] in (1, 3):
        raise ValueError(
            'an image must be an array (H, W), (H, W, 1) or (H, W, 3), several '
            f'images a list of them, got an array of shape {shape}')
    if channels not in (1, 3):
        return image  # from a sensor with an unknown range of values
    image = _in_bytes_range(image)
    if channels == 1 and color_type.startswith('color'):
        image = np.repeat(image.reshape(*shape[:2], 1), 3, axis=2)
    return image


def _in_bytes_range(image: np.ndarray) -> np.ndarray:
    """Return the image with values from 0 to 255, or raise a ValueError.

    Floats may exceed that range a little, as after interpolation.
    """
    if image.dtype == np.uint8:
        return image
    low, high = image.min(), image.max()
    if image.dtype.kind in 'iu' and 0 <= low and high <= 255:
        return image.astype(np.uint8)
    # A nearly black float image is refused as well: it can be given as uint8.
    if image.dtype.kind == 'f' and (
            low == high == 0 or -128 < low and 3 < high < 383):
        return image
    raise ValueError(
        'an image must hold values from 0 to 255, got an array of '
        f'{image.dtype} from {low} to {high}. Scale it to uint8: 16 bits by '
        '(image / 257).astype(np.uint8), 0 to 1 by (image * 255).astype('
        'np.uint8). A model that was trained on such values has '
        "color_type='unchanged' in the LoadImageFromFile of its pipelines")
