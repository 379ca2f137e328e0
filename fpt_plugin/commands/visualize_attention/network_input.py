"""The network's input for an image in testing, and its pixel coordinates."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...openmmlab.models import unwrapped


@dataclass(frozen=True)
class NetworkView:
    """Input of one forward pass, and its position in the image.

    Attributes:
        inputs: (1, C, H, W), normalised, padded and cropped.
        scale: Input pixels per image pixel, in x and in y.
        offset: x and y of the view in the whole input; not 0 for crops.
    """

    inputs: Tensor
    scale: tuple[float, float]
    offset: tuple[int, int] = (0, 0)

    def cell(self, point: tuple[int, int],
             size: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of an image pixel in a map of size (h, w).

        A map divides the whole view, padding included, into equal cells.
        """
        column, row = (
            int(((pixel + 0.5) * scale - offset) * cells / side)
            for pixel, scale, offset, cells, side in zip(
                point, self.scale, self.offset, reversed(size),
                reversed(self.inputs.shape[2:])))
        return min(max(row, 0), size[0] - 1), min(max(column, 0), size[1] - 1)

    def box(self) -> tuple[float, float, float, float]:
        """Return x0, y0, x1, y1 of the view in image pixels.

        With padding the box extends beyond the image.
        """
        height, width = self.inputs.shape[2:]
        (x0, y0), (x, y) = self.offset, self.scale
        return x0 / x, y0 / y, (x0 + width) / x, (y0 + height) / y

    def distance(self, point: tuple[int, int]) -> float:
        """Return a pixel's distance to the view's centre, infinite outside."""
        x0, y0, x1, y1 = self.box()
        x, y = point[0] + 0.5, point[1] + 0.5
        if not (x0 <= x <= x1 and y0 <= y <= y1):
            return math.inf
        return math.hypot(x - (x0 + x1) / 2, y - (y0 + y1) / 2)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as the libraries' pipelines do: (H, W, 3), BGR.

    Raises:
        OSError: The file does not exist or cannot be read.
        ValueError: The file is not an image.
    """
    try:
        image = mmcv.imread(str(path))
    except cv2.error:  # an empty file
        image = None
    if image is None:
        raise ValueError(f'{path} is not an image that can be read')
    return image


def network_views(model: nn.Module, cfg: Config,
                  path: str | Path) -> list[NetworkView]:
    """Prepare an image with the config's test pipeline and the preprocessor.

    Annotations are not loaded and the image is not flipped.

    Args:
        model: A detector or segmentor.
        cfg: Its config.
        path: The image.

    Returns:
        One view, or the crops of a segmentor with sliding-window inference.

    Raises:
        OSError: The image cannot be read.
        ValueError: The file is not an image, or the config has no suitable
            test pipeline.
    """
    image = read_image(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        data, scale = _run_pipeline(test_pipeline(cfg), path, image)
        inputs = _preprocessor(model)(data, False)['inputs']
    for side, length, factor in zip(inputs.shape[:1:-1], image.shape[1::-1],
                                    scale):
        if length * factor > side + 1:
            raise ValueError('the test pipeline must keep the whole image, '
                             f'{image.shape[1]}x{image.shape[0]}, but it leaves '
                             f'{inputs.shape[3]}x{inputs.shape[2]} of it, '
                             'resized by '
                             f'{scale[0]:.3g} and {scale[1]:.3g}')
    return [
        NetworkView(inputs[:, :, y0:y1, x0:x1], scale, (x0, y0))
        for x0, y0, x1, y1 in _crops(unwrapped(model), *inputs.shape[2:])
    ]


def test_pipeline(cfg: Config) -> list[dict]:
    """Return the config's test transforms, without annotations and flips.

    Raises:
        ValueError: The config has no test pipeline.
    """
    pipeline = _find_pipeline(cfg.get('test_dataloader'))
    pipeline = pipeline or cfg.get('test_pipeline')
    if not pipeline:
        raise ValueError('the config must have a test_dataloader, whose '
                         'pipeline prepares the image, got none')
    return [
        copy.deepcopy(transform) for transform in pipeline
        if not _name(transform).endswith(('Annotations', 'RandomFlip'))
    ]


def _name(transform: dict) -> str:
    kind = transform['type']
    return kind if isinstance(kind, str) else kind.__name__


def _find_pipeline(config: object) -> list[dict] | None:
    """Find the first pipeline of a dataloader, also inside dataset wrappers."""
    if isinstance(config, (list, tuple)):
        config = config[0] if config else None
    if not isinstance(config, dict):
        return None
    for name in ('dataset', 'datasets'):
        found = _find_pipeline(config.get(name))
        if found:
            return found
    return config.get('pipeline')


def _run_pipeline(pipeline: list[dict], path: str | Path,
                  image: np.ndarray) -> tuple[dict, tuple[float, float]]:
    """Return a batch of one image, and the factors of its resizing.

    The factors are read after each transform, because the packed result may
    not have them or have only those of the last resizing.
    """
    results = dict(img_path=str(path), img=image, img_id=0)
    scale = (1., 1.)
    for transform in Compose(pipeline).transforms:
        results = transform(results)
        if results is None:
            raise ValueError('the test pipeline must keep the image, but '
                             f'{type(transform).__name__} drops {path}')
        factor = results.pop('scale_factor', None)
        if factor is not None:
            scale = tuple(
                float(s * f) for s, f in zip(scale, np.ravel(factor)))
    if not isinstance(results.get('inputs'), Tensor):
        raise ValueError('the test pipeline must end with one tensor of the '
                         f'image as inputs, got {sorted(results)}')
    samples = results.get('data_samples')
    return dict(
        inputs=[results['inputs']],
        data_samples=None if samples is None else [samples]), scale


def _preprocessor(model: nn.Module) -> nn.Module:
    """Return the preprocessor that makes batches: a wrapper's or its model's."""
    found = [
        m.data_preprocessor for m in (model, unwrapped(model))
        if getattr(m, 'data_preprocessor', None) is not None
    ]
    useful = [p for p in found if type(p) is not BaseDataPreprocessor]
    if not useful:
        raise ValueError('the model must have a data_preprocessor that makes a '
                         'batch of images, as the libraries\' own do, got none')
    return useful[0]


def _crops(model: nn.Module, height: int,
           width: int) -> list[tuple[int, int, int, int]]:
    """Return x0, y0, x1, y1 of each crop, as mmseg's sliding window cuts them."""
    cfg = getattr(model, 'test_cfg', None) or {}
    if cfg.get('mode') != 'slide':
        return [(0, 0, width, height)]

    def starts(length: int, crop: int, stride: int) -> list[int]:
        count = max(length - crop + stride - 1, 0) // stride + 1
        return [max(min(i * stride, length - crop), 0) for i in range(count)]

    (rows, columns), strides = cfg['crop_size'], cfg['stride']
    return [(x, y, min(x + columns, width), min(y + rows, height))
            for y in starts(height, rows, strides[0])
            for x in starts(width, columns, strides[1])]


def closest_view(views: list[NetworkView], point: tuple[int, int]) -> int:
    """Return the index of the view whose centre is closest to a pixel."""
    return min(range(len(views)), key=lambda i: views[i].distance(point))


def check_point(point: tuple[int, int], image: np.ndarray) -> None:
    """Check that a point lies in an image.

    Raises:
        ValueError: The point lies outside the image.
    """
    height, width = image.shape[:2]
    if not (0 <= point[0] < width and 0 <= point[1] < height):
        raise ValueError(
            f'point must lie in the image, whose width is {width} and height '
            f'{height} (x from 0 to {width - 1}, y from 0 to {height - 1}), got '
            f'{point[0]},{point[1]}')


def grid_points(number: int, image: np.ndarray) -> list[tuple[int, int]]:
    """Return the centres of number x number equal parts, row by row."""
    height, width = image.shape[:2]
    middles = [(2 * i + 1) / (2 * number) for i in range(number)]
    return [(int(width * x), int(height * y)) for y in middles for x in middles]


def as_batch(points: list[tuple[int, int]], device: torch.device) -> Tensor:
    """Convert rows and columns to a tensor (P, 2)."""
    return torch.tensor(points, dtype=torch.long, device=device).view(-1, 2)
