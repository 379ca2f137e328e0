"""Transforms for images without labels that mmcv does not have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement

from ..layers.checks import check_positive_int, check_sides
from ..openmmlab.registry import register

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'area', 'lanczos')  # of mmcv


@register(TRANSFORMS)
class RandomResizedCrop(BaseTransform):
    """Crop a part of random area and aspect ratio, and resize it.

    Args:
        scale: Height and width of the result, or one number for both.
        area: Lower and upper limit of the crop's share of the image area.
        aspect_ratio: Lower and upper limit of width / height.
        interpolation: ``'nearest'``, ``'bilinear'``, ``'bicubic'``, ``'area'`` or
            ``'lanczos'``.
        min_side: Images with a shorter side raise an error, because a crop enlarged
            from a few pixels has no detail. The default is the side of a mask unit.

    Raises:
        TypeError: A side is no int.
        ValueError: An argument is out of range, or an image is too small.
    """

    def __init__(self,
                 scale: int | Sequence[int],
                 area: tuple[float, float] = (0.2, 1.),
                 aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
                 interpolation: str = 'bicubic',
                 min_side: int = 32) -> None:
        self.scale = check_sides('scale', scale)
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise ValueError('area must be two shares, 0 < low <= high <= 1, '
                             f'got {area}')
        if len(aspect_ratio) != 2 or not \
                0 < aspect_ratio[0] <= aspect_ratio[1] < math.inf:
            raise ValueError('aspect_ratio must be two numbers, 0 < low <= high, '
                             f'got {aspect_ratio}')
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f'interpolation must be one of {INTERPOLATIONS}, got '
                             f'{interpolation!r}')
        self.area, self.aspect_ratio = tuple(area), tuple(aspect_ratio)
        self.interpolation = interpolation
        self.min_side = check_positive_int('min_side', min_side)

    def transform(self, results: dict) -> dict:
        """Crop and resize ``img``."""
        image = results['img']
        height, width = image.shape[:2]
        if min(height, width) < self.min_side:
            raise ValueError(
                f'images must have sides of at least min_side={self.min_side}, got '
                f'{height}x{width} in {results.get("img_path", "an image")}')
        top, left, rows, columns = self._part(height, width)
        image = mmcv.imresize(
            image[top:top + rows, left:left + columns],
            self.scale[::-1],
            interpolation=self.interpolation)
        results['img'] = image if image.ndim == 3 else image[..., None]
        results['img_shape'] = self.scale
        return results

    def _part(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of the crop.

        If no drawn crop fits, it is the largest centred one.
        """
        low, high = map(math.log, self.aspect_ratio)
        for _ in range(10):
            area = height * width * np.random.uniform(*self.area)
            ratio = math.exp(np.random.uniform(low, high))
            rows = round(math.sqrt(area / ratio))
            columns = round(math.sqrt(area * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                return (np.random.randint(height - rows + 1),
                        np.random.randint(width - columns + 1), rows, columns)
        # The largest centred crop with an allowed aspect ratio.
        ratio = min(max(width / height, self.aspect_ratio[0]), self.aspect_ratio[1])
        rows = min(height, max(1, round(width / ratio)))
        columns = min(width, max(1, round(height * ratio)))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(scale={self.scale}, area={self.area}, '
                f'aspect_ratio={self.aspect_ratio})')


@register(TRANSFORMS)
class PackImage(BaseTransform):
    """Pack an image for mmengine's ImgDataPreprocessor."""

    def transform(self, results: dict) -> dict:
        """Return ``inputs``, the image as a tensor (C, H, W).

        After :class:`~fpt_plugin.Degrade` there is also a data sample with
        ``gt_img``, the clean image as a tensor, and the name of the ``task``;
        after :class:`~fpt_plugin.LoadReference` also ``ref_img``.
        """
        packed = dict(inputs=_to_tensor(results['img']))
        if 'gt_img' in results:
            packed['data_samples'] = BaseDataElement(
                metainfo=dict(
                    task=results['task'], img_path=results.get('img_path')),
                gt_img=_to_tensor(results['gt_img']))
            if 'ref_img' in results:
                packed['data_samples'].ref_img = _to_tensor(results['ref_img'])
        return packed


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert an image (H, W[, C]) to a tensor (C, H, W)."""
    if image.ndim == 2:
        image = image[..., None]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
