"""Fuse the maps of the branches with the pyramid's map of a level."""

from __future__ import annotations

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn


class ResidualFusion(BaseModule):
    """Compute X + conv3x3(conv1x1(branches)).

    The last convolution starts at zero, so the level is unchanged bit for bit
    before training. Nothing follows it: a norm after a zero convolution
    multiplies its gradient by hundreds, and a ReLU makes it zero.

    Args:
        in_channels: Channels C of X and of the output.
        branch_channels: Channels of all branches together.
        embed_channels: Channels E between the two convolutions.
        norm_cfg: Norm after the 1x1 convolution; None: none.
    """

    def __init__(self,
                 in_channels: int,
                 branch_channels: int,
                 embed_channels: int,
                 norm_cfg: dict | None = None) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(
            branch_channels, embed_channels, 1, bias=norm_cfg is None)
        self.norm = _norm(norm_cfg, embed_channels)
        self.out_conv = nn.Conv2d(embed_channels, in_channels, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set Xavier weights, and zero the last convolution."""
        nn.init.xavier_uniform_(self.reduce.weight)
        if self.reduce.bias is not None:
            nn.init.zeros_(self.reduce.bias)
        nn.init.zeros_(self.out_conv.weight)
        nn.init.zeros_(self.out_conv.bias)

    def init_weights(self) -> None:
        """Reset the parameters, which a parent's init_cfg may have changed."""
        super().init_weights()
        self.reset_parameters()

    def forward(self, x: Tensor, branches: Tensor) -> Tensor:
        """Add the fused branches to ``x``.

        Args:
            x: (B, C, H, W).
            branches: (B, branch_channels, H, W).

        Returns:
            (B, C, H, W).
        """
        reduced = self.norm(self.reduce(branches))  # (B, E, H, W)
        return x + self.out_conv(reduced)  # (B, C, H, W)


class ConcatFusion(BaseModule):
    """Compute conv3x3([X, branches]), as in the paper (FPT, Sec. 3.1).

    Args:
        in_channels: Channels C of X and of the output.
        branch_channels: Channels of all branches together; may be 0.
        embed_channels: Not used; there is no convolution before the 3x3 one.
        norm_cfg: Norm after the convolution; None: none.
    """

    def __init__(self,
                 in_channels: int,
                 branch_channels: int,
                 embed_channels: int,
                 norm_cfg: dict | None = None) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(
            in_channels + branch_channels,
            in_channels,
            3,
            padding=1,
            bias=norm_cfg is None)
        self.norm = _norm(norm_cfg, in_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set Xavier weights and zero biases."""
        nn.init.xavier_uniform_(self.out_conv.weight)
        if self.out_conv.bias is not None:
            nn.init.zeros_(self.out_conv.bias)

    def init_weights(self) -> None:
        """Reset the parameters, which a parent's init_cfg may have changed."""
        super().init_weights()
        self.reset_parameters()

    def forward(self, x: Tensor, branches: Tensor | None) -> Tensor:
        """Mix ``x`` with the branches.

        Args:
            x: (B, C, H, W).
            branches: (B, branch_channels, H, W), or None without branches.

        Returns:
            (B, C, H, W).
        """
        if branches is not None:
            x = torch.cat([x, branches], dim=1)  # (B, C + branch_channels, H, W)
        return self.norm(self.out_conv(x))


def _norm(norm_cfg: dict | None, channels: int) -> nn.Module:
    if norm_cfg is None:
        return nn.Identity()
    return build_norm_layer(norm_cfg, channels)[1]


FUSIONS = {'residual': ResidualFusion, 'concat': ConcatFusion}
