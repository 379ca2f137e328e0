"""Decode the pixels of hidden units from features of visible units."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.checks import check_positive_int
from ..openmmlab.models import is_pretrained
from ..openmmlab.registry import register


@register(MODELS)
class GreenMIMDecoder(BaseModule):
    """GreenMIM's decoder: a small transformer over all units of an image.

    A linear layer, a mask token for each hidden unit, fixed sine positions,
    transformer blocks, and a linear layer that predicts the pixels of hidden
    units (https://arxiv.org/abs/2205.13515, Sec. 3.3).

    Args:
        in_channels: Channels of a unit's features.
        out_channels: Number of values to predict per unit.
        embed_dims: Width, a multiple of 4 and of ``num_heads``.
        depth: Number of blocks.
        num_heads: Number of heads of each block.
        mlp_ratio: Width of the blocks' hidden layer divided by ``embed_dims``.
        init_cfg: See BaseModule.

    Raises:
        TypeError: A number is no int.
        ValueError: A number is less than 1, or ``embed_dims`` is no multiple of 4 or
            of ``num_heads``.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 embed_dims: int = 512,
                 depth: int = 1,
                 num_heads: int = 16,
                 mlp_ratio: float = 4.,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        for name, number in (('embed_dims', embed_dims), ('depth', depth),
                             ('num_heads', num_heads)):
            check_positive_int(name, number)
        if embed_dims % 4 or embed_dims % num_heads:
            raise ValueError('embed_dims must be a multiple of 4 and of num_heads, '
                             f'got embed_dims={embed_dims}, num_heads={num_heads}')
        self.embed_dims = embed_dims
        self.embed = nn.Linear(in_channels, embed_dims)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.blocks = nn.Sequential(*(
            nn.TransformerEncoderLayer(
                embed_dims,
                num_heads,
                int(mlp_ratio * embed_dims),
                dropout=0.,
                activation='gelu',
                batch_first=True,
                norm_first=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dims)
        self.predict = nn.Linear(embed_dims, out_channels)

    def init_weights(self) -> None:
        """Initialise like a vision transformer."""
        super().init_weights()
        if is_pretrained(self.init_cfg):
            return
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if self.init_cfg:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor, visible: Tensor, hidden: Tensor,
                grid: tuple[int, int]) -> Tensor:
        """Predict hidden units.

        Args:
            features: Features of visible units (B, V, in_channels).
            visible: Indices of the visible units (V,), row by row.
            hidden: Indices of the hidden units (M,).
            grid: Rows and columns of units in an image.

        Returns:
            (B, M, out_channels).
        """
        x = self.embed(features)  # (B, V, E)
        tokens = self.mask_token.to(x.dtype).expand(  # (B, M, E)
            len(x), len(hidden), -1)
        positions = sine_positions(self.embed_dims, grid, x.device)  # (N, E)
        # The order of tokens does not matter to attention: visible units first.
        x = torch.cat([x, tokens], dim=1) + positions[
            torch.cat([visible, hidden])].to(x.dtype)  # (B, V + M, E)
        x = self.blocks(x)[:, len(visible):]  # (B, M, E)
        return self.predict(self.norm(x))


def sine_positions(dims: int, grid: tuple[int, int],
                   device: torch.device) -> Tensor:
    """Return fixed positions of units (rows * columns, dims).

    One half of the channels encodes the row, the other the column, each by sines
    and cosines of dims / 4 wavelengths from 2 pi to 20000 pi.
    """
    waves = 10000**-(torch.arange(dims // 4, device=device) / (dims // 4))
    rows, columns = (
        torch.cat([(angles := torch.arange(side, device=device)[:, None] * waves).sin(),
                   angles.cos()], dim=1) for side in grid)  # (side, dims / 2)
    return torch.cat([  # (rows, columns, dims) before flatten
        rows[:, None].expand(-1, grid[1], -1),
        columns.expand(grid[0], -1, -1)
    ], dim=2).flatten(0, 1)
