"""SimMIM: masked image modelling on the whole map, the baseline."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..openmmlab.models import is_pretrained
from ..openmmlab.registry import register
from .masked_image_model import MaskedImageModel
from .masks import hidden_units, on_device_of, random_units
from .swin import add_positions, map_features
from .units import pick_units, split_units


@register(MODELS)
class SimMIM(MaskedImageModel):
    """Pre-train a Swin Transformer with mask tokens in its full map.

    A learnt token replaces hidden patches, the backbone computes the whole map, and
    one linear layer predicts pixels; each image hides other units
    (https://arxiv.org/abs/2111.09886). It costs as much as training on whole
    images. It is the baseline of :class:`GreenMIM`.

    Args:
        backbone: Config of the SwinTransformer of mmdet or mmseg.
        mask_ratio: Share of units that are hidden.
        mask_unit: Side of a unit in pixels, a multiple of the stride of the last
            stage, 32.
        data_preprocessor: See :class:`GreenMIM`.
        init_cfg: See BaseModel.

    Raises:
        TypeError: ``mask_unit`` is no int, or ``backbone`` no config.
        ValueError: An argument is out of its range, or the backbone is no Swin
            Transformer.
    """

    def __init__(self,
                 backbone: dict,
                 mask_ratio: float = 0.6,
                 mask_unit: int = 32,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(backbone, mask_ratio, mask_unit, data_preprocessor,
                         init_cfg)
        self.mask_token = nn.Parameter(
            torch.zeros(1, 1, self.backbone.patch_embed.embed_dims))
        self.decoder = nn.Linear(self.unit_channels, self.unit_pixels)

    def init_weights(self) -> None:
        """Initialise the backbone, the mask token and the linear layer."""
        super().init_weights()
        if not is_pretrained(self.init_cfg):
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def draw(self, batch: int, grid: tuple[int, int]) -> Tensor:
        """Draw the visible units of each image: (B, V)."""
        return random_units(batch, grid[0] * grid[1], self.count_visible(grid))

    def predict(self, inputs: Tensor, visible: Tensor,
                grid: tuple[int, int]) -> Tensor:
        """Predict the hidden units: (B, M, pixels of a unit)."""
        swin = self.backbone
        hidden = on_device_of(hidden_units(visible, grid[0] * grid[1]), inputs)
        mask = torch.zeros(len(inputs), grid[0] * grid[1], device=inputs.device)
        mask = mask.scatter_(1, hidden, 1.).view(-1, *grid)  # (B, rows, columns)
        x, size = swin.patch_embed(inputs)  # (B, H * W, C)
        mask = F.interpolate(mask[:, None], size).view(len(x), -1, 1)  # (B, H * W, 1)
        x = torch.where(mask > 0, self.mask_token.to(x.dtype), x)
        x = swin.drop_after_pos(add_positions(swin, x, size))
        out = map_features(swin, x, size)  # (B, C', rows, columns)
        units = split_units(  # (B, N, channels of a unit)
            out, out.shape[-1] // grid[1]).flatten(2)
        return self.decoder(pick_units(units, hidden))

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Compute the mean absolute error."""
        return F.l1_loss(predicted, target)
