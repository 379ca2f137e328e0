"""Case of the benchmark: the texture transfer of TTSR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...functional import reference, texture_transfer
from ...restoration.ttsr import PATCH, SCALE
from .cases import pair_of_sizes
from .measuring import Case, relative_error


@dataclass(frozen=True)
class TextureCase(Case):
    """Texture transfer between an enlarged image and its reference.

    Attributes:
        image: Height and width of the enlarged image, multiples of 4.
        reference: Height and width of the reference, multiples of 4.
        channels: Channels of the values at full size; twice and four times as many
            at a half and a quarter of it, as in VGG19. Query and key have the most.
    """

    image: tuple[int, int] = (SCALE * PATCH, ) * 2
    reference: tuple[int, int] = (SCALE * PATCH, ) * 2
    channels: int = 64
    batch: int = 1

    @classmethod
    def parse(cls, text: str, **kwargs) -> TextureCase:
        """Parse ``600x600``, or ``480x640-600x600`` of an image and a reference.

        Raises:
            ValueError: The text has another form, or a side is no multiple of 4.
        """
        image, other = pair_of_sizes(text)
        if any(side % SCALE or not side for side in image + other):
            raise ValueError(
                f'sides of --cases must be multiples of {SCALE}, got {text!r}')
        return cls(name=text, image=image, reference=other, **kwargs)

    def candidates(self) -> tuple[str, ...]:
        """Return ours, and the formula with unfolded patches and all scores."""
        return 'fpt_plugin', 'reference'

    def prepare(self, candidate: str) -> list[Tensor]:
        """Draw query, key, and the values of the three scales, smallest first."""
        widths = [self.channels * factor for factor in (4, 2, 1)]
        small = [tuple(side // SCALE for side in sides)
                 for sides in (self.image, self.reference)]
        values = [
            self._randn(self.batch, width, *(factor * side for side in small[1]),
                        seed=2 + i)
            for i, (width, factor) in enumerate(zip(widths, (1, 2, 4)))]
        return [self._randn(self.batch, widths[0], *sides, seed=i)
                for i, sides in enumerate(small)] + values

    def leaves(self, state: list[Tensor]) -> list[Tensor]:
        """Return all of them."""
        return state

    def run(self, candidate: str, state: list[Tensor]) -> list[Tensor]:
        """Transfer: the textures of each scale, and the soft attention."""
        query, key, *values = state
        function = texture_transfer if candidate == 'fpt_plugin' \
            else reference.texture_transfer
        textures, soft, _ = function(query, key, values, PATCH)
        return [*textures, soft]

    def least_bytes(self, candidate: str) -> int:
        """Return the size of the scores and of the patches of the largest scale."""
        if candidate != 'reference':
            return 0
        queries, keys = (sides[0] * sides[1] // SCALE**2
                         for sides in (self.image, self.reference))
        patches = self.channels * (SCALE * PATCH)**2 * (queries + keys)
        size = getattr(torch, self.dtype).itemsize
        return self.batch * (queries * keys + patches) * size

    def errors(self, states: dict[str, Any]) -> dict[str, float]:
        """Compare ours with the formula, where both ran, as a relative error."""
        if len(states) < 2:
            return {}
        with torch.no_grad():
            got, want = (torch.cat([x.flatten() for x in self.run(name, states[name])])
                         for name in self.candidates())
        return dict(fpt_plugin=relative_error(got, want))

    def facts(self) -> dict[str, Any]:
        """Return the sizes."""
        return dict(
            image=self.image, reference=self.reference, channels=self.channels,
            batch=self.batch, dtype=self.dtype)
