"""Pictures of what a masked image model predicts."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor

from ..layers.checks import check_positive_int
from ..openmmlab.registry import register
from .masked_image_model import MaskedImageModel

GREY, GAP = 127, 4


@register(HOOKS)
class ReconstructionHook(Hook):
    """Draws images, what the model saw of them, and what it made of that.

    A picture is ``reconstructions/iter_N.png`` in the run's folder: an image a
    row. It uses images of the batch that was trained on, and leaves the random
    numbers of the training as they are. GreenMIM predicts pixels normalised unit by
    unit: mean and deviation of a hidden unit in a picture are the true ones.

    Args:
        interval: Iterations between pictures; one more is drawn at the end.
        images: How many a picture shows.

    Raises:
        TypeError: An argument is no int.
        ValueError: One is below 1, or the model is no masked image model.
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
                picture = draw_reconstructions(
                    model, dict(inputs=data_batch['inputs'][:self.images]))
        finally:
            model.train(training)
        path = Path(runner.work_dir, 'reconstructions', f'iter_{done}.png')
        mmcv.imwrite(picture, str(path))

    @staticmethod
    def _model(runner) -> MaskedImageModel:
        model = runner.model.module if is_model_wrapper(runner.model) \
            else runner.model
        if not isinstance(model, MaskedImageModel):
            raise ValueError('ReconstructionHook needs a masked image model, such '
                             f'as GreenMIM, got {type(model).__name__}')
        return model


def draw_reconstructions(model: MaskedImageModel, batch: dict) -> np.ndarray:
    """Draw a picture of a batch as it comes from the data set.

    Args:
        model: In evaluation mode.
        batch: ``inputs``, images (C, H, W).

    Returns:
        (rows, columns, 3), uint8, BGR: image, visible pixels and reconstruction
        side by side, an image a row.
    """
    inputs = model.data_preprocessor(batch)['inputs']
    samples = model(inputs, mode='predict')
    shown = _pixels(model, inputs)
    drawn = _pixels(model, torch.stack([sample.pred for sample in samples]))
    rows = [torch.cat([_framed(image) for image in
                       (image, image.masked_fill(sample.mask, GREY), guess)], dim=2)
            for sample, image, guess in zip(samples, shown, drawn)]
    picture = torch.cat(rows, dim=1).permute(1, 2, 0)
    return picture.to(torch.uint8).cpu().numpy()


def _pixels(model: MaskedImageModel, images: Tensor) -> Tensor:
    """Undo the normalisation: (B, 3, H, W) in [0, 255], BGR."""
    preprocessor = model.data_preprocessor
    if getattr(preprocessor, '_enable_normalize', False):
        images = images * preprocessor.std + preprocessor.mean
    if getattr(preprocessor, '_channel_conversion', False):
        images = images.flip(1)
    if images.shape[1] != 3:  # grey, or the mean of many channels
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return images.round().clamp(0, 255)


def _framed(image: Tensor) -> Tensor:
    """Leave white space to the right and below."""
    return torch.nn.functional.pad(image, (0, GAP, 0, GAP), value=255)
