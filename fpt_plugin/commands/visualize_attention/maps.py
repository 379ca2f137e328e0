"""Where FPT looks from some pixels of an image.

A pass of the model stops before its FPT, so that no attention is computed but
for the pixels that are asked for: for each of them the shares by which a branch
weights the values of its keys, summed over the parts of the mixture, which is
one map a pixel and branch.
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
class Gaze:
    """Where one pixel of a level looks.

    Attributes:
        point: x and y in the image.
        view: What the network saw of the image.
        cell: Row and column of the pixel in its level's map.
        size: Height and width of that map.
        shares: (h, w), of each pixel of the source level; pixels that were
            pooled to one key have the share of that key.
        keys: The number of keys that it sees.
        peak: The largest share.
        outside: What fell on the zero keys around the map.
        window: First row and column of the window that it sees, and those
            behind its end; None: it sees the whole source.
    """

    point: tuple[int, int]
    view: NetworkView
    cell: tuple[int, int]
    size: tuple[int, int]
    shares: np.ndarray
    keys: int
    peak: float
    outside: float
    window: tuple[int, int, int, int] | None = None


@dataclass
class Branch:
    """What one branch does for the points.

    Attributes:
        name: ST, GT, LGT or RT.
        level: Name of its level.
        source: Name of the level that it reads.
        place: Indices of the two.
        key_stride: Pooling of the keys.
        gazes: One a point; none of RT.
        weights: RT's channel weights, (E,) a view that was used.
    """

    name: str
    level: str
    source: str
    place: tuple[int, int]
    key_stride: int = 1
    gazes: list[Gaze] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)

    @property
    def title(self) -> str:
        """As in 'ST P3' or 'GT P3 <- P5'."""
        source = '' if self.level == self.source else f' <- {self.source}'
        return f'{self.name} {self.level}{source}'


# ----------------------------------------------------------------------- levels


def level_names(sizes: Sequence[tuple[int, int]],
                inputs: tuple[int, int]) -> list[str]:
    """Names of the levels by their stride: P3 for a stride of 8.

    Levels of equal stride get a letter behind: P3a, P3b.

    Args:
        sizes: Height and width of each level's map.
        inputs: Height and width of the network's input.
    """
    names = []
    for size in sizes:
        # The longer side says it best. Sizes are rounded up as a rule.
        length, cells = max(zip(inputs, size))
        names.append(f'P{max(0, math.ceil(math.log2(length / cells) - 0.1))}')
    letters = [chr(ord('a') + names[:i].count(name))
               for i, name in enumerate(names)]
    return [
        name + letter if names.count(name) > 1 else name
        for name, letter in zip(names, letters)
    ]


def chosen_level(level: str | None, names: Sequence[str]) -> int | None:
    """The index of the level that is asked for; None for all.

    Raises:
        ValueError: There is no such level.
    """
    if level is None:
        return None
    asked = level.upper() if level[:1] in 'pP' else f'P{level}'
    for index, name in enumerate(names):
        if asked.lower() == name.lower():
            return index
    raise ValueError('level must be one of the levels that FPT transforms, '
                     f'{", ".join(names)}, got {level}')


# ------------------------------------------------------------------------- maps


def attention_branches(model: nn.Module,
                       views: Sequence[NetworkView],
                       points: Sequence[tuple[int, int]],
                       level: str | None = None) -> list[Branch]:
    """Where a model looks from some pixels of an image.

    Args:
        model: A detector or segmentor with FPT.
        views: What its network sees of the image.
        points: x and y of pixels in the image.
        level: Name of the level that looks; None: all.

    Returns:
        What each branch does, level by level.

    Raises:
        ValueError: There is no such level, or it has no branch to show.
    """
    branches: dict[tuple[int, int], Branch] = {}  # by level and source
    gazes: dict[tuple[int, int], dict[int, Gaze]] = {}
    owners = [closest_view(list(views), point) for point in points]
    for owner in sorted(set(owners)):
        view = views[owner]
        mine = [i for i, other in enumerate(owners) if other == owner]
        calls = branch_inputs(model, view.inputs)
        names = _names(calls, view)
        asked = chosen_level(level, list(names.values())) if calls else None
        chosen = None if asked is None else list(names)[asked]
        for index, source, layer, args, kwargs in calls:
            if chosen not in (None, index):
                continue
            place = index, source
            branch = branches.setdefault(
                place, Branch(_kind(layer, *place), names[index], names[source],
                              place))
            if hasattr(layer, 'attention_at'):
                branch.key_stride = kwargs.get('key_stride', layer.key_stride)
                found = _gazes(layer, args, kwargs, view,
                               [points[i] for i in mine])
                gazes.setdefault(place, {}).update(zip(mine, found))
            elif hasattr(layer, 'channel_weights'):
                with torch.no_grad():
                    weights = layer.channel_weights(args[1])[0].flatten()
                branch.weights.append(weights.float().cpu().numpy())
    for place, found in gazes.items():
        branches[place].gazes = [found[i] for i in range(len(points))]
    shown = [b for b in branches.values() if b.gazes or b.weights]
    if not shown:
        raise ValueError('the model must have a branch of FPT to show, got none '
                         f'at {level or "any level"}')
    return shown


def _names(calls: list, view: NetworkView) -> dict[int, str]:
    """Names of the levels with branches: a neck may spare the finest ones."""
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


def _gazes(layer: nn.Module, args: tuple, kwargs: dict, view: NetworkView,
           points: list[tuple[int, int]]) -> list[Gaze]:
    """The maps of some points under one layer."""
    size, source = (tuple(x.shape[2:]) for x in (args[0], args[-1]))
    cells = [view.cell(point, size) for point in points]
    with torch.no_grad():
        maps = layer.attention_at(
            as_batch(cells, args[0].device), *args, **kwargs)[0].cpu()
    stride = kwargs.get('key_stride', layer.key_stride)
    spread = maps.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    spread = spread[:, :source[0], :source[1]].float().numpy()
    return [
        Gaze(
            point=point,
            view=view,
            cell=cell,
            size=size,
            shares=whole,
            keys=shares.numel() if window is None else
            _keys_in(window, source, layer.pad),
            peak=shares.max().item(),
            outside=max(0., 1 - shares.sum().item()),
            window=window)
        for point, cell, shares, whole, window in zip(
            points, cells, maps, spread,
            (_window(layer, cell, size, source) for cell in cells))
    ]


def _window(layer: nn.Module, cell: tuple[int, int], size: tuple[int, int],
            source: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """What a pixel sees of the source: first row and column, and the ends."""
    if not isinstance(layer, LocalGroundingTransformer):
        return None
    reach = layer.window // 2
    row, column = (
        centres(fine, coarse)[place]
        for fine, coarse, place in zip(size, source, cell))
    return row - reach, column - reach, row + reach + 1, column + reach + 1


def _keys_in(window: tuple[int, int, int, int], source: tuple[int, int],
             pad: str) -> int:
    """How many keys a window holds: with zero padding, those around too."""
    rows, columns = (
        end - start if pad == 'zero' else min(end, length) - max(start, 0)
        for start, end, length in zip(window[:2], window[2:], source))
    return rows * columns
