"""Cases of pre-training: steps of GreenMIM and SimMIM, and window packing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...functional.window_groups import (
    count_tokens,
    first_fit_decreasing,
    group_windows,
)
from ...openmmlab.models import load_config
from ...pretraining import GreenMIM
from ...pretraining.masks import random_units
from ...pretraining.swin import token_coords
from ..common import config_folder
from ..complexity.command import complexity
from .markdown import milliseconds, ratio, row, table_head
from .measuring import Case

CONFIGS = dict(
    t='greenmim_swin-t-p4-w7_8xb256-800e_224.py',
    b='greenmim_swin-b-p4-w7_8xb256-800e_224.py',
    mini='greenmim_swin-mini-p4-w7_1xb16-2k_192.py')
CASES = ('t-224', 't-448')
# The dense model is the baseline, so it comes first.
CANDIDATES = ('SimMIM', 'GreenMIM groups', 'GreenMIM uniform')


def build(backbone: str, candidate: str) -> nn.Module:
    """Build one of CANDIDATES with a backbone of CONFIGS."""
    folder = config_folder('fpt_plugin') / 'pretraining'
    config = load_config(folder / CONFIGS[backbone]).model
    if candidate == 'SimMIM':
        config.pop('decoder', None)
        return MODELS.build(dict(config, type='SimMIM'))
    return MODELS.build(dict(config, sampling=candidate.split()[1]))


@cache
def counts(backbone: str, candidate: str, side: int, batch: int) -> dict[str, int]:
    """Count parameters, macs and saved_bytes of a step."""
    total = complexity(build(backbone, candidate), (side, side), batch).total
    return dict(parameters=total.parameters, macs=total.macs,
                saved_bytes=total.saved_bytes)


@dataclass(frozen=True)
class PretrainingCase(Case):
    """The loss of a batch of square images, and its gradients.

    As in training, every pass draws new masks and packs its windows. A lower
    ``dtype`` is the type of autocast; parameters are then float32.

    Attributes:
        backbone: A key of CONFIGS.
        side: Side of the images in pixels.
    """

    backbone: str = 't'
    side: int = 224
    batch: int = 8

    @classmethod
    def parse(cls, text: str, **common: Any) -> PretrainingCase:
        """Parse ``'t-224'``: Swin-T on images of 224x224.

        Raises:
            ValueError: The text has another form.
        """
        backbone, _, side = text.partition('-')
        if backbone not in CONFIGS or not side.isdecimal() or int(side) % 32 \
                or int(side) < 64:
            raise ValueError(f'--cases must be one of {list(CONFIGS)} and a multiple '
                             f'of 32 of at least 64, such as t-224, got {text!r}')
        return cls(name=f'Swin-{backbone} {side}', backbone=backbone,
                   side=int(side), **common)

    def candidates(self) -> tuple[str, ...]:
        """Return the names of the models."""
        return CANDIDATES

    def prepare(self, candidate: str) -> tuple[nn.Module, Tensor]:
        """Build the model in training mode, and draw normalised images."""
        torch.manual_seed(0)
        model = build(self.backbone, candidate).to(self.device).train()
        generator = torch.Generator(self.device).manual_seed(0)
        images = torch.randn(self.batch, 3, self.side, self.side,
                             generator=generator, device=self.device)
        if self.dtype == 'float64':
            return model.double(), images.double()
        return model, images

    def leaves(self, state: tuple[nn.Module, Tensor]) -> list[Tensor]:
        """Return the parameters; images get no gradient, as in training."""
        return list(state[0].parameters())

    def run(self, candidate: str, state: tuple[nn.Module, Tensor]) -> Tensor:
        """Compute the loss."""
        model, images = state
        dtype = getattr(torch, self.dtype)
        with torch.autocast(self.device, dtype, enabled=dtype.itemsize < 4):
            return model(images, mode='loss')['loss']

    def least_bytes(self, candidate: str) -> int:
        """Return the bytes saved for backward; half of them in 16-bit types."""
        size = getattr(torch, self.dtype).itemsize
        return self.counts(candidate)['saved_bytes'] * size // 4

    def counts(self, candidate: str) -> dict[str, int]:
        """Count the cost of a step in float32."""
        return counts(self.backbone, candidate, self.side, self.batch)

    def facts(self) -> dict[str, Any]:
        """Return the sizes and the counts."""
        return dict(
            backbone=self.backbone, side=self.side, batch=self.batch,
            dtype=self.dtype,
            counts={name: self.counts(name) for name in CANDIDATES})


# ------------------------------------------------------------------- packing


def knapsack(counts: Sequence[int], size: int) -> list[int]:
    """Pack items into groups, filling one group after another optimally.

    In contrast to :func:`first_fit_decreasing`, each group is an exact 0/1
    knapsack of the remaining items, solved by dynamic programming in
    O(items * size).

    Args:
        counts: Size of each item, from 1 to ``size``.
        size: Capacity of a group.

    Returns:
        The group of each item.
    """
    groups, left, group = [0] * len(counts), list(range(len(counts))), 0
    while left:
        chosen = _fullest([counts[i] for i in left], size)
        for i in chosen:
            groups[left[i]] = group
        left = [item for i, item in enumerate(left) if i not in chosen]
        group += 1
    return groups


def _fullest(counts: Sequence[int], size: int) -> set[int]:
    """Return the items with the largest sum of at most ``size``."""
    # The item that first reached each sum. Earlier items reach the remainder.
    last_item: list[int | None] = [None] * (size + 1)
    reached = [True] + [False] * size
    for item, count in enumerate(counts):
        for total in range(size, count - 1, -1):
            if not reached[total] and reached[total - count]:
                reached[total], last_item[total] = True, item
        if reached[size]:
            break
    total = max(total for total in range(size + 1) if reached[total])
    chosen = set()
    while total:
        chosen.add(last_item[total])
        total -= counts[last_item[total]]
    return chosen


@dataclass(frozen=True)
class Packing:
    """Visible tokens of one stage and window shift."""

    coords: Tensor
    window: int
    shift: int

    def counts(self) -> list[int]:
        """Count the visible tokens of each window."""
        return count_tokens(self.coords, self.window, self.shift)[1].tolist()

    @property
    def trivial(self) -> bool:
        """Whether all tokens fit into one group, so that no packing is needed."""
        return len(self.coords) <= self.window**2


def packings(model: GreenMIM, side: int, visible: Tensor) -> Iterator[Packing]:
    """Yield the packings of a step on square images for visible units (V,)."""
    grid = (side // model.mask_unit, ) * 2
    swin = model.backbone
    size = model.mask_unit // swin.patch_embed.projection.stride[0]
    for stage in swin.stages:
        coords = token_coords(visible, (size, size), grid)
        shifts = {block.attn.shift_size: block.attn.window_size
                  for block in stage.blocks}
        for shift, window in shifts.items():
            yield Packing(coords, window, shift)
        if stage.downsample is not None:
            size //= stage.downsample.sampler.stride[0]


def pack(backbone: str, side: int, repeats: int) -> dict[str, Any]:
    """Measure the packing of a step's windows, for several masks in turns.

    Returns:
        Medians over the masks: ``windows``, the lower bound ``least`` of the
        groups of a step, and ``groups`` and ``seconds`` of each method.
        ``plan_seconds`` is the time of all work before attention: coordinates,
        packing, and rows of the bias table.
    """
    model = build(backbone, 'GreenMIM groups')
    units = (side // model.mask_unit)**2
    methods = dict(first_fit=first_fit_decreasing, knapsack=knapsack)
    found: dict[str, list] = {name: [] for name in ('windows', 'least', 'plan', *(
        f'{method} {what}' for method in methods for what in ('groups', 'seconds')))}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        masks = [random_units(1, units, model.count_visible((1, units)))[0]
                 for _ in range(repeats + 1)]
    for visible in masks:
        started = time.perf_counter()
        work = list(packings(model, side, visible))
        for packing in work:
            group_windows(packing.coords, packing.window, packing.shift)
        found['plan'].append(time.perf_counter() - started)
        windows = [p.counts() for p in work if not p.trivial]
        found['windows'].append(sum(map(len, windows)))
        found['least'].append(sum(-(-sum(c) // max(c)) for c in windows))
        for name, method in methods.items():
            started = time.perf_counter()
            groups = [method(c, max(c)) for c in windows]
            found[f'{name} seconds'].append(time.perf_counter() - started)
            found[f'{name} groups'].append(sum(max(g) + 1 for g in groups))
    # The first mask is a warm-up.
    middle = {name: median(values[1:]) for name, values in found.items()}
    return dict(
        backbone=backbone, side=side, windows=middle['windows'],
        least=middle['least'], plan_seconds=middle['plan'],
        methods={name: dict(groups=middle[f'{name} groups'],
                            seconds=middle[f'{name} seconds'])
                 for name in methods})


# --------------------------------------------------------------------- table


def markdown(content: dict) -> str:
    """Format two tables: steps with their ratio to SimMIM, and packing."""
    machine, sizes = content['environment'], content['records'][0]
    lines = [
        f'Loss of {sizes["batch"]} images and its gradients, {sizes["dtype"]}, '
        f'{machine["device"]}, {machine["threads"]} threads, torch {machine["torch"]}. '
        f'Medians of {content["repeats"]}; in brackets the ratio to '
        f'{CANDIDATES[0]}.', '',
        *table_head(
            ['images', 'model'],
            ['GMACs per image', 'forward', 'forward and backward', 'peak, forward',
             'peak, with backward', 'saved for backward'])
    ]
    for record in content['records']:
        base = record['candidates'][CANDIDATES[0]]
        for name, found in record['candidates'].items():
            counted, first = record['counts'][name], record['counts'][CANDIDATES[0]]
            macs = counted['macs'] / record['batch'] / 1e9
            cells = [record['case'], name,
                     f'{macs:.2f}{ratio(counted["macs"], first["macs"])}']
            if 'skipped' in found:
                cells += [f'skipped: {found["skipped"]}', '', '', '']
            else:
                cells += [milliseconds(found, base, kind) for kind in
                          ('forward', 'both')]
                cells += [_mebibytes(found.get(f'{kind}_bytes'),
                                     base.get(f'{kind}_bytes'))
                          for kind in ('forward', 'both')]
            lines.append(row([*cells, _mebibytes(
                counted['saved_bytes'], first['saved_bytes'])]))
    lines += [
        '', 'Windows of one step in all stages and shifts that need packing, and the '
        'groups they are packed into; one Python thread, medians over as many masks. '
        'Plan: all work before attention, with packing.', '',
        *table_head(['images'], [
            'windows', 'minimum of groups', 'groups, first fit', 'groups, knapsack',
            'time, first fit', 'time, knapsack', 'time, plan'])
    ]
    for found in content['packing']:
        first, exact = found['methods'].values()
        lines.append(row([
            f'Swin-{found["backbone"]} {found["side"]}',
            *(f'{number:g}' for number in (
                found['windows'], found['least'], first['groups'],
                exact['groups'])),
            *(f'{1e3 * seconds:.3g} ms' for seconds in (
                first['seconds'], exact['seconds'], found['plan_seconds']))]))
    return '\n'.join(lines) + '\n'


def _mebibytes(count: int | None, base: int | None) -> str:
    return '' if count is None else f'{count / 2**20:.0f} MiB{ratio(count, base)}'
