"""Draw pictures of the reconstructions of a pre-training."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..layers.checks import check_positive_int
from ..openmmlab.models import without_wrapper
from ..openmmlab.registry import register

GAP = 4  # pixels between images


@register(HOOKS)
class ReconstructionHook(Hook):
    """Draws images, the model's inputs, and its reconstructions.

    A picture is ``reconstructions/iter_N.png`` in the run's folder, with one image
    per row. It shows images of the current training batch and does not change the
    random state of the training. GreenMIM predicts pixels normalised per unit; the
    picture uses the true mean and deviation of each hidden unit. For
    RestorationPretrainer the input is the degraded image. For PixelGPT the picture
    shows completions and samples; see its ``panels``.

    Args:
        interval: Iterations between pictures; the last iteration has one too.
        images: Number of images per picture.

    Raises:
        TypeError: An argument is no int.
        ValueError: One is below 1, or the model has no method ``panels``.
    """

    def __init__(self, interval: int = 1000, images: int = 4) -> None:
        self.interval = check_positive_int('interval', interval)
        self.images = check_positive_int('images', images)

    def before_train(self, runner) -> None:
        """Check that the model can reconstruct images."""
        self._model(runner)

    def after_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        """Draw every ``interval`` iterations and at the end."""
        done = runner.iter + 1
        if done % self.interval == 0 or done == runner.max_iters:
            self._draw(runner, data_batch, done)

    @master_only
    def _draw(self, runner, data_batch: dict, done: int) -> None:
        model = self._model(runner)
        training = model.training
        model.eval()
        try:
            # Masks use only the CPU's random numbers.
            with torch.random.fork_rng([]), torch.no_grad():
                picture = draw_reconstructions(model, {
                    key: value[:self.images] for key, value in data_batch.items()})
        finally:
            model.train(training)
        path = Path(runner.work_dir, 'reconstructions', f'iter_{done}.png')
        mmcv.imwrite(picture, str(path))

    @staticmethod
    def _model(runner) -> nn.Module:
        model = without_wrapper(runner.model)
        if not hasattr(model, 'panels'):
            raise ValueError('ReconstructionHook needs a model that reconstructs '
                             f'images, such as GreenMIM, got {type(model).__name__}')
        return model


def draw_reconstructions(model: nn.Module, batch: dict) -> np.ndarray:
    """Draw a picture of a batch of the data loader.

    Args:
        model: In evaluation mode, with a method ``panels`` that takes the batch
            and returns a list of images (B, C, H, W) in 0..255, BGR, one entry per
            column of the picture.
        batch: ``inputs``, images (C, H, W), and other inputs of the model.

    Returns:
        (height, width, 3), uint8, BGR, with one image per row.
    """
    columns = [_framed(_coloured(images)) for images in model.panels(batch)]
    picture = torch.cat(columns, dim=3)  # (B, 3, H, width)
    picture = picture.permute(0, 2, 3, 1).flatten(0, 1)  # (B * H, width, 3)
    return picture.to(torch.uint8).cpu().numpy()


def _coloured(images: Tensor) -> Tensor:
    """Convert to three channels of whole numbers in 0..255."""
    if images.shape[1] != 3:  # grey, or the mean of many channels
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return images.round().clamp(0, 255)


def _framed(images: Tensor) -> Tensor:
    """Add white space on the right and below."""
    return torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=255)
