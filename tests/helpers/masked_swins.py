"""Small Swin Transformers of both libraries, and a version that masks its keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpt_plugin import GreenMIM, SimMIM

LIBRARIES = ('mmdet', 'mmseg')


def swin(library: str = 'mmdet', **settings) -> dict:
    """Return the config of a small Swin: 4 stages, windows of 2."""
    return {**dict(type=f'{library}.SwinTransformer', embed_dims=8,
                   depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=2,
                   drop_path_rate=0.), **settings}


SMALL = dict(embed_dims=16, num_heads=2)


def green_mim(backbone: dict | None = None, **settings) -> GreenMIM:
    """Build a small GreenMIM with random biases and norms, too."""
    return _random(GreenMIM(backbone or swin(), decoder=SMALL, **settings))


def sim_mim(backbone: dict | None = None, **settings) -> SimMIM:
    """Build a small SimMIM with random biases and norms, too."""
    return _random(SimMIM(backbone or swin(), **settings))


def _random(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * 0.5 + noise * 0.2)
    return model


def hide_keys(backbone: nn.Module, visible: Tensor) -> None:
    """Give masked keys a score of minus infinity in all windows of a Swin.

    ``visible`` (rows, columns) is true for the visible units of the images.
    """
    side = 32 // backbone.patch_embed.projection.stride[0]  # tokens of a unit
    for stage in backbone.stages:
        tokens = visible.repeat_interleave(side, 0).repeat_interleave(side, 1)
        for block in stage.blocks:
            _hide_keys(block.attn, tokens)
        side //= 2


def _hide_keys(attention: nn.Module, visible: Tensor) -> None:
    window, shift = attention.window_size, attention.shift_size
    height, width = visible.shape
    there = F.pad(visible.double(), (0, -width % window, 0, -height % window))
    there = there.roll((-shift, -shift), (0, 1))[None, ..., None]
    there = attention.window_partition(there).flatten(1) > 0  # (windows, keys)
    # A window without visible keys has no visible queries: scores do not matter.
    hidden = ~there & there.any(1, keepdim=True)
    scores = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None]
    inner = attention.w_msa.forward

    def forward(x: Tensor, mask: Tensor | None = None) -> Tensor:
        count = x.shape[1]
        all_scores = scores.expand(-1, count, -1).to(x)
        return inner(x, mask=all_scores if mask is None else mask + all_scores)

    attention.w_msa.forward = forward
