"""The palette of a PixelGPT, found before its training begins."""

from __future__ import annotations

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..layers.checks import check_positive_int
from ..openmmlab.models import without_wrapper
from ..openmmlab.registry import register
from .palette import Palette
from .seeded import seeded


@register(HOOKS)
class FitPaletteHook(Hook):
    """Finds the colours of the training images by k-means before the first step.

    A palette that the config or a checkpoint has brought stays. The error of images
    that become tokens and images again goes to the log. The random numbers of the
    training stay as they are.

    Args:
        images: How many samples of the training data are looked at.
        pixels: How many of their pixels, drawn at random, k-means takes.
        seed: Of the samples and of k-means.

    Raises:
        TypeError: ``images`` or ``pixels`` is no int.
        ValueError: One is below 1, or the model has no palette.
    """

    priority = 'HIGH'

    def __init__(self, images: int = 1000, pixels: int = 100_000,
                 seed: int = 0) -> None:
        self.images = check_positive_int('images', images)
        self.pixels = check_positive_int('pixels', pixels)
        self.seed = seed

    def before_train(self, runner) -> None:
        """Find the colours, in one process for all."""
        model = without_wrapper(runner.model)
        palette = getattr(model, 'palette', None)
        if not isinstance(palette, Palette):
            raise ValueError('FitPaletteHook needs a model with a palette, such as '
                             f'PixelGPT, got {type(model).__name__}')
        if palette.fitted:
            return
        if dist.is_main_process():
            with seeded(self.seed):
                images = draw_images(runner.train_loop.dataloader.dataset, self.images)
                pixels = torch.cat([image.flatten(1).T for image in images])
                chosen = torch.randperm(len(pixels))[:self.pixels]
                palette.fit(pixels[chosen], self.seed)
            errors = [palette.round_trip_error(image[None].to(palette.colours))
                      for image in images]
            runner.logger.info(
                f'Found {palette.size} colours in {len(images)} samples. Error of a '
                'value of a pixel (0..255) as a token, root mean square: '
                f'{np.sqrt(np.mean(np.square(errors))):.2f}')
        dist.broadcast(palette.colours)
        palette.fitted = True


def draw_images(dataset, count: int) -> list[torch.Tensor]:
    """Load samples of a data set, spread over all of it: (3, H, W) each.

    Where there are fewer, they are loaded again, as random crops are others then.
    """
    order = torch.randperm(len(dataset)).tolist()
    return [dataset[order[i % len(order)]]['inputs'] for i in range(count)]
