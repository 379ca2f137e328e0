"""Base class of models that predict hidden parts of images."""

from __future__ import annotations

from numbers import Real

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..functional.checks import accumulation_dtype
from ..layers.checks import check_positive_int
from ..restoration.pixels import to_pixels
from .masks import count_visible, hidden_units, on_device_of
from .swin import build_swin, stride_of
from .units import join_units, pick_units, split_units

GREY = 127  # value of hidden pixels in pictures


class MaskedImageModel(BaseModel):
    """Base class of models that predict hidden units from visible ones.

    A subclass defines ``draw`` (the visible units), ``predict`` (the hidden units)
    and ``distance``. Batches of images come from mmengine's ImgDataPreprocessor.

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

    normalises = False  # whether targets are normalised per unit

    def __init__(self,
                 backbone: dict,
                 mask_ratio: float,
                 mask_unit: int = 32,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if not isinstance(mask_ratio, Real) or not 0 < mask_ratio < 1:
            raise ValueError('mask_ratio must be a number in (0, 1), got '
                             f'{mask_ratio!r}')
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
        """Hide random units of the images and predict them.

        Args:
            inputs: (B, C, H, W), normalised; sides are multiples of
                ``mask_unit``.
            data_samples: Samples to add predictions to; None: new ones.
            mode: ``'loss'``: a dict with the loss; ``'tensor'``: the images
                (B, C, H, W) with predicted pixels in the hidden units;
                ``'predict'``: a sample per image with ``pred``, these pixels
                (C, H, W), ``mask`` (H, W), True for hidden pixels, and ``error``
                and ``flat_error``, see :meth:`errors`. Predicted pixels are
                normalised like the inputs.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: The size of the images, ``mode`` or the number of samples is
                wrong.
        """
        grid = self.grid_of(inputs)
        visible = self.draw(len(inputs), grid)
        if mode == 'loss':
            return dict(loss=self.loss(inputs, visible, grid))
        if mode not in ('tensor', 'predict'):
            raise ValueError("mode must be 'loss', 'tensor' or 'predict', "
                             f'got {mode!r}')
        predicted = self.predict(inputs, visible, grid)
        images, hidden = self._fill_hidden(inputs, predicted, visible, grid)
        if mode == 'tensor':
            return images
        samples = [BaseDataElement() for _ in images] if data_samples is None \
            else data_samples
        if len(samples) != len(images):
            raise ValueError(f'data_samples must have one sample for each of the '
                             f'{len(images)} images, got {len(samples)}')
        for sample, image, mask, *errors in zip(
                samples, images, hidden,
                *self.errors(inputs, predicted, visible, grid)):
            sample.pred, sample.mask = image, mask
            sample.error, sample.flat_error = errors
        return samples

    def panels(self, batch: dict) -> list[Tensor]:
        """Return the images that :class:`ReconstructionHook` draws.

        Args:
            batch: A batch of the data loader.

        Returns:
            Images, their visible pixels, and reconstructions: (B, C, H, W) each,
            in 0..255, channels in the order of the files.
        """
        inputs = self.data_preprocessor(batch)['inputs']
        samples = self(inputs, mode='predict')
        images, reconstructions = (
            to_pixels(self.data_preprocessor, x)
            for x in (inputs, torch.stack([sample.pred for sample in samples])))
        hidden = torch.stack([sample.mask for sample in samples])[:, None]
        return [images, images.masked_fill(hidden, GREY), reconstructions]

    def draw(self, batch: int, grid: tuple[int, int]) -> Tensor:
        """Draw visible units, (1, V) for all images or (B, V), on the CPU."""
        raise NotImplementedError

    def predict(self, inputs: Tensor, visible: Tensor,
                grid: tuple[int, int]) -> Tensor:
        """Predict the hidden units (B, M, P), in ascending order of their index."""
        raise NotImplementedError

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of two tensors (B, M, P)."""
        raise NotImplementedError

    def loss(self, inputs: Tensor, visible: Tensor,
             grid: tuple[int, int]) -> Tensor:
        """Compare predictions of the hidden units with their pixels."""
        dtype = accumulation_dtype(inputs)
        target = self._targets(inputs, hidden_units(visible, grid[0] * grid[1]))
        return self.distance(
            self.predict(inputs, visible, grid).to(dtype), target)

    def errors(self, inputs: Tensor, predicted: Tensor, visible: Tensor,
               grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Compute mean squared errors of the hidden units of each image.

        Args:
            inputs: (B, C, H, W), normalised.
            predicted: Result of :meth:`predict` (B, M, pixels of a unit).
            visible: The visible units (1 or B, V).
            grid: Rows and columns of units in an image.

        Returns:
            The error of the prediction and that of a flat guess, (B,) each. The
            guess is the mean colour of the visible units of each image. If targets
            are normalised per unit, both the guess and the prediction use the true
            mean and deviation of each hidden unit.
        """
        target = self._targets(inputs, hidden_units(visible, grid[0] * grid[1]))
        shown = self._targets(inputs, visible).unflatten(2, (self.in_channels, -1))
        colour = shown.mean((1, 3), keepdim=True)  # (B, 1, C, 1)
        flat = colour.expand(-1, -1, -1, self.mask_unit**2).flatten(2)  # (B, 1, P)
        return tuple((guess.to(target.dtype) - target).square().mean((1, 2))
                     for guess in (predicted, flat))

    def reconstruct(self, inputs: Tensor, visible: Tensor,
                    grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Predict the hidden units and put them into the images.

        If targets are normalised, each unit gets its true mean and deviation.

        Returns:
            The images (B, C, H, W), and a mask (B, H, W), True for hidden pixels.
        """
        return self._fill_hidden(
            inputs, self.predict(inputs, visible, grid), visible, grid)

    def _fill_hidden(self, inputs: Tensor, predicted: Tensor, visible: Tensor,
                     grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Put predicted units (B, M, P) into the images, see :meth:`reconstruct`."""
        hidden = on_device_of(hidden_units(visible, grid[0] * grid[1]), inputs)
        predicted = predicted.to(inputs.dtype)
        if self.normalises:
            mean, deviation = _moments(self._pixels(inputs, hidden))
            predicted = predicted * deviation + mean
        units = split_units(inputs, self.mask_unit)  # (B, N, C, side, side)
        mask = torch.zeros_like(units[:, :, :1], dtype=torch.bool)
        rows = torch.arange(len(inputs), device=inputs.device)[:, None]  # (B, 1)
        hidden = hidden.expand(len(inputs), -1)  # (B, M)
        units[rows, hidden] = predicted.unflatten(2, units.shape[2:])
        mask[rows, hidden] = True
        return join_units(units, grid[1]), join_units(mask, grid[1])[:, 0]

    def grid_of(self, inputs: Tensor) -> tuple[int, int]:
        """Return rows and columns of units in images.

        Raises:
            TypeError: ``inputs`` is no batch of floating point images.
            ValueError: Their shape is wrong.
        """
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            given = getattr(inputs, 'dtype', type(inputs).__name__)
            raise TypeError(
                'inputs must be a batch of floating point images, such as that of '
                "data_preprocessor=dict(type='ImgDataPreprocessor', ...), "
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
        """Return the number of visible units of an image."""
        return count_visible(grid[0] * grid[1], self.mask_ratio)

    def _targets(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        """Return the targets of some units (B, K, P), in at least float32."""
        target = self._pixels(inputs, chosen).to(accumulation_dtype(inputs))
        if self.normalises:
            mean, deviation = _moments(target)
            target = (target - mean) / deviation
        return target

    def _pixels(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        """Return the pixels of some units (B, K, C * side * side)."""
        units = split_units(inputs, self.mask_unit)  # (B, N, C, side, side)
        return pick_units(units, on_device_of(chosen, inputs)).flatten(2)


def _moments(units: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation (B, K, 1) of units (B, K, P)."""
    mean = units.mean(dim=2, keepdim=True)
    # torch.var is ten times slower on a CPU.
    squares = (units - mean).square().sum(dim=2, keepdim=True)
    return mean, (squares / (units.shape[2] - 1) + 1e-6).sqrt()
