"""Pictures of what a model that is pre-trained makes of images."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..layers.checks import check_positive_int
from ..openmmlab.registry import register

GAP = 4


@register(HOOKS)
class ReconstructionHook(Hook):
    """Draws images, what the model saw of them, and what it made of that.

    A picture is ``reconstructions/iter_N.png`` in the run's folder: an image a
    row. It uses images of the batch that was trained on, and leaves the random
    numbers of the training as they are. GreenMIM predicts pixels normalised unit by
    unit: mean and deviation of a hidden unit in a picture are the true ones.
    RestorationPretrainer saw the degraded image; of PixelGPT there are completions and
    samples, see its ``panels``.

    Args:
        interval: Iterations between pictures; one more is drawn at the end.
        images: How many a picture shows.

    Raises:
        TypeError: An argument is no int.
        ValueError: One is below 1, or the model reconstructs no images.
    """

    def __init__(self, interval: int = 1000, images: int = 4) -> None:
        self.interval = check_positive_int('interval', interval)
        self.images = check_positive_int('images', images)

    def before_train(self, runner) -> None:
        """See that the model reconstructs."""
        self._model(runner)

    def after_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        """Draw every ``interval`` iterations, and at the end."""
        done = runner.iter + 1
        if done % self.interval == 0 or done == runner.max_iters:
            self._draw(runner, data_batch, done)

    @master_only
    def _draw(self, runner, data_batch: dict, done: int) -> None:
        model = self._model(runner)
        training = model.training
        model.eval()
        try:
            # Masks are drawn on the CPU.
            with torch.random.fork_rng([]), torch.no_grad():
                picture = draw_reconstructions(model, {
                    key: value[:self.images] for key, value in data_batch.items()})
        finally:
            model.train(training)
        path = Path(runner.work_dir, 'reconstructions', f'iter_{done}.png')
        mmcv.imwrite(picture, str(path))

    @staticmethod
    def _model(runner) -> nn.Module:
        model = runner.model.module if is_model_wrapper(runner.model) \
            else runner.model
        if not hasattr(model, 'panels'):
            raise ValueError('ReconstructionHook needs a model that reconstructs '
                             f'images, such as GreenMIM, got {type(model).__name__}')
        return model


def draw_reconstructions(model: nn.Module, batch: dict) -> np.ndarray:
    """Draw a picture of a batch as it comes from the data set.

    Args:
        model: In evaluation mode, with ``panels``: a method that takes the batch
            and returns images (B, C, H, W) in 0..255, BGR, in the order in which
            they stand side by side.
        batch: ``inputs``, images (C, H, W), and what else the model needs.

    Returns:
        (rows, columns, 3), uint8, BGR: an image a row.
    """
    columns = [_framed(_coloured(images)) for images in model.panels(batch)]
    picture = torch.cat(columns, dim=3)  # (B, 3, H, columns)
    picture = picture.permute(0, 2, 3, 1).flatten(0, 1)
    return picture.to(torch.uint8).cpu().numpy()


def _coloured(images: Tensor) -> Tensor:
    """Make three channels of whole numbers in 0..255."""
    if images.shape[1] != 3:  # grey, or the mean of many channels
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return images.round().clamp(0, 255)


def _framed(images: Tensor) -> Tensor:
    """Leave white space to the right and below."""
    return torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=255)
