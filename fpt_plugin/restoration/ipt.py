"""IPT: one transformer for denoising, deraining and super-resolution."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor, nn

from .transformer import Transformer

TASKS = ('sr2', 'sr3', 'sr4', 'noise30', 'noise50', 'rain')


def enlargement(task: str) -> int:
    """How much a task enlarges images: K of ``'srK'``, 1 of all others."""
    return int(task[2:]) if task.startswith('sr') else 1


class ResidualBlock(nn.Sequential):
    """x + two 5x5 convolutions with a ReLU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 5, padding=2), nn.ReLU(),
            nn.Conv2d(channels, channels, 5, padding=2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return x + super().forward(x)


def make_head(channels: int) -> nn.Sequential:
    """A task's head: RGB (B, 3, H, W) to (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), ResidualBlock(channels),
        ResidualBlock(channels))


def make_tail(channels: int, scale: int) -> nn.Sequential:
    """A task's tail: (B, C, H, W) to RGB (B, 3, scale * H, scale * W)."""
    # An enlargement by four is two by two.
    steps = [2, 2] if scale == 4 else [scale] if scale > 1 else []
    layers: list[nn.Module] = []
    for step in steps:
        layers += [nn.Conv2d(channels, channels * step**2, 3, padding=1),
                   nn.PixelShuffle(step)]
    return nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))


class IPTNet(nn.Module):
    """Heads, shared transformer and tails of the Image Processing Transformer.

    Patches of a task's features are the tokens; the task's embedding is added to
    the queries of the decoder (https://arxiv.org/abs/2012.00364, Sec. 3.1).

    Args:
        tasks: Names such as ``'noise50'`` and ``'sr2'``, which enlarges by two.
        channels: Of heads and tails.
        patch: Side of a patch in pixels.
        crop: Side of the images, a multiple of ``patch``.
        depth: Layers of the encoder, and of the decoder.
        num_heads: Of each attention, a divisor of ``channels * patch**2``.
        mlp_ratio: Width of the MLPs over the tokens'.

    Raises:
        ValueError: An argument does not fit another.
    """

    def __init__(self,
                 tasks: Sequence[str] = TASKS,
                 channels: int = 64,
                 patch: int = 3,
                 crop: int = 48,
                 depth: int = 12,
                 num_heads: int = 12,
                 mlp_ratio: float = 4.) -> None:
        super().__init__()
        embed_dims = channels * patch**2
        if crop % patch:
            raise ValueError(f'crop must be a multiple of patch={patch}, got {crop}')
        if embed_dims % num_heads:
            raise ValueError('num_heads must divide channels * patch**2 = '
                             f'{embed_dims}, got {num_heads}')
        self.crop, self.patch = crop, patch
        tokens = (crop // patch)**2
        self.heads = nn.ModuleDict({task: make_head(channels) for task in tasks})
        self.tails = nn.ModuleDict(
            {task: make_tail(channels, enlargement(task)) for task in tasks})
        self.positions = nn.Parameter(torch.empty(tokens, embed_dims))
        self.task_embeddings = nn.ParameterDict(
            {task: nn.Parameter(torch.empty(tokens, embed_dims)) for task in tasks})
        for embedding in (self.positions, *self.task_embeddings.values()):
            nn.init.trunc_normal_(embedding, std=0.02)
        self.transformer = Transformer(embed_dims, depth, num_heads, mlp_ratio)

    def forward(self, images: Tensor, task: str) -> tuple[Tensor, Tensor]:
        """Restore images of one size.

        Args:
            images: (B, 3, crop, crop), normalised.
            task: One of the tasks.

        Returns:
            The restored images (B, 3, scale * crop, scale * crop), and the
            decoder's tokens (B, N, C).
        """
        x = self._tokens(self.heads[task](images))
        x = self.transformer(x + self.positions, self.task_embeddings[task])
        return self.tails[task](self._maps(x)), x

    def _tokens(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, C * patch * patch), patches row by row."""
        x = maps.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        # (B, C, rows, p, columns, p) to (B, rows, columns, C, p, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _maps(self, tokens: Tensor) -> Tensor:
        """Undo ``_tokens``."""
        rows = isqrt(tokens.shape[1])
        x = tokens.unflatten(2, (-1, self.patch, self.patch))
        x = x.unflatten(1, (rows, rows))  # (B, rows, columns, C, p, p)
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
