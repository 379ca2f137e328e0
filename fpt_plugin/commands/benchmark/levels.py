"""Compare each branch of each level of FPT's presets with its plain formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...functional import reference
from ...layers import (
    GroundingTransformer,
    RenderingTransformer,
    SelfTransformer,
)
from ...layers.mixture import pool_keys
from .cases import level_size
from .markdown import row, table_head
from .measuring import MAP_SCALE, Case, relative_error

PRESETS = ('light', 'default', 'full')
CANDIDATES = ('fpt_plugin', 'formula')
LEVELS = (2, 3, 4, 5)
CHANNELS = 256


def _mixture(layer: nn.Module, x: Tensor, source: Tensor,
             key_stride: int) -> Tensor:
    """Compute all scores at once (FPT, Eq. 2): (B, E, H, W)."""
    source = pool_keys(source, key_stride)  # (B, C, h, w)
    key = layer.key(source)  # (B, N * d, h, w)
    parts = layer.num_mixtures

    def split(maps: Tensor) -> Tensor:
        """Reshape (B, N * d, H, W) to (B, N, H * W, d)."""
        return maps.flatten(2).unflatten(1, (parts, -1)).transpose(2, 3)

    weights = key.new_ones(len(key), 1) if parts == 1 else (  # (B, N)
        key.mean(dim=(2, 3)) @ layer.mixture_weight.T).softmax(dim=1)
    out = reference.mixture_attention(  # (B, H * W, E)
        split(layer.query(x)), split(key),
        layer.value(source).flatten(2).transpose(1, 2), weights,
        similarity=layer.similarity, scale=layer.scale)
    return out.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, E, H, W)


def self_transformer(layer: SelfTransformer, x: Tensor,
                     key_stride: int | None = None) -> Tensor:
    """Compute the Self-Transformer (FPT, Sec. 3.2)."""
    return _mixture(layer, x, x, key_stride or layer.key_stride)


def grounding_transformer(layer: GroundingTransformer, fine: Tensor,
                          coarse: Tensor,
                          key_stride: int | None = None) -> Tensor:
    """Compute the Grounding Transformer (FPT, Sec. 3.3)."""
    return _mixture(layer, fine, coarse, key_stride or layer.key_stride)


def rendering_transformer(layer: RenderingTransformer, coarse: Tensor,
                          fine: Tensor) -> Tensor:
    """Compute FPT, Eq. 5 and 6, with K of every pixel before the mean."""
    weight = layer.key(fine).mean(dim=(2, 3), keepdim=True)  # (B, E, 1, 1)
    conv = layer.value_conv
    value = F.conv2d(  # (B, E, h, w), the coarse size except for rounding
        layer.value(fine), conv.weight, conv.bias,
        stride=layer.stride(fine.shape[2], coarse.shape[2]), padding=1)
    if value.shape[2:] != coarse.shape[2:]:
        value = F.interpolate(value, size=coarse.shape[2:], mode='nearest')
    return layer.out_conv(layer.query_conv(layer.query(coarse) * weight) + value)


FORMULAS: dict[type, tuple[str, Callable]] = {
    SelfTransformer: ('ST', self_transformer),
    GroundingTransformer: ('GT', grounding_transformer),
    RenderingTransformer: ('RT', rendering_transformer),
}


@dataclass
class _State:
    layer: nn.Module
    maps: tuple[Tensor, ...]
    options: dict[str, int]


@lru_cache(maxsize=1)
def _neck(preset: str) -> nn.Module:
    """Build FPT on four levels; only its branches are run."""
    torch.manual_seed(0)
    return MODELS.build(dict(
        type='FPT', in_channels=CHANNELS, out_channels=CHANNELS, pyramid=None,
        num_levels=len(LEVELS), preset=preset))


@dataclass(frozen=True)
class BranchCase(Case):
    """One branch of one level as the neck runs it, projections included.

    Attributes:
        preset: A key of FPT's presets.
        index: Number of the branch in ``FPT.branch_inputs``.
        level: Its level: 2 for P2, 3 for P3, ...
        branch: Its name, such as ``'ST'`` or ``'GT from P5'``.
        scores: Number of scores of all parts and images.
        shape: Height and width of the image.
    """

    preset: str = 'default'
    index: int = 0
    level: int = 2
    branch: str = 'ST'
    scores: int = 0
    shape: tuple[int, int] = (800, 1344)
    batch: int = 1

    def candidates(self) -> tuple[str, ...]:
        """Return ours and the formula."""
        return CANDIDATES

    def prepare(self, candidate: str) -> _State:
        """Return the layer and its input maps."""
        maps = tuple(
            self._randn(
                self.batch, CHANNELS, *level_size(self.shape, level), seed=level,
                scale=MAP_SCALE)
            for level in LEVELS)
        *_, layer, args, options = _neck(self.preset).branch_inputs(
            maps)[self.index]
        return _State(layer.to(self.device, getattr(torch, self.dtype)),
                      tuple(x.detach().requires_grad_() for x in args), options)

    def leaves(self, state: _State) -> list[Tensor]:
        """Return parameters and maps."""
        return [*state.layer.parameters(), *state.maps]

    def run(self, candidate: str, state: _State) -> Tensor:
        """Compute the branch: (B, E, H, W)."""
        if candidate == 'formula':
            _, formula = FORMULAS[type(state.layer)]
            return formula(state.layer, *state.maps, **state.options)
        return state.layer(*state.maps, **state.options)

    def least_bytes(self, candidate: str) -> int:
        """Return the size of all parts' scores before and after the softmax."""
        size = getattr(torch, self.dtype).itemsize
        return 2 * self.scores * size if candidate == 'formula' else 0

    def errors(self, states: dict[str, _State]) -> dict[str, float]:
        """Compare ours with the formula, if both ran."""
        if len(states) < len(CANDIDATES):
            return {}
        with torch.no_grad():
            ours, formula = (self.run(name, states[name]) for name in CANDIDATES)
        return dict(fpt_plugin=relative_error(ours, formula))

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            preset=self.preset, level=self.level, branch=self.branch,
            scores=self.scores, shape=self.shape, batch=self.batch,
            dtype=self.dtype)


def cases(names: list[str], shape: tuple[int, int], batch: int = 1,
          **common: Any) -> list[BranchCase]:
    """Make the cases of all branches of all levels of some presets.

    Args:
        names: Keys of FPT's presets.
        shape: Height and width of the image.
        batch: Number of images.
        **common: Device and dtype.
    """
    maps = tuple(
        torch.empty(batch, CHANNELS, *level_size(shape, level), device='meta')
        for level in LEVELS)
    found = []
    for preset in names:
        for index, (own, source, layer, args, options) in enumerate(
                _neck(preset).branch_inputs(maps)):
            kind, _ = FORMULAS[type(layer)]
            branch = kind if own == source else f'{kind} from P{LEVELS[source]}'
            scores = 0
            if kind != 'RT':
                stride = options.get('key_stride') or layer.key_stride
                keys = pool_keys(args[-1], stride)
                scores = batch * layer.num_mixtures * (
                    args[0].shape[2:].numel() * keys.shape[2:].numel())
            found.append(BranchCase(
                name=f'{preset} P{LEVELS[own]} {branch}', preset=preset,
                index=index, level=LEVELS[own], branch=branch, scores=scores,
                shape=shape, batch=batch, **common))
    return found


def markdown(content: dict) -> str:
    """Format times and their ratio to the formula, by preset, level, branch."""
    machine, sizes = content['environment'], content['records'][0]
    height, width = sizes['shape']
    lines = [
        f'{sizes["batch"]} x {height}x{width}, {sizes["dtype"]}, '
        f'{machine["device"]}, {machine["threads"]} threads, torch '
        f'{machine["torch"]}. Ratio: time of the plain formula divided by the time '
        f'of fpt_plugin, medians of {content["repeats"]}.', '',
        *table_head(['preset', 'level', 'branch'],
                    ['forward', 'with backward', 'formula / fpt_plugin: forward',
                     'with backward'])]
    levels: dict[tuple, list[dict]] = {}
    for record in content['records']:
        levels.setdefault((record['preset'], record['level']), []).append(record)
    for (preset, level), records in levels.items():
        for record in records:
            lines.append(_row(preset, level, record['branch'], [record]))
        if len(records) > 1:
            lines.append(_row(preset, level, '**all**', records))
    slower = [
        f'- slower than the formula {what}: {record["case"]}'
        for what, kind in (('in the forward pass', 'forward'),
                           ('with backward', 'both'))
        for record in content['records']
        if (_ratio([record], kind) or 1) < 1]
    return '\n'.join([*lines, *([''] if slower else []), *slower]) + '\n'


def _seconds(records: list[dict], kind: str, name: str) -> float | None:
    """Sum the medians; None if one was not timed."""
    found = [record['candidates'][name] for record in records]
    if any(kind not in x for x in found):
        return None
    return sum(x[kind]['median'] for x in found)


def _ratio(records: list[dict], kind: str) -> float | None:
    ours, formula = (_seconds(records, kind, name) for name in CANDIDATES)
    return formula / ours if ours and formula else None


def _row(preset: str, level: int, branch: str, records: list[dict]) -> str:
    reason = next((record['candidates']['formula']['skipped']
                   for record in records
                   if 'skipped' in record['candidates']['formula']), '')
    seconds, ratios = [], []
    for kind in ('forward', 'both'):
        ours, found = (_seconds(records, kind, CANDIDATES[0]),
                       _ratio(records, kind))
        seconds.append('' if ours is None else f'{1e3 * ours:.3g} ms')
        ratios.append(reason if found is None else f'{found:.2f}')
    return row([preset, f'P{level}', branch, *seconds, *ratios])
