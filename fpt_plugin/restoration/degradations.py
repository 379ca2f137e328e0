"""Degrade images by task, to train models that restore them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from torch.nn import functional as F

from ..layers.checks import check_flags
from ..openmmlab.registry import register

# Streaks per pixel of the image, their lengths in pixels, brightness, and the
# largest angle to the vertical. Photographs then have a PSNR of 24 dB.
RAIN_DENSITY = 0.004
RAIN_LENGTHS = (6, 24)
RAIN_BRIGHTNESS = (40., 120.)
RAIN_ANGLE = np.pi / 6


def add_noise(image: np.ndarray, rng: np.random.Generator,
              sigma: float) -> np.ndarray:
    """Add Gaussian noise, without clipping or rounding.

    Args:
        image: (H, W, C), float32, in 0..255.
        rng: Random number generator.
        sigma: Standard deviation, in grey levels of 0..255.
    """
    return image + sigma * rng.standard_normal(image.shape, dtype=np.float32)


def add_rain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add bright streaks of one direction, O = B + R, clipped to 255.

    Args:
        image: (H, W, C), float32, in 0..255.
        rng: Random number generator.
    """
    height, width = image.shape[:2]
    # Streaks may also begin above the image.
    above = RAIN_LENGTHS[1]
    count = rng.poisson(RAIN_DENSITY * (height + above) * width)
    top = rng.integers(-above, height, size=(count, 1))
    left = rng.uniform(0, width, size=(count, 1))
    length = rng.integers(*RAIN_LENGTHS, size=(count, 1))
    brightness = rng.uniform(*RAIN_BRIGHTNESS, size=(count, 1))
    slope = np.tan(rng.uniform(-RAIN_ANGLE, RAIN_ANGLE))
    step = np.arange(above)  # (L,), rows of a streak
    rows = top + step  # (N, L)
    columns = (left + step * slope) % width
    light = brightness * (step < length)
    # Distribute each row of a streak to its two nearest pixels (linear weights).
    first = np.floor(columns).astype(int)
    fraction = columns - first
    layer = np.zeros(height * width)
    for column, weight in ((first, 1 - fraction), (first + 1, fraction)):
        inside = (rows >= 0) & (rows < height) & (column < width)
        layer += np.bincount(
            rows[inside] * width + column[inside], (light * weight)[inside],
            minlength=height * width)
    layer = layer.reshape(height, width, 1).astype(np.float32)
    return np.minimum(image + layer, 255.)


def downsample(image: np.ndarray, rng: np.random.Generator | None = None,
               scale: int = 2) -> np.ndarray:
    """Reduce an image and round its values, as in an image file.

    Sides that are no multiples of ``scale`` are rounded up.

    Args:
        image: (H, W, C), float32, in 0..255.
        rng: Not used.
        scale: Factor of both sides.

    Returns:
        (H / scale, W / scale, C).
    """
    height, width = image.shape[:2]
    small = resize(image, (-(-height // scale), -(-width // scale)))
    return small.round().clip(0, 255)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by torch's bicubic interpolation with antialiasing.

    Keys' kernel with a = -0.5, scaled to the pixels of the smaller image. This
    equals MATLAB's imresize except at the border, where torch normalises the
    remaining weights and MATLAB mirrors the image.

    Args:
        image: (H, W, C), float32.
        size: Height and width of the result.
    """
    # torch.tensor copies; from_numpy rejects negative strides of flipped images.
    maps = torch.tensor(image).permute(2, 0, 1)[None]  # (1, C, H, W)
    maps = F.interpolate(maps, size, mode='bicubic', antialias=True)
    return maps[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Task:
    """A degradation and the scale of its restoration.

    Attributes:
        degrade: Function of an image (H, W, C), float32 in 0..255, and a random
            number generator.
        scale: Size of the restored image divided by that of the degraded one.
    """

    degrade: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    scale: int = 1


TASKS = dict(
    noise30=Task(partial(add_noise, sigma=30.)),
    noise50=Task(partial(add_noise, sigma=50.)),
    rain=Task(add_rain),
    **{f'sr{scale}': Task(partial(downsample, scale=scale), scale)
       for scale in (2, 3, 4)})


def check_tasks(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """Require distinct names of tasks; a single name becomes a tuple.

    Raises:
        TypeError: They are no names.
        ValueError: A name is unknown or given twice, or there is none.
    """
    names = (tasks, ) if isinstance(tasks, str) else tuple(
        tasks if isinstance(tasks, (list, tuple)) else [tasks])
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f'tasks must be names of {tuple(TASKS)}, got {tasks!r}')
    if not names or len(set(names)) != len(names) or not set(names) <= set(TASKS):
        raise ValueError(f'tasks must be one or several of {tuple(TASKS)}, each '
                         f'once, got {tasks!r}')
    return names


@register(TRANSFORMS)
class Degrade(BaseTransform):
    """Degrade an image by a random task, and keep the clean image.

    ``img`` becomes the degraded image (float32), ``gt_img`` the clean one, ``task``
    the name of the task. Tasks are ``'noise30'`` and ``'noise50'`` (Gaussian noise
    of this standard deviation in grey levels), ``'rain'`` (streaks), and ``'sr2'``,
    ``'sr3'``, ``'sr4'`` (bicubic downsampling with antialiasing).

    Args:
        tasks: Names of tasks, drawn with equal probability.
        enlarge: Whether to enlarge a smaller image bicubically to the size of the
            clean one. False: the clean image is cropped on the right and below to a
            multiple of the scale.
        seed: None: random numbers depend on numpy's seed, as in other transforms.
            An int: the degradation depends only on the seed and the file name, not
            on the order or worker; for validation and test.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A task is unknown, or an image has values outside 0..255.
    """

    def __init__(self,
                 tasks: str | Sequence[str] = tuple(TASKS),
                 enlarge: bool = False,
                 seed: int | None = None) -> None:
        self.tasks = check_tasks(tasks)
        check_flags(enlarge=enlarge)
        self.enlarge = enlarge
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f'seed must be an int or None, got {seed!r}')
        if seed is not None and seed < 0:
            raise ValueError(f'seed must not be negative, got {seed}')
        self.seed = seed

    def transform(self, results: dict) -> dict:
        """Degrade ``img``."""
        path = results.get('img_path', '')
        clean = checked_image(results['img'], path)
        if self.seed is None:
            rng = np.random.default_rng(np.random.randint(2**32, dtype=np.uint64))
        else:
            rng = np.random.default_rng(
                [self.seed, zlib.crc32(Path(path).name.encode())])
        name = self.tasks[rng.integers(len(self.tasks))]
        task = TASKS[name]
        if not self.enlarge:
            height, width = (side // task.scale * task.scale
                             for side in clean.shape[:2])
            if not height or not width:
                raise ValueError(f'images must have sides of at least {task.scale} '
                                 f'for {name}, got {clean.shape[0]}x'
                                 f'{clean.shape[1]} in {path or "an image"}')
            clean = clean[:height, :width]
        image = task.degrade(clean.astype(np.float32), rng)
        if self.enlarge and task.scale > 1:
            image = resize(image, clean.shape[:2])
        results.update(
            img=image, gt_img=clean, task=name, img_shape=image.shape[:2])
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(tasks={self.tasks}, '
                f'enlarge={self.enlarge}, seed={self.seed})')


def read_image(path: str) -> np.ndarray:
    """Read an image file as BGR (H, W, 3) in 0..255.

    Raises:
        ValueError: It is no readable image with 8 bits per channel.
    """
    image = mmcv.imread(path)
    if image is None:
        raise ValueError(f'{path} is no image that can be read')
    return checked_image(image, path)


def checked_image(image: np.ndarray, path: str = '') -> np.ndarray:
    """Require an image (H, W[, C]) in 0..255; return it as (H, W, C).

    Raises:
        ValueError: It is no such image; the message has its path.
    """
    if image.ndim not in (2, 3) or not image.size:
        raise ValueError('images must be (H, W) or (H, W, C), got '
                         f'{image.shape} in {path or "an image"}')
    if image.dtype != np.uint8 and not (
            image.dtype.kind == 'f' and 0 <= image.min() and image.max() <= 255):
        raise ValueError(
            'images must have values of 0 to 255 (LoadImageFromFile with '
            f"color_type='color'), got {image.dtype} of "
            f'{image.min()} to {image.max()} in {path or "an image"}')
    return image if image.ndim == 3 else image[..., None]
