"""Building the branches of FPT from their configs, and what they read."""

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
    """Whether ``function`` takes an argument of this name."""
    return name in inspect.signature(function).parameters


def default_num_mixtures(name: str, cfg: dict | None) -> int:
    """Parts of the mixture that a branch's config asks for; 1 where none."""
    if cfg is None:
        return 1
    cls = _class_of(name, cfg)
    if 'num_mixtures' in cfg:
        parts = cfg['num_mixtures']
    elif accepts(cls, 'num_mixtures'):
        parts = inspect.signature(cls).parameters['num_mixtures'].default
    else:
        return 1
    # What is no positive whole number is refused by the layer, by its name.
    return parts if isinstance(parts, int) and parts > 0 else 1


def build_branch(name: str, cfg: dict, in_channels: int, embed_channels: int,
                 key_stride: int | None) -> tuple[nn.Module, bool]:
    """Build one layer; what its config says wins over the neck's values.

    Args:
        name: FPT's argument, for messages.
        cfg: Config of the layer.
        in_channels: Channels of the pyramid.
        embed_channels: Channels of the layer's output.
        key_stride: Pooling of its keys, or None to leave it to the forward.

    Returns:
        The layer, and whether its forward takes the key stride that the neck
        computes from the maps.

    Raises:
        TypeError: ``cfg`` is not a dict with a type.
        ValueError: No registry knows the type, or it cannot be built.
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
        raise ValueError(f'{name} has a type that no registry knows, got '
                         f'{cfg["type"]!r}')
    return found


def level_pairs(name: str, first: int,
                num_levels: int) -> list[tuple[int, int]]:
    """(level, source level) of each layer of a branch.

    Args:
        name: ``'self_transformer'``, ``'grounding_transformer'``, whose
            sources are coarser, or ``'rendering_transformer'``, whose sources
            are finer.
        first: The finest level that it reads or writes.
        num_levels: Number of transformed levels.
    """
    sources = dict(
        self_transformer=lambda i: [i],
        grounding_transformer=lambda i: range(i + 1, num_levels),
        rendering_transformer=lambda i: range(first, i))[name]
    return [(i, j) for i in range(first, num_levels) for j in sources(i)]


def pooling_strides(maps: Sequence[Tensor]) -> tuple[int, ...]:
    """Key strides that bring each level to the coarsest one's grid.

    Counted from level to level, so that rounding to whole pixels does not pile
    up: halving 25x42 three times gives 4x6, which is a stride of 8 and not of
    6.
    """
    strides = [1]
    for level in reversed(range(len(maps) - 1)):
        fine, coarse = maps[level].shape[2:], maps[level + 1].shape[2:]
        ratio = max(int(f) / int(c) for f, c in zip(fine, coarse))
        strides.append(strides[-1] * max(1, round(ratio)))
    return tuple(reversed(strides))


# Images of 3200 x 3200 have so many keys at a stride of 32, and maps of 100 x 100
# that no pyramid pools.
MOST_KEYS = 10_000


def warn_of_many_keys(x: Tensor) -> bool:
    """Name the cure where attention to a whole map takes long.

    Args:
        x: The map (B, C, H, W) whose grid all keys are pooled to.

    Returns:
        Whether there was something to say.
    """
    keys = x.shape[2] * x.shape[3]
    if keys <= MOST_KEYS or is_captured() or is_compiled():
        return False
    warnings.warn(
        f'FPT attends to {keys} keys a map, those of {x.shape[2]} x {x.shape[3]} '
        f'pixels of the coarsest level, which grow with the image. '
        f'key_strides=... pools more: an int for all levels, or one a level',
        stacklevel=2)
    return True


def branch_arguments(
        level: int, source: int, maps: Sequence[Tensor],
        strides: tuple[int, ...] | None) -> tuple[tuple[Tensor, ...], dict]:
    """What a layer is called with; all take the map they belong to first."""
    args = (maps[level], ) if source == level else (maps[level], maps[source])
    return args, dict(key_stride=strides[source]) if strides else {}


def resolve_key_strides(
        num_levels: int, key_strides: int | list[int] | tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """The key strides of the levels, of one for all or of one a level.

    Raises:
        TypeError: One is not an int.
        ValueError: One is less than 1, or they are not as many as levels.
    """
    if key_strides is None:
        return None
    if not isinstance(key_strides, (list, tuple)):
        key_strides = [key_strides] * num_levels
    if len(key_strides) != num_levels:
        raise ValueError('key_strides must be an int or one a transformed level '
                         f'({num_levels}), got {tuple(key_strides)}')
    return tuple(check_positive_int('key_strides', s) for s in key_strides)
