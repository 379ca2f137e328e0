"""The Swin Transformer of mmdet or mmseg, run on a part of an image.

The modules are those of the library, called one by one, so a checkpoint is the
library's own. A unit of the image holds whole tokens of every stage; for layers
that look at no other token it is a small image.
"""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..functional.window_groups import (
    WindowGroups,
    attend_in_groups,
    group_windows,
)
from ..openmmlab.pins import SCOPES
from ..openmmlab.registry import lookup
from .masks import beside
from .units import split_units


def build_swin(backbone: dict) -> nn.Module:
    """Build a Swin Transformer that gives the map of its last stage.

    Args:
        backbone: Its config. ``out_indices`` is the last stage where it is not
            given: norms of other outputs would not learn.

    Raises:
        TypeError: ``backbone`` is no config.
        ValueError: It is no Swin Transformer of mmdet or mmseg, gives other maps,
            or its stages overlap.
    """
    if not isinstance(backbone, dict):
        raise TypeError('backbone must be the config of a SwinTransformer, got '
                        f'{type(backbone).__name__}')
    last = len(backbone.get('depths', (2, 2, 6, 2))) - 1
    swin = MODELS.build(dict(dict(out_indices=(last, )), **backbone))
    known = tuple(filter(None, (
        lookup(MODELS, f'{scope}.SwinTransformer') for scope in SCOPES)))
    if not isinstance(swin, known):
        raise ValueError('backbone must be the SwinTransformer of mmdet or mmseg, '
                         f'got {backbone.get("type")}')
    if tuple(swin.out_indices) != (last, ):
        raise ValueError(
            f'backbone.out_indices must be ({last},), the last stage, as norms of '
            f'other outputs would not learn, got {tuple(swin.out_indices)}')
    for stage in swin.stages[:-1]:
        sampler = stage.downsample.sampler
        if sampler.kernel_size != sampler.stride:
            raise ValueError('backbone.strides must be those of stages that do not '
                             f'overlap, (4, 2, 2, 2), got {sampler.stride} for a '
                             f'kernel of {sampler.kernel_size}')
    return swin


def stride_of(swin: nn.Module) -> int:
    """Pixels a side of a token of the last stage."""
    stride = swin.patch_embed.projection.stride[0]
    for stage in swin.stages[:-1]:
        stride *= stage.downsample.sampler.stride[0]
    return stride


def visible_features(swin: nn.Module, units: Tensor, places: Tensor,
                     grid: tuple[int, int]) -> Tensor:
    """Run a Swin Transformer on some units of each image, as if no others were.

    Linear layers and norms see visible tokens, attention sees those of a window.
    With all units visible and sides that are multiples of windows in every stage
    it is the library's own forward pass. For other sides the library adds tokens
    of zeros at the border, which are left out here.

    Args:
        swin: What :func:`build_swin` returns.
        units: (B, V, C, side, side), pixels.
        places: (V,), the numbers of the units in the image; on the CPU.
        grid: Rows and columns of units in the image.

    Returns:
        (B, V, k), the last stage's tokens of each unit, side by side.
    """
    batch, count = units.shape[:2]
    x, size = embed_units(swin, units, places, grid)
    for stage in swin.stages:
        coords = token_coords(places, size, grid)
        plans: dict[int, WindowGroups] = {}
        for block in stage.blocks:
            shift = block.attn.shift_size
            if shift not in plans:
                plans[shift] = group_windows(
                    coords, block.attn.window_size, shift, x.device)
            x = _run(block, x, plans[shift])
        if stage.downsample is not None:
            x, size = stage.downsample(
                x.reshape(batch * count, -1, x.shape[-1]), size)
            x = x.reshape(batch, -1, x.shape[-1])  # (B, V * h * w, C)
    return last_norm(swin)(x).reshape(batch, count, -1)


def compact_features(swin: nn.Module, units: Tensor, places: Tensor,
                     grid: tuple[int, int]) -> Tensor:
    """Run a Swin Transformer on some units of each image, moved together.

    The units are a smaller image for the library's own forward pass.

    Args:
        swin: What :func:`build_swin` returns.
        units: (B, V, C, side, side), pixels, in the order of ``places``.
        places: (rows, columns) of the smaller image, the numbers of its units in
            the image; on the CPU.
        grid: Rows and columns of units in the image.

    Returns:
        (B, V, k), the last stage's tokens of each unit, side by side.
    """
    x, size = embed_units(swin, units, places.flatten(), grid)
    height, width = (n * s for n, s in zip(places.shape, size))
    x = x.unflatten(1, (*places.shape, *size)).transpose(2, 3)
    # (B, rows, h, columns, w, C)
    out = map_features(swin, x.flatten(1, 4), (height, width))
    return split_units(out, out.shape[-1] // places.shape[1]).flatten(2)


def embed_units(swin: nn.Module, units: Tensor, places: Tensor,
                grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Tokens of the first stage, and rows and columns of a unit.

    Takes what :func:`visible_features` does.

    Returns:
        (B, V * h * w, C), unit by unit, and (h, w).
    """
    x, size = swin.patch_embed(units.flatten(0, 1))  # (B * V, h * w, C)
    x = x.reshape(len(units), -1, x.shape[-1])
    coords = token_coords(places, size, grid)
    width = grid[1] * size[1]
    x = add_positions(swin, x, (grid[0] * size[0], width),
                      coords[:, 0] * width + coords[:, 1])
    return swin.drop_after_pos(x), size


def map_features(swin: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Run the stages on a whole map: (B, H * W, C) to (B, C', H', W')."""
    for stage in swin.stages:
        x, size, out, out_size = stage(x, size)
    return last_norm(swin)(out).transpose(1, 2).unflatten(2, out_size)


def add_positions(swin: nn.Module, x: Tensor, size: tuple[int, int],
                  tokens: Tensor | None = None) -> Tensor:
    """Add absolute positions to tokens, if the backbone has some.

    Args:
        swin: The backbone.
        x: (B, N, C).
        size: Rows and columns of tokens in an image.
        tokens: (N,), the numbers of the tokens in it; None: all of them.

    Raises:
        ValueError: The backbone's positions are those of another size.
    """
    if not swin.use_abs_pos_embed:
        return x
    positions = swin.absolute_pos_embed  # (1, H * W, C)
    if positions.shape[1] != size[0] * size[1]:
        stride = swin.patch_embed.projection.stride[0]
        raise ValueError(
            'backbone.pretrain_img_size must be the size of the images, '
            f'{tuple(stride * s for s in size)}, as use_abs_pos_embed=True has a '
            f'position for each of {positions.shape[1]} tokens')
    if tokens is None:
        return x + positions
    return x + positions.index_select(1, beside(tokens, x))


def last_norm(swin: nn.Module) -> nn.Module:
    """The norm of the last stage's output."""
    return getattr(swin, f'norm{len(swin.stages) - 1}')


def token_coords(places: Tensor, size: tuple[int, int],
                 grid: tuple[int, int]) -> Tensor:
    """Rows and columns in the image of all tokens of some units, unit by unit.

    Args:
        places: (V,), the numbers of the units.
        size: Rows and columns of tokens in a unit.
        grid: Rows and columns of units in the image.

    Returns:
        (V * h * w, 2).
    """
    units = torch.stack([places // grid[1], places % grid[1]], dim=1)  # (V, 2)
    inside = torch.cartesian_prod(
        *(torch.arange(side, device='cpu') for side in size))  # (h * w, 2)
    return (units[:, None] * units.new_tensor(size) + inside).flatten(0, 1)


def _run(block: nn.Module, x: Tensor, groups: WindowGroups) -> Tensor:
    """A block of the library, its attention over visible tokens."""

    def forward(x: Tensor) -> Tensor:
        attention, windows = block.attn, block.attn.w_msa
        qkv = windows.qkv(block.norm1(x)).unflatten(
            2, (3, windows.num_heads, -1))  # (B, N, 3, h, d)
        out = attend_in_groups(
            qkv,
            windows.relative_position_bias_table,
            groups,
            scale=windows.scale,
            dropout=windows.attn_drop.p if windows.training else 0.)
        x = x + attention.drop(windows.proj_drop(windows.proj(out)))
        return block.ffn(block.norm2(x), identity=x)

    if block.with_cp and x.requires_grad:
        return checkpoint(forward, x, use_reentrant=False)
    return forward(x)
