"""GreenMIM: masked image modelling that computes only visible tokens."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from ..openmmlab.registry import register
from .masked_image_model import MaskedImageModel
from .masks import (
    hidden_units,
    on_device_of,
    one_of_each_cell,
    order_by_cell,
    random_units,
)
from .swin import compact_features, visible_features
from .units import pick_units, split_units

SAMPLINGS = ('groups', 'uniform')


@register(MODELS)
class GreenMIM(MaskedImageModel):
    """Pre-train the Swin Transformer of mmdet or mmseg on images without labels.

    Three quarters of the units of the images are hidden, the same ones in the
    whole batch. The backbone computes only visible tokens; a small decoder predicts
    the pixels of hidden units, normalised per unit
    (https://arxiv.org/abs/2205.13515). ``backbone`` is the library's own module,
    and its weights have the library's format.

    Args:
        backbone: Config of the backbone, such as
            ``dict(type='mmdet.SwinTransformer', drop_path_rate=0.)``.
            ``out_indices`` is its last stage.
        decoder: Config of a module with the inputs of :class:`GreenMIMDecoder`;
            None: the paper's, a GreenMIMDecoder with default arguments.
        mask_ratio: Share of units that are hidden.
        mask_unit: Side of a unit in pixels, a multiple of the stride of the last
            stage, 32.
        sampling: ``'groups'``: any units; windows with different numbers of
            visible tokens are packed into groups. ``'uniform'``: one unit of each
            2x2 cell (UM-MAE, https://arxiv.org/abs/2205.10063); they form a
            smaller image for the backbone. It hides three quarters of the units,
            fewer at the border of a grid with an odd side.
        data_preprocessor: mmengine's ImgDataPreprocessor with the mean and
            standard deviation of the later detector or segmentor.
        init_cfg: See BaseModel.

    Raises:
        TypeError: ``mask_unit`` is no int, or ``backbone`` no config.
        ValueError: An argument is out of its range, or the backbone is no Swin
            Transformer.

    Example:
        >>> model = GreenMIM(dict(type='mmdet.SwinTransformer'))
        >>> model(torch.rand(2, 3, 224, 224), mode='loss')['loss'].backward()
    """

    normalises = True

    def __init__(self,
                 backbone: dict,
                 decoder: dict | None = None,
                 mask_ratio: float = 0.75,
                 mask_unit: int = 32,
                 sampling: str = 'groups',
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(backbone, mask_ratio, mask_unit, data_preprocessor,
                         init_cfg)
        if sampling not in SAMPLINGS:
            raise ValueError(
                f'sampling must be one of {SAMPLINGS}, got {sampling!r}')
        if sampling == 'uniform' and mask_ratio != 0.75:
            raise ValueError("mask_ratio must be 0.75 for sampling='uniform', which "
                             f'shows one unit of four, got {mask_ratio}')
        self.sampling = sampling
        self.decoder = MODELS.build(dict(
            dict(
                type='GreenMIMDecoder',
                in_channels=self.unit_channels,
                out_channels=self.unit_pixels), **decoder or {}))

    def draw(self, batch: int, grid: tuple[int, int]) -> Tensor:
        """Draw the visible units of all images of a batch: (1, V)."""
        if self.sampling == 'groups':
            return random_units(1, grid[0] * grid[1], self.count_visible(grid))
        if grid == (1, 1):
            raise ValueError("sampling='uniform' needs images of more than one "
                             f'unit of {self.mask_unit} pixels')
        return one_of_each_cell(*grid).view(1, -1)

    def predict(self, inputs: Tensor, visible: Tensor,
                grid: tuple[int, int]) -> Tensor:
        """Predict the hidden units: (B, M, pixels of a unit)."""
        hidden = on_device_of(
            hidden_units(visible, grid[0] * grid[1])[0], inputs)  # (M,)
        features = self._features(inputs, visible, grid)  # (B, V, C)
        return self.decoder(
            features, on_device_of(visible[0], inputs), hidden, grid)

    def encode(self, images: Tensor, mask: Tensor) -> Tensor:
        """Compute the features of the visible units of images.

        Args:
            images: (B, C, H, W), normalised.
            mask: (H / mask_unit, W / mask_unit), bool, True for hidden units, for
                all images.

        Returns:
            (B, V, channels of a unit): the last stage after its norm, in the order
            of the units, row by row.

        Raises:
            TypeError: ``images`` is no batch of floating point images, or ``mask``
                is not a tensor of bools.
            ValueError: A shape is wrong, nothing is visible, or for
                ``sampling='uniform'`` not one unit of each 2x2 cell is visible.
        """
        grid = self.grid_of(images)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f'mask must be a tensor of bools, got {given}')
        if mask.shape != grid:
            raise ValueError(f'mask must be {grid}, rows and columns of units, got '
                             f'{tuple(mask.shape)}')
        visible = (~mask).flatten().nonzero().view(1, -1).cpu()  # (1, V)
        if not visible.numel():
            raise ValueError('mask must leave a unit visible')
        if self.sampling == 'groups':
            return self._features(images, visible, grid)
        cells, order = order_by_cell(visible[0], grid)
        return self._features(images, cells, grid)[:, on_device_of(order, images)]

    def _features(self, inputs: Tensor, visible: Tensor,
                  grid: tuple[int, int]) -> Tensor:
        """Compute the features of visible units (B, V, C), in the given order."""
        units = pick_units(  # (B, V, C, side, side)
            split_units(inputs, self.mask_unit), on_device_of(visible, inputs))
        if self.sampling == 'groups':
            return visible_features(self.backbone, units, visible[0], grid)
        cells = visible[0].view(-(-grid[0] // 2), -1)  # (rows / 2, columns / 2)
        return compact_features(self.backbone, units, cells, grid)

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Compute the mean squared error."""
        return F.mse_loss(predicted, target)
