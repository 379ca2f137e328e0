"""What the benchmark measures of lambda layers: position lambdas, backbones."""

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

# What users use today, as plain formulas.
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
        size: Rows and columns of the map.
        channels: Depth v of a value.
        heads: Queries h of a pixel.
        depth: Depth k of a query.
        intra: Intra depth u.
        window: Side of the window.
        orders: Whether each order takes part, beside the one that is chosen.
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
        """Read ``50x84x64``: rows, columns, depth v of the values.

        Raises:
            ValueError: The text is of another form.
        """
        match = re.fullmatch(r'(\d+)x(\d+)x(\d+)', text)
        if match is None or '0' in match.groups():
            raise ValueError('--cases must be of the form 50x84x64 (rows, '
                             f'columns, depth of the values), got {text!r}')
        height, width, channels = map(int, match.groups())
        return cls(name=text, size=(height, width), channels=channels, **kwargs)

    def candidates(self) -> tuple[str, ...]:
        """What is chosen, what users use today, and each order."""
        formulas = [
            name for name in FORMULAS
            if name != 'depthwise' or self.intra == 1
        ]
        orders = ORDERS if self.orders else ()
        return ('fpt_plugin', *formulas, *orders)

    def prepare(self, candidate: str) -> list[Tensor]:
        """Query, value and embedding."""
        lead = self.batch, self.heads, self.depth
        return [
            self._randn(*lead, *self.size, seed=0),
            self._randn(
                self.batch, self.intra, self.channels, *self.size, seed=1),
            self._randn(
                self.depth, self.intra, self.window, self.window, seed=2)
        ]

    def leaves(self, state: list[Tensor]) -> list[Tensor]:
        """All three."""
        return state

    def run(self, candidate: str, state: list[Tensor]) -> Tensor:
        """(B, h, v, H, W)."""
        if candidate in FORMULAS:
            return FORMULAS[candidate](*state)
        return position_lambda(
            *state, path=candidate if candidate in ORDERS else None)

    def least_bytes(self, candidate: str) -> int:
        """The lambdas of all pixels; the broadcast product has h of them."""
        if candidate not in FORMULAS:
            return 0
        copies = 1 + self.heads if candidate.startswith('conv3d') else 1
        numbers = copies * self.batch * self.depth * self.channels
        return numbers * self.size[0] * self.size[1] * getattr(
            torch, self.dtype).itemsize

    def errors(self, states: dict[str, list[Tensor]]) -> dict[str, float]:
        """Against the formula in float64."""
        state = next(iter(states.values()), None)
        if state is None:
            return {}
        with torch.no_grad():
            want = reference.position_lambda(*(x.double() for x in state))
            return {
                name: relative_error(self.run(name, mine).double(), want)
                for name, mine in states.items()
            }

    def facts(self) -> dict[str, Any]:
        """Sizes."""
        return dict(
            size=self.size, channels=self.channels, heads=self.heads,
            depth=self.depth, intra=self.intra, window=self.window,
            batch=self.batch, dtype=self.dtype)


@dataclass(frozen=True)
class BackboneCase(Case):
    """LambdaResNet beside mmdet's ResNet of the same depth.

    Attributes:
        depth: 50, 101 or 152.
        dilated: Output stride 8, as segmentors want it.
        shape: Height and width of the image.
    """

    depth: int = 50
    dilated: bool = False
    shape: tuple[int, int] = (800, 1344)
    batch: int = 1

    @classmethod
    def parse(cls, text: str, shape: tuple[int, int] | None,
              **kwargs) -> BackboneCase:
        """Read ``50`` or, with an output stride of 8, ``50-d8``.

        Args:
            text: The case.
            shape: Of the image; None: 800x1344, or 512x1024 where dilated.
            **kwargs: Other attributes.

        Raises:
            ValueError: The text is of another form.
        """
        match = re.fullmatch(r'(50|101|152)(-d8)?', text)
        if match is None:
            raise ValueError('--cases must be 50, 101 or 152, or with an output '
                             f'stride of 8 50-d8 and the like, got {text!r}')
        dilated = match[2] is not None
        return cls(
            name=text, depth=int(match[1]), dilated=dilated,
            shape=shape or ((512, 1024) if dilated else (800, 1344)), **kwargs)

    def candidates(self) -> tuple[str, ...]:
        """Ours and the host's."""
        return ('LambdaResNet', 'mmdet.ResNet')

    def prepare(self, candidate: str) -> tuple[torch.nn.Module, Tensor]:
        """The backbone, training with its norms in evaluation; an image."""
        torch.manual_seed(0)
        cfg = dict(type=candidate, depth=self.depth, norm_eval=True)
        if self.dilated:
            cfg.update(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
        model = MODELS.build(cfg).to(self.device, getattr(torch, self.dtype))
        model.train()  # a host's backbone may return nothing here
        return model, self._randn(self.batch, 3, *self.shape, seed=0)

    def leaves(self, state: tuple[torch.nn.Module, Tensor]) -> list[Tensor]:
        """Parameters and image."""
        return [*state[0].parameters(), state[1]]

    def run(self, candidate: str,
            state: tuple[torch.nn.Module, Tensor]) -> Sequence[Tensor]:
        """The maps."""
        return state[0](state[1])

    def facts(self) -> dict[str, Any]:
        """Sizes."""
        return dict(
            shape=self.shape, depth=self.depth, dilated=self.dilated,
            batch=self.batch, dtype=self.dtype)
