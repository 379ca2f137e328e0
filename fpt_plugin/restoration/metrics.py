"""PSNR and SSIM of restored images, per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor
from torch.nn import functional as F

from ..layers.checks import check_flags
from ..openmmlab.registry import register
from .degradations import TASKS

# Weights of red, green and blue in the luma of ITU-R BT.601.
LUMA = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 255
# SSIM's Gaussian window (Wang et al., 2004, Sec. III-C): 11 pixels, sigma 1.5.
WINDOW, SIGMA = 11, 1.5
# Strength of non-local means with the best PSNR on 8 training photographs of BSDS500,
# of seven values for noise30 and eight for noise50.
NL_MEANS = dict(noise30=17., noise50=26.)


def psnr(image: Tensor, target: Tensor) -> float:
    """Compute the peak signal-to-noise ratio in dB; inf for equal images.

    Args:
        image: (C, H, W) in 0..255.
        target: (C, H, W) in 0..255.
    """
    error = (image.double() - target.double()).square().mean()
    return (10 * torch.log10(255**2 / error)).item()


def ssim(image: Tensor, target: Tensor) -> float:
    """Compute the structural similarity, averaged over channels.

    Wang et al., 2004: Gaussian window, K1 = 0.01, K2 = 0.03, only positions where
    the window is inside the image.

    Args:
        image: (C, H, W) in 0..255, sides of at least 11.
        target: The same shape and range.

    Raises:
        ValueError: A side is shorter than the window.
    """
    if min(image.shape[1:]) < WINDOW:
        raise ValueError(f'images must have sides of at least {WINDOW} for SSIM, '
                         f'got {tuple(image.shape)}')
    x, y = image.double()[:, None], target.double()[:, None]
    weights = (-0.5 * ((torch.arange(WINDOW) - WINDOW // 2).double() / SIGMA)**2).exp()
    weights = (weights / weights.sum()).to(x.device)

    def mean(maps: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(maps, weights.view(1, 1, -1, 1)),
                        weights.view(1, 1, 1, -1))

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255)**2, (0.03 * 255)**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean().item()


def luminance(image: Tensor, channel_order: str = 'bgr') -> Tensor:
    """Convert (3, H, W) in 0..255 to BT.601 luma (1, H, W) in 16..235.

    Raises:
        ValueError: The image has not three channels.
    """
    if len(image) != 3:
        raise ValueError('luminance needs images of three channels, got '
                         f'{tuple(image.shape)}')
    weights = LUMA.to(image.device)
    weights = weights.flip(0) if channel_order == 'bgr' else weights
    return 16 + (weights[:, None, None] * image.double()).sum(0, keepdim=True)


def nl_means(image: Tensor, strength: float) -> Tensor:
    """Remove noise by OpenCV's fastNlMeansDenoisingColored, with patches of 7x7.

    Args:
        image: (3, H, W), BGR, in 0..255. It is rounded and clipped first, as OpenCV
            takes only image files' values.
        strength: OpenCV's ``h`` and ``hColor``, in grey levels.

    Returns:
        (3, H, W), in whole grey levels.

    Raises:
        ValueError: The image has not three channels.
    """
    if len(image) != 3:
        raise ValueError('non-local means needs images of three channels, got '
                         f'{tuple(image.shape)}')
    pixels = image.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()  # (H, W, 3)
    found = cv2.fastNlMeansDenoisingColored(
        np.ascontiguousarray(pixels), None, strength, strength, 7, 21)
    return torch.from_numpy(found).permute(2, 0, 1).float()


class RestorationMetric(BaseMetric):
    """Base class of metrics that compare restored images with clean ones.

    A data sample has ``pred_img`` and ``gt_img``, (C, H, W) in 0..255, and may have
    ``task``. The mean over all images is ``NAME``, that of a task ``TASK/NAME``.
    Restored images are rounded and clipped, as in an image file.

    Args:
        luminance: Whether to compare only the luma.
        crop_border: Pixels to ignore at each side; ``'scale'``: the scale of an
            enlarging task, 0 for others.
        channel_order: ``'bgr'``, as mmcv reads images, or ``'rgb'``.
        compare_input: Whether to add ``NAME_input``, the results of the degraded
            images, enlarged bicubically if they are smaller.
        collect_device: See BaseMetric.
        prefix: See BaseMetric.
        collect_dir: See BaseMetric.
        compare_nl_means: Whether to add ``NAME_nl_means`` for tasks of noise: the
            results of OpenCV's non-local means, see :func:`nl_means`; about a second
            for a photograph. Its mean over all images counts only those of noise.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    name: str
    default_prefix = None

    def __init__(self,
                 luminance: bool = False,
                 crop_border: int | str = 0,
                 channel_order: str = 'bgr',
                 compare_input: bool = False,
                 collect_device: str = 'cpu',
                 prefix: str | None = None,
                 collect_dir: str | None = None,
                 compare_nl_means: bool = False) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        check_flags(luminance=luminance, compare_input=compare_input,
                    compare_nl_means=compare_nl_means)
        if crop_border != 'scale' and (
                not isinstance(crop_border, int) or crop_border < 0):
            raise ValueError("crop_border must be pixels or 'scale', got "
                             f'{crop_border!r}')
        if channel_order not in ('bgr', 'rgb'):
            raise ValueError("channel_order must be 'bgr' or 'rgb', got "
                             f'{channel_order!r}')
        self.luminance, self.crop_border = luminance, crop_border
        self.channel_order, self.compare_input = channel_order, compare_input
        self.compare_nl_means = compare_nl_means

    def figure(self, image: Tensor, target: Tensor) -> float:
        """Compare two images (C, H, W)."""
        raise NotImplementedError

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Compare the images of a batch.

        Args:
            data_batch: ``inputs`` are the degraded images, (C, H, W) in 0..255.
            data_samples: Results of the model, as dicts.

        Raises:
            ValueError: A restored image has another size than the clean one.
        """
        for i, sample in enumerate(data_samples):
            task = sample.get('task', '')
            target = sample['gt_img'].cpu()
            found = {self.name: self._compare(sample['pred_img'].cpu(), target, task)}
            for name, image in self._others(data_batch, i, task, target):
                found[f'{self.name}_{name}'] = self._compare(image, target, task)
            self.results.append((task, found))

    def _others(self, data_batch: dict, i: int, task: str,
                target: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the image of each result that is no model's."""
        smooth = self.compare_nl_means and task in NL_MEANS
        if not smooth and not self.compare_input:
            return
        image = data_batch['inputs'][i].float().cpu()
        if smooth:
            order = [2, 1, 0] if self.channel_order == 'rgb' else [0, 1, 2]
            yield 'nl_means', nl_means(image[order], NL_MEANS[task])[order]
        if self.compare_input:
            if image.shape != target.shape:
                image = F.interpolate(
                    image[None], target.shape[1:], mode='bicubic', antialias=True)[0]
            yield 'input', image

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over all images, and over the images of each task."""
        figures: dict[str, list[float]] = {}
        for task, found in results:
            for name, value in found.items():
                figures.setdefault(name, []).append(value)
                if task:
                    figures.setdefault(f'{task}/{name}', []).append(value)
        return {name: sum(values) / len(values)
                for name, values in sorted(figures.items())}

    def _compare(self, image: Tensor, target: Tensor, task: str) -> float:
        if image.shape != target.shape:
            raise ValueError('pred_img must have the shape of gt_img, '
                             f'{tuple(target.shape)}, got {tuple(image.shape)}')
        border = self.crop_border
        if border == 'scale':
            scale = TASKS[task].scale if task in TASKS else 1
            border = scale if scale > 1 else 0
        height, width = target.shape[1:]
        if 2 * border >= min(height, width):
            raise ValueError(f'crop_border={border} leaves nothing of an image of '
                             f'{height}x{width}')
        # border:-border would be empty for a border of 0.
        inside = (..., slice(border, height - border), slice(border, width - border))
        image, target = image.float().round().clamp(0, 255)[inside], target[inside]
        if self.luminance:
            image, target = (luminance(x, self.channel_order)
                             for x in (image, target))
        return self.figure(image, target)


@register(METRICS)
class PSNR(RestorationMetric):
    """Peak signal-to-noise ratio in dB, see :class:`RestorationMetric`."""

    name = 'PSNR'

    def figure(self, image: Tensor, target: Tensor) -> float:
        """Compare two images (C, H, W)."""
        return psnr(image, target)


@register(METRICS)
class SSIM(RestorationMetric):
    """Structural similarity, at most 1, see :class:`RestorationMetric`."""

    name = 'SSIM'

    def figure(self, image: Tensor, target: Tensor) -> float:
        """Compare two images (C, H, W)."""
        return ssim(image, target)
