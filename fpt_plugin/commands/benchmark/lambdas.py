"""Cases of lambda layers: position lambdas and backbones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor

from ...functional import position_lambda, reference
from ...functional.lambda_orders import ORDERS
from .measuring import Case, relative_error

# Common implementations, as plain formulas.
FORMULAS = {
    'conv2d': reference.position_lambda,
    'depthwise': reference.position_lambda_depthwise,
    'conv3d': reference.position_lambda_conv3d,
    'conv3d-v-first': partial(
        reference.position_lambda_conv3d, channels_first=True),
}


@dataclass(frozen=True)
class LambdaCase(Case):
    """Position lambdas of one map.

    Attributes:
        size: Height and width of the map.
        channels: Value depth v.
        heads: Number of queries h per pixel.
        depth: Query depth k.
        intra: Intra depth u.
        window: Side of the window.
        orders: Measure each order, besides the automatic choice.
    """

    size: tuple[int, int] = (1, 1)
    channels: int = 64
    heads: int = 4
    depth: int = 16
    intra: int = 1
    window: int = 23
    batch: int = 1
    orders: bool = True

    @classmethod
    def parse(cls, text: str, **kwargs) -> LambdaCase:
        """Parse ``50x84x64``: rows, columns, depth v of the values.

        Raises:
            ValueError: The text has another form.
        """
        match = re.fullmatch(r'(\d+)x(\d+)x(\d+)', text)
        if match is None or '0' in match.groups():
            raise ValueError('--cases must have the form 50x84x64 (rows, '
                             f'columns, depth of the values), got {text!r}')
        height, width, channels = map(int, match.groups())
        return cls(name=text, size=(height, width), channels=channels, **kwargs)

    def candidates(self) -> tuple[str, ...]:
        """Return the automatic choice, common implementations, and each order."""
        formulas = [
            name for name in FORMULAS
            if name != 'depthwise' or self.intra == 1
        ]
        orders = ORDERS if self.orders else ()
        return ('fpt_plugin', *formulas, *orders)

    def prepare(self, candidate: str) -> list[Tensor]:
        """Draw query, value and embedding."""
        return [
            self._randn(
                self.batch, self.heads, self.depth, *self.size, seed=0),
            self._randn(
                self.batch, self.intra, self.channels, *self.size, seed=1),
            self._randn(
                self.depth, self.intra, self.window, self.window, seed=2)
        ]

    def leaves(self, state: list[Tensor]) -> list[Tensor]:
        """Return all three."""
        return state

    def run(self, candidate: str, state: list[Tensor]) -> Tensor:
        """Compute position lambdas times queries: (B, h, v, H, W)."""
        if candidate in FORMULAS:
            return FORMULAS[candidate](*state)
        return position_lambda(
            *state, path=candidate if candidate in ORDERS else None)

    def least_bytes(self, candidate: str) -> int:
        """Return the size of all lambdas; conv3d broadcasts them to h heads."""
        if candidate not in FORMULAS:
            return 0
        copies = 1 + self.heads if candidate.startswith('conv3d') else 1
        numbers = copies * self.batch * self.depth * self.channels
        return numbers * self.size[0] * self.size[1] * getattr(
            torch, self.dtype).itemsize

    def errors(self, states: dict[str, list[Tensor]]) -> dict[str, float]:
        """Compare with the formula in float64."""
        state = next(iter(states.values()), None)
        if state is None:
            return {}
        with torch.no_grad():
            want = reference.position_lambda(*(x.double() for x in state))
            return {
                name: relative_error(self.run(name, state).double(), want)
                for name, state in states.items()
            }

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            size=self.size, channels=self.channels, heads=self.heads,
            depth=self.depth, intra=self.intra, window=self.window,
            batch=self.batch, dtype=self.dtype)


@dataclass(frozen=True)
class BackboneCase(Case):
    """LambdaResNet and mmdet's ResNet of the same depth.

    Attributes:
        depth: 50, 101 or 152.
        dilated: Use output stride 8, as segmentors do.
        shape: Height and width of the image.
    """

    depth: int = 50
    dilated: bool = False
    shape: tuple[int, int] = (800, 1344)
    batch: int = 1

    @classmethod
    def parse(cls, text: str, shape: tuple[int, int] | None,
              **kwargs) -> BackboneCase:
        """Parse ``50`` or, with an output stride of 8, ``50-d8``.

        Args:
            text: The case.
            shape: Height and width of the image; None: 800x1344, or 512x1024 if
                dilated.
            **kwargs: Other attributes.

        Raises:
            ValueError: The text has another form.
        """
        match = re.fullmatch(r'(50|101|152)(-d8)?', text)
        if match is None:
            raise ValueError('--cases must be 50, 101 or 152, with the suffix '
                             f'-d8 for an output stride of 8, got {text!r}')
        dilated = match[2] is not None
        return cls(
            name=text, depth=int(match[1]), dilated=dilated,
            shape=shape or ((512, 1024) if dilated else (800, 1344)), **kwargs)

    def candidates(self) -> tuple[str, ...]:
        """Return LambdaResNet and mmdet's ResNet."""
        return ('LambdaResNet', 'mmdet.ResNet')

    def prepare(self, candidate: str) -> tuple[torch.nn.Module, Tensor]:
        """Build the backbone in training mode with norm_eval, and an image."""
        torch.manual_seed(0)
        cfg = dict(type=candidate, depth=self.depth, norm_eval=True)
        if self.dilated:
            cfg.update(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
        model = MODELS.build(cfg).to(self.device, getattr(torch, self.dtype))
        model.train()  # do not chain: train() of some backbones returns None
        return model, self._randn(self.batch, 3, *self.shape, seed=0)

    def leaves(self, state: tuple[torch.nn.Module, Tensor]) -> list[Tensor]:
        """Return parameters and image."""
        return [*state[0].parameters(), state[1]]

    def run(self, candidate: str,
            state: tuple[torch.nn.Module, Tensor]) -> Sequence[Tensor]:
        """Compute the maps."""
        return state[0](state[1])

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            shape=self.shape, depth=self.depth, dilated=self.dilated,
            batch=self.batch, dtype=self.dtype)
