"""Attention maps of FPT for chosen query pixels of an image.

The forward pass stops before FPT, so that attention is computed only for the
chosen pixels. For each pixel and branch there is one map: the attention weights
of all keys, summed over the parts of the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ...functional.windows import centres
from ...layers import LocalGroundingTransformer
from .model import branch_inputs
from .network_input import NetworkView, as_batch, closest_view


@dataclass(frozen=True)
class PixelAttention:
    """Attention of one query pixel in one branch.

    Attributes:
        point: x and y in the image.
        view: Part of the image that was the network's input.
        cell: Row and column of the pixel in its level's map.
        size: Height and width of that map.
        weights: (h, w), attention weights at the pixels of the source level.
            Pixels that were pooled to one key all have the weight of that key.
        keys: Number of keys that the pixel attends to.
        peak: The largest weight.
        outside: Sum of the weights of the zero keys around the map.
        window: First row and column of the attention window, and its exclusive
            end row and column; None: the whole source.
    """

    point: tuple[int, int]
    view: NetworkView
    cell: tuple[int, int]
    size: tuple[int, int]
    weights: np.ndarray
    keys: int
    peak: float
    outside: float
    window: tuple[int, int, int, int] | None = None


@dataclass
class Branch:
    """Attention of one branch.

    Attributes:
        name: ST, GT, LGT or RT.
        level: Name of the query level.
        source: Name of the key level.
        place: Indices of the two levels.
        key_stride: Pooling of the keys.
        attentions: One for each query pixel; empty for RT.
        channel_weights: RT's channel weights, (E,) for each view; else empty.
    """

    name: str
    level: str
    source: str
    place: tuple[int, int]
    key_stride: int = 1
    attentions: list[PixelAttention] = field(default_factory=list)
    channel_weights: list[np.ndarray] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Name and levels, such as 'ST P3' or 'GT P3 <- P5'."""
        source = '' if self.level == self.source else f' <- {self.source}'
        return f'{self.name} {self.level}{source}'


# ----------------------------------------------------------------------- levels


def level_names(sizes: Sequence[tuple[int, int]],
                inputs: tuple[int, int]) -> list[str]:
    """Name the levels by their stride: P3 for a stride of 8.

    Levels of equal stride get a letter as a suffix: P3a, P3b.

    Args:
        sizes: Height and width of each level's map.
        inputs: Height and width of the network's input.
    """
    names = []
    for size in sizes:
        # The longer side gives the stride most precisely. Sizes are usually
        # rounded up.
        length, cells = max(zip(inputs, size))
        names.append(f'P{max(0, math.ceil(math.log2(length / cells) - 0.1))}')
    letters = [chr(ord('a') + names[:i].count(name))
               for i, name in enumerate(names)]
    return [
        name + letter if names.count(name) > 1 else name
        for name, letter in zip(names, letters)
    ]


def chosen_level(level: str | None, names: Sequence[str]) -> int | None:
    """Return the index of a level's name; None for all.

    Raises:
        ValueError: There is no such level.
    """
    if level is None:
        return None
    wanted = level.lower() if level[:1] in 'pP' else f'p{level.lower()}'
    for index, name in enumerate(names):
        if wanted == name.lower():
            return index
    raise ValueError('level must be one of the levels that FPT transforms, '
                     f'{", ".join(names)}, got {level}')


# ------------------------------------------------------------------------- maps


def attention_branches(model: nn.Module,
                       views: Sequence[NetworkView],
                       points: Sequence[tuple[int, int]],
                       level: str | None = None) -> list[Branch]:
    """Compute a model's attention from some pixels of an image.

    Args:
        model: A detector or segmentor with FPT.
        views: Inputs of its network, which cover the image.
        points: x and y of query pixels in the image.
        level: Name of the query level; None: all.

    Returns:
        The attention of each branch, level by level.

    Raises:
        ValueError: There is no such level, or it has no branch to show.
    """
    branches: dict[tuple[int, int], Branch] = {}  # by level and source
    attentions: dict[tuple[int, int], dict[int, PixelAttention]] = {}
    owners = [closest_view(list(views), point) for point in points]
    for owner in sorted(set(owners)):
        view = views[owner]
        mine = [i for i, other in enumerate(owners) if other == owner]
        calls = branch_inputs(model, view.inputs)
        names = _names(calls, view)
        number = chosen_level(level, list(names.values())) if calls else None
        chosen = None if number is None else list(names)[number]
        for index, source, layer, args, kwargs in calls:
            if chosen not in (None, index):
                continue
            place = index, source
            branch = branches.setdefault(
                place, Branch(_kind(layer, *place), names[index], names[source],
                              place))
            if hasattr(layer, 'attention_at'):
                branch.key_stride = kwargs.get('key_stride', layer.key_stride)
                found = _attend(layer, args, kwargs, view,
                               [points[i] for i in mine])
                attentions.setdefault(place, {}).update(zip(mine, found))
            elif hasattr(layer, 'channel_weights'):
                with torch.no_grad():
                    weights = layer.channel_weights(args[1])[0].flatten()
                branch.channel_weights.append(weights.float().cpu().numpy())
    for place, found in attentions.items():
        branches[place].attentions = [found[i] for i in range(len(points))]
    shown = [b for b in branches.values() if b.attentions or b.channel_weights]
    if not shown:
        raise ValueError('the model must have a branch of FPT to show, got none '
                         f'at {level or "any level"}')
    return shown


def _names(calls: list, view: NetworkView) -> dict[int, str]:
    """Name the levels with branches, by index; the finest may have none."""
    sizes = {}
    for level, source, _, args, _ in calls:
        sizes[level] = tuple(args[0].shape[2:])
        sizes[source] = tuple(args[-1].shape[2:])
    levels = sorted(sizes)
    return dict(zip(levels, level_names([sizes[i] for i in levels],
                                        tuple(view.inputs.shape[2:]))))


def _kind(layer: nn.Module, level: int, source: int) -> str:
    if level == source:
        return 'ST'
    if level > source:
        return 'RT'
    return 'LGT' if isinstance(layer, LocalGroundingTransformer) else 'GT'


def _attend(layer: nn.Module, args: tuple, kwargs: dict, view: NetworkView,
           points: list[tuple[int, int]]) -> list[PixelAttention]:
    """Compute the attention maps of some points in one layer."""
    size, source = (tuple(x.shape[2:]) for x in (args[0], args[-1]))
    cells = [view.cell(point, size) for point in points]
    with torch.no_grad():
        maps = layer.attention_at(  # (P, h / stride, w / stride)
            as_batch(cells, args[0].device), *args, **kwargs)[0].cpu()
    stride = kwargs.get('key_stride', layer.key_stride)
    unpooled = maps.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    unpooled = unpooled[:, :source[0], :source[1]].float().numpy()  # (P, h, w)
    return [
        PixelAttention(
            point=point,
            view=view,
            cell=cell,
            size=size,
            weights=unpooled_weights,
            keys=weights.numel() if window is None else
            _keys_in(window, source, layer.pad),
            peak=weights.max().item(),
            outside=max(0., 1 - weights.sum().item()),
            window=window)
        for point, cell, weights, unpooled_weights, window in zip(
            points, cells, maps, unpooled,
            (_window(layer, cell, size, source) for cell in cells))
    ]


def _window(layer: nn.Module, cell: tuple[int, int], size: tuple[int, int],
            source: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return a pixel's window: first row and column, and the exclusive ends."""
    if not isinstance(layer, LocalGroundingTransformer):
        return None
    reach = layer.window // 2
    row, column = (
        centres(fine, coarse)[place]
        for fine, coarse, place in zip(size, source, cell))
    return row - reach, column - reach, row + reach + 1, column + reach + 1


def _keys_in(window: tuple[int, int, int, int], source: tuple[int, int],
             pad: str) -> int:
    """Count the keys of a window; zero padding counts as keys too."""
    rows, columns = (
        end - start if pad == 'zero' else min(end, length) - max(start, 0)
        for start, end, length in zip(window[:2], window[2:], source))
    return rows * columns
