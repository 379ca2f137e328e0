"""Build the branches of FPT from their configs and list their inputs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..functional.checks import is_captured, is_compiled
from ..layers.checks import check_positive_int, refusing
from ..openmmlab.registry import lookup


def accepts(function: Callable, name: str) -> bool:
    """Return whether ``function`` has an argument of this name."""
    return name in inspect.signature(function).parameters


def default_num_mixtures(name: str, cfg: dict | None) -> int:
    """Return the number of mixture parts of a branch, 1 if it has none."""
    if cfg is None:
        return 1
    cls = _class_of(name, cfg)
    if 'num_mixtures' in cfg:
        parts = cfg['num_mixtures']
    elif accepts(cls, 'num_mixtures'):
        parts = inspect.signature(cls).parameters['num_mixtures'].default
    else:
        return 1
    # The layer itself raises an error for any other value.
    return parts if isinstance(parts, int) and parts > 0 else 1


def build_branch(name: str, cfg: dict, in_channels: int, embed_channels: int,
                 key_stride: int | None) -> tuple[nn.Module, bool]:
    """Build one layer; its config overrides the neck's values.

    Args:
        name: Name of FPT's argument, for messages.
        cfg: Config of the layer.
        in_channels: Channels of the pyramid.
        embed_channels: Channels of the layer's output.
        key_stride: Pooling of its keys; None: the forward pass sets it.

    Returns:
        The layer, and whether its ``forward`` takes the key stride that the
        neck computes from the maps.

    Raises:
        TypeError: ``cfg`` is not a dict with a type.
        ValueError: The type is not registered, or it cannot be built.
    """
    cls = _class_of(name, cfg)
    args = dict(in_channels=in_channels, embed_channels=embed_channels)
    if key_stride is not None and accepts(cls, 'key_stride'):
        args['key_stride'] = key_stride
    args.update(cfg)
    with refusing(name, cfg):
        layer = MODELS.build(args)
    return layer, 'key_stride' not in args and accepts(layer.forward,
                                                       'key_stride')


def _class_of(name: str, cfg: dict) -> Callable:
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(
            f'{name} must be a dict with a type, or None, got {cfg!r}')
    with MODELS.switch_scope_and_registry(cfg.get('_scope_')) as registry:
        found = lookup(registry, cfg['type'])
    if found is None:
        raise ValueError(
            f'{name} must have a registered type, got {cfg["type"]!r}')
    return found


def level_pairs(name: str, first: int,
                num_levels: int) -> list[tuple[int, int]]:
    """List (level, source level) of each layer of a branch.

    Args:
        name: ``'self_transformer'``, ``'grounding_transformer'`` (its sources
            are coarser) or ``'rendering_transformer'`` (its sources are finer).
        first: The finest level that the branch reads or writes.
        num_levels: Number of transformed levels.
    """
    sources = dict(
        self_transformer=lambda i: [i],
        grounding_transformer=lambda i: range(i + 1, num_levels),
        rendering_transformer=lambda i: range(first, i))[name]
    return [(i, j) for i in range(first, num_levels) for j in sources(i)]


def pooling_strides(maps: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the key strides that pool each level to the coarsest grid.

    The strides are multiplied from level to level, so that rounding to whole
    pixels does not accumulate: halving 25x42 three times gives 4x6, which is a
    stride of 8 and not of 6.
    """
    strides = [1]
    for level in reversed(range(len(maps) - 1)):
        fine, coarse = maps[level].shape[2:], maps[level + 1].shape[2:]
        ratio = max(int(f) / int(c) for f, c in zip(fine, coarse))
        strides.append(strides[-1] * max(1, round(ratio)))
    return tuple(reversed(strides))


# 100 x 100: the map of stride 32 of a 3200 x 3200 image.
MAX_KEYS = 10_000


def warn_of_many_keys(x: Tensor) -> bool:
    """Warn if global attention is slow because a map has many keys.

    Args:
        x: The map (B, C, H, W) to whose grid all keys are pooled.

    Returns:
        Whether the warning was given.
    """
    keys = x.shape[2] * x.shape[3]
    if keys <= MAX_KEYS or is_captured() or is_compiled():
        return False
    warnings.warn(
        f'FPT attends to {keys} keys a map, those of {x.shape[2]} x {x.shape[3]} '
        f'pixels of the coarsest level, which grow with the image. Set '
        f'key_strides=... to pool more: an int for all levels, or one per level',
        stacklevel=2)
    return True


def branch_arguments(
        level: int, source: int, maps: Sequence[Tensor],
        strides: tuple[int, ...] | None) -> tuple[tuple[Tensor, ...], dict]:
    """Return the arguments of a layer's call; the map of its level is first."""
    args = (maps[level], ) if source == level else (maps[level], maps[source])
    return args, dict(key_stride=strides[source]) if strides else {}


def resolve_key_strides(
        num_levels: int, key_strides: int | list[int] | tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Return one key stride per level, or None.

    Raises:
        TypeError: A stride is not an int.
        ValueError: A stride is less than 1, or their number is not that of the
            levels.
    """
    if key_strides is None:
        return None
    if not isinstance(key_strides, (list, tuple)):
        key_strides = [key_strides] * num_levels
    if len(key_strides) != num_levels:
        raise ValueError('key_strides must be an int or one int per transformed '
                         f'level ({num_levels}), got {tuple(key_strides)}')
    return tuple(check_positive_int('key_strides', s) for s in key_strides)
