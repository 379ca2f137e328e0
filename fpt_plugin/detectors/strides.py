"""Check that the heads of a detector or segmentor fit their input maps.

mmdet checks the number of levels by an assertion without a message, and heads
that pair maps with levels drop surplus maps first. If the strides of anchors,
points or regions differ from those of the maps, training gives no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..functional.checks import is_compiled

Stride = tuple[int, int]
# Modules of HTC and CondInst. They read a map that the head merges from several
# levels, so the neck's maps do not have to fit them.
MERGED_MAP_READERS = ('semantic_roi_extractor', 'mask_head')


@dataclass
class Levels:
    """Levels that one part of a head expects.

    Args:
        name: Name of its setting, starting from the model.
        strides: (vertical, horizontal) stride of each level.
        all_maps: Whether the head must read every map.
    """

    name: str
    strides: list[Stride]
    all_maps: bool


def watch_strides(model: nn.Module) -> None:
    """Compare heads and maps in the first forward pass, before any loss.

    Args:
        model: A detector or segmentor, or a model that contains some.

    Raises:
        ValueError: In that pass, with the numbers and strides of both.
    """
    for part in model.modules():
        if isinstance(getattr(part, 'backbone', None), nn.Module):
            check = _FirstPassCheck(list(_levels(part)), list(_indices(part)))
            source = getattr(part, 'neck', None)
            if not isinstance(source, nn.Module):
                source = part.backbone
            if check.levels or check.indices:
                part.backbone.register_forward_hook(check.store_size)
                source.register_forward_hook(check.check_maps)


class _FirstPassCheck:
    """Forward hooks of a backbone and of the module that returns the maps."""

    def __init__(self, levels: list[Levels], indices: list[tuple[str, int]]):
        self.levels = levels
        self.indices = indices
        self.size: tuple[int, int] | None = None
        self.done = False

    def store_size(self, backbone: nn.Module, inputs: tuple, _) -> None:
        """Store the size of the images (B, C, H, W)."""
        images = inputs[0] if inputs else None
        if not self.done and isinstance(images, Tensor) and images.dim() == 4:
            self.size = tuple(images.shape[2:])

    def check_maps(self, source: nn.Module, _: tuple, maps: object) -> None:
        """Compare the first maps with the heads."""
        if self.done or self.size is None or is_compiled():
            return
        if isinstance(maps, (list, tuple)) and all(
                isinstance(x, Tensor) and x.dim() == 4 for x in maps):
            check_indices(self.indices, len(maps), type(source).__name__)
            check_strides(self.levels, self.size, maps, type(source).__name__)
        self.done = True


def check_strides(levels: Sequence[Levels], size: tuple[int, int],
                  maps: Sequence[Tensor], source: str) -> None:
    """Compare the levels of heads with the maps of one batch.

    Args:
        levels: Levels of each part of the heads.
        size: Size (H, W) of the images.
        maps: Inputs of the heads, (B, C, h, w) each.
        source: Name of the neck or backbone, for the message.

    Raises:
        ValueError: A number or a stride differs. Maps of a few pixels, whose
            stride is unclear, are accepted.
    """
    sizes = [tuple(x.shape[2:]) for x in maps]
    for part in levels:
        count = len(part.strides)
        if count > len(sizes) or part.all_maps and count != len(sizes) or any(
                map(_differs, part.strides, [size] * count, sizes)):
            given = [tuple(round(n / max(m, 1)) for n, m in zip(size, x))
                     for x in sizes]
            raise ValueError(
                f'{part.name} must fit the maps of {source}, got {count} levels '
                f'of strides {_text(part.strides)} for {len(sizes)} maps of '
                f'strides {_text(given)} (images of {size[0]} x {size[1]}). '
                'out_indices of the backbone and num_outs, start_level and '
                'add_extra_convs of the neck set the number and strides of the '
                'maps')


def check_indices(indices: Sequence[tuple[str, int]], count: int,
                  source: str) -> None:
    """Require a map for each index that a head of mmseg reads.

    Raises:
        ValueError: There are fewer maps.
    """
    for name, index in indices:
        if not -count <= index < count:
            raise ValueError(f'{name} must index the maps of {source}, got '
                             f'{index} for {count} maps')


def _differs(stride: Stride, size: Stride, found: Stride) -> bool:
    """Return whether a map clearly has another stride than expected."""
    return any(
        abs(pixels - length / step) > 1 + length / step / 4
        for step, length, pixels in zip(stride, size, found))


def _text(strides: Sequence[Stride]) -> str:
    return str([h if h == w else (h, w) for h, w in strides])


def _levels(detector: nn.Module) -> Iterator[Levels]:
    """Find the levels that the heads of one detector expect."""
    for name, part in _heads(detector):
        if name.rpartition('.')[2] in MERGED_MAP_READERS:
            continue
        # Generators of anchors or points; guided anchoring has several.
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
    """Find the indices of the maps that the heads of one segmentor read."""
    for name, part in _heads(segmentor):
        index = getattr(part, 'in_index', None)
        for i in index if isinstance(index, (list, tuple)) else [index]:
            if isinstance(i, int):
                yield f'{name}.in_index', i


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find names and modules of a model, except backbone and neck."""
    for child, module in model.named_children():
        if child not in ('backbone', 'neck', 'data_preprocessor'):
            yield from module.named_modules(prefix=child)


def _are_strides(strides: object) -> bool:
    return isinstance(strides, (list, tuple)) and len(strides) > 0


def _pair(stride: int | Stride) -> Stride:
    return tuple(stride) if isinstance(stride, (list, tuple)) \
        else (stride, stride)
