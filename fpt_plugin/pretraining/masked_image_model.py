"""What models share that learn to predict hidden parts of images."""

from __future__ import annotations

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..functional.checks import accumulation_dtype
from ..layers.checks import check_positive_int
from ..restoration.pixels import to_pixels
from .masks import beside, count_visible, others
from .swin import build_swin, stride_of
from .units import join_units, pick_units, split_units

GREY = 127  # of hidden pixels in pictures


class MaskedImageModel(BaseModel):
    """Base of models that predict hidden units of an image from visible ones.

    A subclass draws the visible units, predicts hidden ones and compares. Images
    come from mmengine's ImgDataPreprocessor, in a batch.

    Args:
        backbone: Config of the SwinTransformer of mmdet or mmseg.
        mask_ratio: Share of units that are hidden, in (0, 1).
        mask_unit: Side of a unit in pixels, a multiple of the stride of the
            backbone's last stage.
        data_preprocessor: See BaseModel.
        init_cfg: See BaseModel.

    Raises:
        TypeError: ``mask_unit`` is no int, or ``backbone`` no config.
        ValueError: An argument is out of its range, or the backbone is no Swin
            Transformer.
    """

    normalises = False  # whether targets are normalised unit by unit

    def __init__(self,
                 backbone: dict,
                 mask_ratio: float,
                 mask_unit: int = 32,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if not 0 < mask_ratio < 1:
            raise ValueError(f'mask_ratio must be in (0, 1), got {mask_ratio}')
        self.mask_ratio = mask_ratio
        self.mask_unit = check_positive_int('mask_unit', mask_unit)
        self.backbone = build_swin(backbone)
        stride = stride_of(self.backbone)
        if mask_unit % stride:
            raise ValueError('mask_unit must be a multiple of the stride of the '
                             f"backbone's last stage, {stride}, got {mask_unit}")
        width = self.backbone.num_features[-1]
        self.unit_channels = width * (mask_unit // stride)**2
        self.in_channels = self.backbone.patch_embed.projection.in_channels
        self.unit_pixels = self.in_channels * mask_unit**2

    def forward(self,
                inputs: Tensor,
                data_samples: list[BaseDataElement] | None = None,
                mode: str = 'tensor'
                ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Predict units that are drawn and hidden.

        Args:
            inputs: (B, C, H, W), normalised; sides are multiples of
                ``mask_unit``.
            data_samples: What predictions are added to; None: new ones.
            mode: ``'loss'``: a dict with the loss; ``'tensor'``: the images
                (B, C, H, W) with predicted pixels where they were hidden;
                ``'predict'``: a sample for each image, with ``pred``, these
                pixels (C, H, W), ``mask`` (H, W), true where hidden, and
                ``error`` and ``flat_error``, see :meth:`errors`. Predicted
                pixels are normalised as the inputs are.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: Sides of the images or ``mode`` are not as above.
        """
        grid = self.grid_of(inputs)
        visible = self.draw(len(inputs), grid)
        if mode == 'loss':
            return dict(loss=self.loss(inputs, visible, grid))
        if mode not in ('tensor', 'predict'):
            raise ValueError("mode must be 'loss', 'tensor' or 'predict', "
                             f'got {mode!r}')
        predicted = self.predict(inputs, visible, grid)
        images, hidden = self._joined(inputs, predicted, visible, grid)
        if mode == 'tensor':
            return images
        samples = data_samples or [BaseDataElement() for _ in images]
        for sample, image, mask, *errors in zip(
                samples, images, hidden,
                *self.errors(inputs, predicted, visible, grid)):
            sample.pred, sample.mask = image, mask
            sample.error, sample.flat_error = errors
        return samples

    def panels(self, batch: dict) -> list[Tensor]:
        """What :class:`ReconstructionHook` draws.

        Args:
            batch: As it comes from the data set.

        Returns:
            Images, their visible pixels, and reconstructions: (B, C, H, W) each,
            in 0..255, channels as in the files.
        """
        inputs = self.data_preprocessor(batch)['inputs']
        samples = self(inputs, mode='predict')
        images, made = (
            to_pixels(self.data_preprocessor, x)
            for x in (inputs, torch.stack([sample.pred for sample in samples])))
        hidden = torch.stack([sample.mask for sample in samples])[:, None]
        return [images, images.masked_fill(hidden, GREY), made]

    def draw(self, batch: int, grid: tuple[int, int]) -> Tensor:
        """Draw the visible units: (1, V) for all images or (B, V), on the CPU."""
        raise NotImplementedError

    def predict(self, inputs: Tensor, visible: Tensor,
                grid: tuple[int, int]) -> Tensor:
        """Predict the hidden units, in the order of their numbers: (B, M, P)."""
        raise NotImplementedError

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Compare two tensors of (B, M, P): a scalar."""
        raise NotImplementedError

    def loss(self, inputs: Tensor, visible: Tensor,
             grid: tuple[int, int]) -> Tensor:
        """Compare predictions of the hidden units with their pixels."""
        dtype = accumulation_dtype(inputs)
        target = self._targets(inputs, others(visible, grid[0] * grid[1]))
        return self.distance(
            self.predict(inputs, visible, grid).to(dtype), target)

    def errors(self, inputs: Tensor, predicted: Tensor, visible: Tensor,
               grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Mean squared errors of the hidden units of each image.

        Args:
            inputs: (B, C, H, W), normalised.
            predicted: (B, M, pixels of a unit), what :meth:`predict` returns.
            visible: (1 or B, V), the visible units.
            grid: Rows and columns of units in an image.

        Returns:
            The error of the prediction and that of a flat guess, (B,) each. The
            guess is the mean colour of the visible units in each image, as
            targets: where these are normalised unit by unit, it has the
            brightness and contrast of each hidden unit, which the prediction is
            not asked for either.
        """
        target = self._targets(inputs, others(visible, grid[0] * grid[1]))
        seen = self._targets(inputs, visible).unflatten(2, (self.in_channels, -1))
        colour = seen.mean((1, 3), keepdim=True)  # (B, 1, C, 1)
        flat = colour.expand(-1, -1, -1, self.mask_unit**2).flatten(2)
        return tuple((guess.to(target.dtype) - target).square().mean((1, 2))
                     for guess in (predicted, flat))

    def reconstruct(self, inputs: Tensor, visible: Tensor,
                    grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Put predictions in the place of hidden units.

        Where targets are normalised, mean and deviation of a unit are its own.

        Returns:
            The images (B, C, H, W), and where pixels were hidden (B, H, W).
        """
        return self._joined(
            inputs, self.predict(inputs, visible, grid), visible, grid)

    def _joined(self, inputs: Tensor, predicted: Tensor, visible: Tensor,
                grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What :meth:`reconstruct` returns, of a prediction."""
        hidden = beside(others(visible, grid[0] * grid[1]), inputs)
        predicted = predicted.to(inputs.dtype)
        if self.normalises:
            mean, deviation = _moments(self._pixels(inputs, hidden))
            predicted = predicted * deviation + mean
        units = split_units(inputs, self.mask_unit)
        mask = torch.zeros_like(units[:, :, :1], dtype=torch.bool)
        rows = torch.arange(len(inputs), device=inputs.device)[:, None]
        hidden = hidden.expand(len(inputs), -1)
        units[rows, hidden] = predicted.unflatten(2, units.shape[2:])
        mask[rows, hidden] = True
        return join_units(units, grid[1]), join_units(mask, grid[1])[:, 0]

    def grid_of(self, inputs: Tensor) -> tuple[int, int]:
        """Rows and columns of units in images.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: They are of another shape.
        """
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            given = getattr(inputs, 'dtype', type(inputs).__name__)
            raise TypeError(
                'inputs must be a batch of floating point images, as '
                "data_preprocessor=dict(type='ImgDataPreprocessor', ...) makes it, "
                f'got {given}')
        unit = self.mask_unit
        if inputs.dim() != 4 or min(inputs.shape) < 1 \
                or inputs.shape[1] != self.in_channels \
                or any(side % unit for side in inputs.shape[2:]):
            raise ValueError(
                f'inputs must be (B, {self.in_channels}, H, W) with sides that are '
                f'multiples of mask_unit={unit}, got {tuple(inputs.shape)}')
        return inputs.shape[2] // unit, inputs.shape[3] // unit

    def count_visible(self, grid: tuple[int, int]) -> int:
        """How many units of an image stay visible."""
        return count_visible(grid[0] * grid[1], self.mask_ratio)

    def _targets(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        """Some units as they are to be predicted: (B, K, P), at least float32."""
        target = self._pixels(inputs, chosen).to(accumulation_dtype(inputs))
        if self.normalises:
            mean, deviation = _moments(target)
            target = (target - mean) / deviation
        return target

    def _pixels(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        """Pixels of some units: (B, K, C * side * side)."""
        units = split_units(inputs, self.mask_unit)
        return pick_units(units, beside(chosen, inputs)).flatten(2)


def _moments(units: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each unit: (B, K, P) to (B, K, 1)."""
    mean = units.mean(dim=2, keepdim=True)
    # Not torch.var, which is ten times as slow on a CPU.
    squares = (units - mean).square().sum(dim=2, keepdim=True)
    return mean, (squares / (units.shape[2] - 1) + 1e-6).sqrt()
