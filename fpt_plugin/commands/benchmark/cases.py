"""Cases of the benchmark: attention, windowed attention, necks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ...functional import (
    local_mixture_attention,
    mixture_attention,
    reference,
)
from ...functional.paths import LOCAL_PATHS, MIXTURE_PATHS
from ...necks import presets
from .measuring import MAP_SCALE, Case, relative_error

SIMILARITY = dict(st='dot', gt='neg_euclid')
PARTS = dict(st=2, gt=4)
# Number of query rows that are compared with the formula in float64.
SAMPLED = 64


def level_size(shape: tuple[int, int], level: int) -> tuple[int, int]:
    """Return height and width of P2, P3, ...: stride 2^level, rounded up."""
    return tuple(ceil(side / 2**level) for side in shape)


@dataclass(frozen=True)
class AttentionCase(Case):
    """Attention of one Self- or Grounding-Transformer.

    Attributes:
        branch: ``'st'`` or ``'gt'``.
        queries: Height and width of the map of the queries.
        keys: Height and width of the map of the keys, after pooling.
        paths: Measure each path, besides the automatic choice.
    """

    branch: str = 'st'
    queries: tuple[int, int] = (1, 1)
    keys: tuple[int, int] = (1, 1)
    channels: int = 256
    batch: int = 1
    paths: bool = False

    @classmethod
    def parse(cls, text: str, shape: tuple[int, int], **kwargs) -> AttentionCase:
        """Parse ``st:P4``, ``gt:P3-P4`` or ``gt:P2-P3@4`` (keys pooled by 4).

        Raises:
            ValueError: The text has another form.
        """
        match = re.fullmatch(r'(?:st:P(\d)|gt:P(\d)-P(\d))(?:@(\d+))?', text)
        if match is None:
            raise ValueError('--cases must have the form st:P4, gt:P3-P4 or '
                             f'gt:P2-P3@4 (keys pooled by 4), got {text!r}')
        own, fine, coarse, stride = match.groups()
        keys = level_size(shape, int(own or coarse))
        return cls(
            name=text,
            branch=text[:2],
            queries=level_size(shape, int(own or fine)),
            keys=tuple(ceil(side / int(stride or 1)) for side in keys),
            **kwargs)

    @property
    def lengths(self) -> tuple[int, int]:
        """Lq and Lk."""
        (height, width), (rows, columns) = self.queries, self.keys
        return height * width, rows * columns

    def candidates(self) -> tuple[str, ...]:
        """Return ours, the plain formula, and each path or torch's attention."""
        others = MIXTURE_PATHS if self.paths else ('sdpa', )
        if self.dtype == 'float16' and SIMILARITY[self.branch] == 'neg_euclid':
            others = [path for path in others if path != 'fused']  # unsupported
        return ('fpt_plugin', 'reference', *others)

    def prepare(self, candidate: str) -> list[Tensor]:
        """Draw query, key, value and weights."""
        (queries, keys), parts = self.lengths, PARTS[self.branch]
        depth = self.channels // parts
        weights = self._randn(self.batch, parts, seed=3)
        return [
            self._randn(self.batch, parts, queries, depth, seed=0),
            self._randn(self.batch, parts, keys, depth, seed=1),
            self._randn(self.batch, keys, self.channels, seed=2),
            weights.detach().softmax(1).requires_grad_()
        ]

    def leaves(self, state: list[Tensor]) -> list[Tensor]:
        """Return all four."""
        return state

    def run(self, candidate: str, state: list[Tensor]) -> Tensor:
        """Compute attention: (B, Lq, C)."""
        options = dict(similarity=SIMILARITY[self.branch])
        if candidate == 'reference':
            return reference.mixture_attention(*state, **options)
        path = dict(fpt_plugin=None, sdpa='fused').get(candidate, candidate)
        return mixture_attention(*state, **options, path=path)

    def least_bytes(self, candidate: str) -> int:
        """Return the size of all parts' scores before and after the softmax."""
        if candidate not in ('reference', 'eager'):
            return 0
        queries, keys = self.lengths
        size = getattr(torch, self.dtype).itemsize
        return 2 * self.batch * PARTS[self.branch] * queries * keys * size

    def errors(self, states: dict[str, list[Tensor]]) -> dict[str, float]:
        """Compare evenly spaced query rows with the formula in float64."""
        found = {}
        for name, state in states.items():
            rows = torch.linspace(
                0, self.lengths[0] - 1, SAMPLED, device=self.device).long()
            query, *others = (x.detach().double() for x in state)
            want = reference.mixture_attention(
                query[:, :, rows], *others, similarity=SIMILARITY[self.branch])
            with torch.no_grad():
                got = self.run(name, state)[:, rows].double()
            found[name] = relative_error(got, want)
        return found

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            queries=self.queries, keys=self.keys, parts=PARTS[self.branch],
            channels=self.channels, batch=self.batch, dtype=self.dtype)


def pair_of_sizes(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Parse ``97x97``, twice the same size, or ``128x256-64x128``.

    Raises:
        ValueError: The text has another form.
    """
    match = re.fullmatch(r'(\d+)x(\d+)(?:-(\d+)x(\d+))?', text)
    if match is None:
        raise ValueError('--cases must have the form 97x97 or '
                         f'128x256-64x128, got {text!r}')
    sides = [int(side) for side in match.groups() if side is not None]
    return tuple(sides[:2]), tuple(sides[-2:])


@dataclass(frozen=True)
class LocalCase(Case):
    """Attention of one Locality-constrained Grounding Transformer.

    Attributes:
        fine: Height and width of the map of the queries.
        coarse: Height and width of the map of keys and values.
        window: Side of the window.
        paths: Measure each path, besides the automatic choice.
    """

    fine: tuple[int, int] = (1, 1)
    coarse: tuple[int, int] = (1, 1)
    channels: int = 256
    window: int = 5
    batch: int = 1
    paths: bool = False

    @classmethod
    def parse(cls, text: str, **kwargs) -> LocalCase:
        """Parse ``97x97``, or ``128x256-64x128`` of a fine and a coarse map.

        Raises:
            ValueError: The text has another form.
        """
        fine, coarse = pair_of_sizes(text)
        return cls(name=text, fine=fine, coarse=coarse, **kwargs)

    def candidates(self) -> tuple[str, ...]:
        """Return ours, the formula with unfolded windows, and each path."""
        return ('fpt_plugin', 'reference', *(LOCAL_PATHS if self.paths else ()))

    def prepare(self, candidate: str) -> list[Tensor]:
        """Draw query, key, value and weights."""
        parts = PARTS['gt']
        depth = self.channels // parts
        weights = self._randn(self.batch, parts, seed=3)
        return [
            self._randn(self.batch, parts, depth, *self.fine, seed=0),
            self._randn(self.batch, parts, depth, *self.coarse, seed=1),
            self._randn(self.batch, self.channels, *self.coarse, seed=2),
            weights.detach().softmax(1).requires_grad_()
        ]

    def leaves(self, state: list[Tensor]) -> list[Tensor]:
        """Return all four."""
        return state

    def run(self, candidate: str, state: list[Tensor]) -> Tensor:
        """Compute attention: (B, C, H, W)."""
        options = dict(window=self.window, similarity='neg_euclid')
        if candidate == 'reference':
            return reference.local_mixture_attention(*state, **options)
        path = None if candidate == 'fpt_plugin' else candidate
        return local_mixture_attention(*state, **options, path=path)

    def least_bytes(self, candidate: str) -> int:
        """Return the size of unfolded keys and values, window^2 per fine pixel."""
        if candidate not in ('reference', 'eager'):
            return 0
        copies = 2 * self.batch * self.channels * self.window**2
        pixels = self.fine[0] * self.fine[1]
        return copies * pixels * getattr(torch, self.dtype).itemsize

    def errors(self, states: dict[str, list[Tensor]]) -> dict[str, float]:
        """Compare the upper left crop with the formula in float64.

        The formula runs on a larger crop, which contains all windows.
        """
        found = {}
        if self.fine != self.coarse:
            return found
        for name, state in states.items():
            inner, outer = 16, 16 + self.window
            query, key, value, weights = (x.detach().double() for x in state)
            crop = (..., slice(outer), slice(outer))
            want = reference.local_mixture_attention(
                query[crop], key[crop], value[crop], weights,
                window=self.window, similarity='neg_euclid')
            with torch.no_grad():
                got = self.run(name, state).double()
            part = (..., slice(min(inner, self.fine[0])),
                    slice(min(inner, self.fine[1])))
            found[name] = relative_error(got[part], want[part])
        return found

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            fine=self.fine, coarse=self.coarse, window=self.window,
            parts=PARTS['gt'], channels=self.channels, batch=self.batch,
            dtype=self.dtype)


PRESETS = {name: dict(preset=name) for name in presets.PRESETS}
# The paper's segmentor: windowed FPT over UFP, on maps of a dilated backbone.
PRESETS['ufp'] = dict(
    PRESETS['paper'],
    pyramid=dict(type='UFP'),
    grounding_transformer=dict(type='LocalGroundingTransformer', window=5))
BACKBONE = dict(
    type='mmdet.ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3),
    norm_eval=True, style='pytorch')
FPN = dict(
    type='mmdet.FPN', in_channels=[256, 512, 1024, 2048], out_channels=256,
    num_outs=5)


@dataclass(frozen=True)
class NeckCase(Case):
    """FPT without the pyramid that it wraps, compared with ResNet-50 and FPN.

    With the preset ``'ufp'``: FPT with its UFP, and nothing to compare with.

    Attributes:
        shape: Height and width of the image.
        preset: A key of PRESETS.
        only: Measure only FPT.
    """

    shape: tuple[int, int] = (800, 1344)
    preset: str = 'default'
    batch: int = 1
    only: bool = False

    def candidates(self) -> tuple[str, ...]:
        """Return FPT, then the models that it is compared with."""
        only_fpt = self.only or self.preset == 'ufp'
        return ('fpt', ) if only_fpt else ('fpt', 'resnet50', 'fpn')

    def prepare(self, candidate: str) -> tuple[torch.nn.Module, Any]:
        """Build the module and its inputs."""
        torch.manual_seed(0)
        if candidate == 'resnet50':
            model = MODELS.build(BACKBONE)
            inputs = self._randn(self.batch, 3, *self.shape, seed=0)
        else:
            has_pyramid = candidate == 'fpn' or self.preset == 'ufp'
            channels = FPN['in_channels'] if has_pyramid else [256] * 4
            levels = (2, 3, 3, 3) if self.preset == 'ufp' else (2, 3, 4, 5)
            inputs = tuple(
                self._randn(
                    self.batch, width, *level_size(self.shape, level), seed=i,
                    scale=MAP_SCALE)
                for i, (width, level) in enumerate(zip(channels, levels)))
            args = dict(in_channels=channels, out_channels=256, num_outs=4) \
                if has_pyramid else dict(
                    in_channels=256, out_channels=256, pyramid=None,
                    num_levels=4)
            model = MODELS.build(FPN if candidate == 'fpn' else dict(
                type='FPT', **args, **PRESETS[self.preset]))
        model = model.to(self.device, getattr(torch, self.dtype))
        model.train()  # do not chain: train() of some backbones returns None
        return model, inputs

    def leaves(self, state: tuple[torch.nn.Module, Any]) -> list[Tensor]:
        """Return parameters and inputs."""
        model, inputs = state
        inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        return [*model.parameters(), *inputs]

    def run(self, candidate: str,
            state: tuple[torch.nn.Module, Any]) -> Sequence[Tensor]:
        """Compute the maps."""
        model, inputs = state
        return model(inputs)

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            shape=self.shape, preset=self.preset, batch=self.batch,
            dtype=self.dtype)
