"""Run the Swin Transformer of mmdet or mmseg on a part of an image.

The library's own modules are called one by one, so checkpoints have the library's
format. A unit of the image contains whole tokens of every stage. Layers that work
on single tokens treat it as a small image.
"""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..functional.window_groups import (
    WindowGroups,
    attend_in_groups,
    group_windows,
)
from ..openmmlab.pins import SCOPES
from ..openmmlab.registry import lookup
from .masks import on_device_of
from .units import split_units


def build_swin(backbone: dict) -> nn.Module:
    """Build a Swin Transformer that returns the map of its last stage.

    Args:
        backbone: Its config. The default of ``out_indices`` is the last stage: the
            norms of other outputs would not be trained.

    Raises:
        TypeError: ``backbone`` is no config.
        ValueError: It is no Swin Transformer of mmdet or mmseg, returns other maps,
            or its patches overlap.
    """
    if not isinstance(backbone, dict):
        raise TypeError('backbone must be the config of a SwinTransformer, got '
                        f'{type(backbone).__name__}')
    known = tuple(filter(None, (
        lookup(MODELS, f'{scope}.SwinTransformer') for scope in SCOPES)))
    given = lookup(MODELS, backbone.get('type'))
    if not (isinstance(given, type) and issubclass(given, known)):
        raise ValueError('backbone must be the SwinTransformer of mmdet or mmseg, '
                         f'got {backbone.get("type")}')
    last = len(backbone.get('depths', (2, 2, 6, 2))) - 1
    swin = MODELS.build(dict(dict(out_indices=(last, )), **backbone))
    # Rows and columns of absolute positions; the library compares only their product.
    sides = to_2tuple(backbone.get('pretrain_img_size', 224))
    patch = swin.patch_embed.projection.stride[0]
    swin.position_grid = (sides[0] // patch, sides[-1] // patch)
    if tuple(swin.out_indices) != (last, ):
        raise ValueError(
            f'backbone.out_indices must be ({last},), the last stage, because norms '
            f'of other outputs would not learn, got {tuple(swin.out_indices)}')
    for stage in swin.stages[:-1]:
        sampler = stage.downsample.sampler
        if sampler.kernel_size != sampler.stride:
            raise ValueError('backbone.strides must equal the kernel sizes, '
                             f'(4, 2, 2, 2), got {sampler.stride} for a kernel of '
                             f'{sampler.kernel_size}')
    return swin


def stride_of(swin: nn.Module) -> int:
    """Return the side in pixels of a token of the last stage."""
    stride = swin.patch_embed.projection.stride[0]
    for stage in swin.stages[:-1]:
        stride *= stage.downsample.sampler.stride[0]
    return stride


def visible_features(swin: nn.Module, units: Tensor, places: Tensor,
                     grid: tuple[int, int]) -> Tensor:
    """Run a Swin Transformer only on some units of each image.

    Linear layers and norms process visible tokens; attention is between the visible
    tokens of a window. If all units are visible and the sides are multiples of the
    window in every stage, the result equals the library's forward pass. For other
    sides the library adds zero tokens at the border, which are omitted here.

    Args:
        swin: The result of :func:`build_swin`.
        units: Pixels of the units (B, V, C, side, side).
        places: Indices of the units in the image (V,), on the CPU.
        grid: Rows and columns of units in the image.

    Returns:
        (B, V, k): the last stage's tokens of each unit, concatenated.
    """
    batch, count = units.shape[:2]
    x, size = embed_units(swin, units, places, grid)  # (B, V * h * w, C)
    for stage in swin.stages:
        coords = token_coords(places, size, grid)  # (V * h * w, 2)
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
    """Run a Swin Transformer on a smaller image made of some units.

    Args:
        swin: The result of :func:`build_swin`.
        units: Pixels of the units (B, V, C, side, side), in the order of ``places``.
        places: Indices in the image of the smaller image's units (rows, columns),
            on the CPU.
        grid: Rows and columns of units in the image.

    Returns:
        (B, V, k): the last stage's tokens of each unit, concatenated.
    """
    x, size = embed_units(swin, units, places.flatten(), grid)
    height, width = (n * s for n, s in zip(places.shape, size))
    x = x.unflatten(1, (*places.shape, *size)).transpose(2, 3)
    # (B, rows, h, columns, w, C)
    out = map_features(swin, x.flatten(1, 4), (height, width))  # (B, C', H', W')
    return split_units(out, out.shape[-1] // places.shape[1]).flatten(2)


def embed_units(swin: nn.Module, units: Tensor, places: Tensor,
                grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Compute the tokens of the first stage; see :func:`visible_features`.

    Returns:
        The tokens (B, V * h * w, C), unit by unit, and (h, w), the rows and columns
        of tokens in a unit.
    """
    x, size = swin.patch_embed(units.flatten(0, 1))  # (B * V, h * w, C)
    x = x.reshape(len(units), -1, x.shape[-1])  # (B, V * h * w, C)
    coords = token_coords(places, size, grid)
    width = grid[1] * size[1]
    x = add_positions(swin, x, (grid[0] * size[0], width),
                      coords[:, 0] * width + coords[:, 1])
    return swin.drop_after_pos(x), size


def map_features(swin: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Run the stages on a whole map (B, H * W, C); return (B, C', H', W')."""
    for stage in swin.stages:
        x, size, out, out_size = stage(x, size)  # out: (B, H' * W', C')
    return last_norm(swin)(out).transpose(1, 2).unflatten(2, out_size)


def add_positions(swin: nn.Module, x: Tensor, size: tuple[int, int],
                  tokens: Tensor | None = None) -> Tensor:
    """Add absolute positions to tokens, if the backbone has some.

    Args:
        swin: The backbone.
        x: (B, N, C).
        size: Rows and columns of tokens in an image.
        tokens: Indices of the tokens in the image (N,); None: all tokens.

    Raises:
        ValueError: The backbone has positions for another image size.
    """
    if not swin.use_abs_pos_embed:
        return x
    positions = swin.absolute_pos_embed  # (1, H * W, C)
    if swin.position_grid != size:
        stride = swin.patch_embed.projection.stride[0]
        images, given = (tuple(stride * side for side in sides)
                         for sides in (size, swin.position_grid))
        raise ValueError(
            f'backbone.pretrain_img_size must be the size of the images, {images}, '
            f'because of use_abs_pos_embed=True, got {given}')
    if tokens is None:
        return x + positions
    return x + positions.index_select(1, on_device_of(tokens, x))


def last_norm(swin: nn.Module) -> nn.Module:
    """Return the norm of the last stage's output."""
    return getattr(swin, f'norm{len(swin.stages) - 1}')


def token_coords(places: Tensor, size: tuple[int, int],
                 grid: tuple[int, int]) -> Tensor:
    """Return the image coordinates of all tokens of some units, unit by unit.

    Args:
        places: Indices of the units (V,).
        size: Rows and columns of tokens in a unit.
        grid: Rows and columns of units in the image.

    Returns:
        Row and column of each token (V * h * w, 2).
    """
    units = torch.stack([places // grid[1], places % grid[1]], dim=1)  # (V, 2)
    inside = torch.cartesian_prod(
        *(torch.arange(side, device='cpu') for side in size))  # (h * w, 2)
    return (units[:, None] * units.new_tensor(size) + inside).flatten(0, 1)


def _run(block: nn.Module, x: Tensor, groups: WindowGroups) -> Tensor:
    """Run a block of the library with attention over visible tokens."""

    def forward(x: Tensor) -> Tensor:  # (B, N, C)
        attention, windows = block.attn, block.attn.w_msa
        qkv = windows.qkv(block.norm1(x)).unflatten(
            2, (3, windows.num_heads, -1))  # (B, N, 3, h, d)
        out = attend_in_groups(  # (B, N, C)
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
