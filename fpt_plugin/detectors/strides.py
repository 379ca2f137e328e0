"""The heads of a detector or segmentor fit the maps that they are given.

mmdet compares the numbers of levels by a bare assertion, after heads that take
maps and levels in pairs have dropped what is left over. Anchors, points and
regions of other strides than the maps train without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..functional.checks import is_compiled

Stride = tuple[int, int]
# Read a map that the head itself makes of several levels: HTC's, CondInst's.
OWN_MAPS = ('semantic_roi_extractor', 'mask_head')


@dataclass
class Levels:
    """What one part of a head expects of the maps.

    Args:
        name: Of its settings, from the model on.
        strides: One a level, as (vertical, horizontal).
        whole: Whether there must be no more maps than levels.
    """

    name: str
    strides: list[Stride]
    whole: bool


def watch_strides(model: nn.Module) -> None:
    """Compare heads and maps in the first forward pass, before any loss.

    Args:
        model: A detector or segmentor, or what wraps some.

    Raises:
        ValueError: In that pass, with the numbers and the strides of both.
    """
    for part in model.modules():
        if isinstance(getattr(part, 'backbone', None), nn.Module):
            watch = _Watch(list(_levels(part)), list(_indices(part)))
            giver = getattr(part, 'neck', None)
            if not isinstance(giver, nn.Module):
                giver = part.backbone
            if watch.levels or watch.indices:
                part.backbone.register_forward_hook(watch.see_images)
                giver.register_forward_hook(watch.see_maps)


class _Watch:
    """Two forward hooks, of a backbone and of what gives the maps."""

    def __init__(self, levels: list[Levels], indices: list[tuple[str, int]]):
        self.levels = levels
        self.indices = indices
        self.size: tuple[int, int] | None = None
        self.done = False

    def see_images(self, backbone: nn.Module, inputs: tuple, _) -> None:
        """Keep the size of the images."""
        images = inputs[0] if inputs else None
        if not self.done and isinstance(images, Tensor) and images.dim() == 4:
            self.size = tuple(images.shape[2:])

    def see_maps(self, giver: nn.Module, _: tuple, maps: object) -> None:
        """Compare the first maps with the heads."""
        if self.done or self.size is None or is_compiled():
            return
        if isinstance(maps, (list, tuple)) and all(
                isinstance(x, Tensor) and x.dim() == 4 for x in maps):
            check_indices(self.indices, len(maps), type(giver).__name__)
            check_strides(self.levels, self.size, maps, type(giver).__name__)
        self.done = True


def check_strides(levels: Sequence[Levels], size: tuple[int, int],
                  maps: Sequence[Tensor], giver: str) -> None:
    """Compare what heads expect with maps of one batch.

    Args:
        levels: Of the parts of the heads.
        size: Of the images, (H, W).
        maps: Given to the heads, (B, C, h, w) each.
        giver: Name of the neck or backbone, for the message.

    Raises:
        ValueError: A number or a stride differs. Maps of a few pixels do not
            tell their stride; they fit.
    """
    sizes = [tuple(x.shape[2:]) for x in maps]
    for part in levels:
        wanted = len(part.strides)
        if wanted > len(sizes) or part.whole and wanted != len(sizes) or any(
                map(_differs, part.strides, [size] * wanted, sizes)):
            given = [tuple(round(n / max(m, 1)) for n, m in zip(size, x))
                     for x in sizes]
            raise ValueError(
                f'{part.name} must fit the maps of {giver}, got {wanted} levels '
                f'of strides {_text(part.strides)} for {len(sizes)} maps of '
                f'strides {_text(given)} (images of {size[0]} x {size[1]}). '
                'Count and strides follow from out_indices of the backbone and '
                'num_outs, start_level and add_extra_convs of the neck')


def check_indices(indices: Sequence[tuple[str, int]], count: int,
                  giver: str) -> None:
    """Require a map for each index that a head of mmseg reads.

    Raises:
        ValueError: There are fewer maps.
    """
    for name, index in indices:
        if not -count <= index < count:
            raise ValueError(f'{name} must index the maps of {giver}, got '
                             f'{index} for {count} maps')


def _differs(stride: Stride, size: Stride, found: Stride) -> bool:
    """Whether a map is clearly of another stride than is expected."""
    return any(
        abs(pixels - length / step) > 1 + length / step / 4
        for step, length, pixels in zip(stride, size, found))


def _text(strides: Sequence[Stride]) -> str:
    return str([h if h == w else (h, w) for h, w in strides])


def _levels(detector: nn.Module) -> Iterator[Levels]:
    """What the heads of one detector expect."""
    for name, part in _heads(detector):
        if name.rpartition('.')[2] in OWN_MAPS:
            continue
        # One or, in guided anchoring, several generators of anchors or points.
        for generator in vars(part).values():
            strides = getattr(generator, 'strides', None)
            if hasattr(generator, 'num_levels') and _are_strides(strides):
                yield Levels(f'{name}: {type(generator).__name__}',
                             [_pair(s)[::-1] for s in strides], True)
        strides = getattr(part, 'featmap_strides', None)
        if _are_strides(strides):
            yield Levels(f'{name}.featmap_strides', [_pair(s) for s in strides],
                         False)


def _indices(segmentor: nn.Module) -> Iterator[tuple[str, int]]:
    """Which maps the heads of one segmentor read."""
    for name, part in _heads(segmentor):
        index = getattr(part, 'in_index', None)
        for i in index if isinstance(index, (list, tuple)) else [index]:
            if isinstance(i, int):
                yield f'{name}.in_index', i


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules of a detector beside backbone and neck, by name."""
    for child, module in model.named_children():
        if child not in ('backbone', 'neck', 'data_preprocessor'):
            yield from module.named_modules(prefix=child)


def _are_strides(strides: object) -> bool:
    return isinstance(strides, (list, tuple)) and len(strides) > 0


def _pair(stride: int | Stride) -> Stride:
    return tuple(stride) if isinstance(stride, (list, tuple)) \
        else (stride, stride)
