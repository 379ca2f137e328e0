"""Predict pixels from counts of colours, the baseline of a PixelGPT."""

from __future__ import annotations

import torch
from torch import Tensor

STRENGTHS = (0.01, 0.1, 1., 3., 10., 30., 100., 300., 1000., 3000., 10000.,
             30000., 100000.)


class ContextModel:
    """Predict a pixel from how often colours occur, without a network.

    ``unigram`` is the frequency of each colour. ``context`` is its frequency behind
    the pair of colours to the left and above, smoothed towards the mean of the
    frequencies behind each of the two, which are smoothed towards the unigram
    (Dirichlet priors). The strength of each of the three priors is the best one on
    every fifth image; then all images are counted.

    Args:
        tokens: (I, H, W), images in the colours of a palette.
        colours: Number of colours.
        sources: (I,), the number of the photograph that each is a part of; None:
            each of its own.

    Raises:
        ValueError: There are fewer than five photographs.
    """

    def __init__(self, tokens: Tensor, colours: int,
                 sources: Tensor | None = None) -> None:
        sources = torch.arange(len(tokens)) if sources is None else sources
        self.colours = colours
        fifth = sources % 5 == 4
        if not fifth.any():
            raise ValueError('the smoothing needs at least 5 images, of which it '
                             f'takes every fifth, got {len(sources.unique())}')
        self._count(tokens[~fifth])
        self.strengths: dict[str, float] = {}
        for step in ('unigram', 'one', 'context'):
            tried = {
                strength: self._bits(tokens[fifth], step, strength).mean().item()
                for strength in STRENGTHS}
            self.strengths[step] = min(tried, key=tried.get)
        self._count(tokens)

    def unigram(self, tokens: Tensor) -> Tensor:
        """Compute bits of each pixel from the frequency of colours: (I, H, W)."""
        return self._bits(tokens, 'unigram')

    def context(self, tokens: Tensor) -> Tensor:
        """Compute bits of each pixel from those left of and above it: (I, H, W)."""
        return self._bits(tokens, 'context')

    def _count(self, tokens: Tensor) -> None:
        left, above = self._neighbours(tokens)
        self.counts = dict(
            unigram=_Counts(torch.zeros_like(tokens), tokens, self.colours),
            left=_Counts(left, tokens, self.colours),
            above=_Counts(above, tokens, self.colours),
            context=_Counts(self._pairs(left, above), tokens, self.colours))

    def _bits(self, tokens: Tensor, step: str,
              strength: float | None = None) -> Tensor:
        """Compute bits of each pixel by one of the steps; try a strength of it."""
        chosen = {**self.strengths, **({} if strength is None else {step: strength})}
        left, above = self._neighbours(tokens)

        def drawn(name: str, context: Tensor, prior: Tensor | float,
                  strength: float) -> Tensor:
            seen, total = self.counts[name].of(context, tokens)
            return (seen + strength * prior) / (total + strength)

        chance = drawn('unigram', torch.zeros_like(tokens), 1 / self.colours,
                       chosen['unigram'] * self.colours)
        if step != 'unigram':
            chance = (drawn('left', left, chance, chosen['one'])
                      + drawn('above', above, chance, chosen['one'])) / 2
        if step == 'context':
            chance = drawn('context', self._pairs(left, above), chance,
                           chosen['context'])
        return -chance.log2()

    def _neighbours(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Colours to the left and above; outside of the image is one more colour."""
        left, above = (torch.full_like(tokens, self.colours) for _ in range(2))
        left[:, :, 1:], above[:, 1:] = tokens[:, :, :-1], tokens[:, :-1]
        return left, above

    def _pairs(self, left: Tensor, above: Tensor) -> Tensor:
        return left * (self.colours + 1) + above


class _Counts:
    """Counts of colours by context; only pairs that occur take memory."""

    def __init__(self, context: Tensor, tokens: Tensor, colours: int) -> None:
        self.colours = colours
        self.both = torch.unique(context * colours + tokens, return_counts=True)
        self.alone = torch.unique(context, return_counts=True)

    def of(self, context: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Count each colour in its context, and the context with any colour."""
        return (_find(context * self.colours + tokens, *self.both),
                _find(context, *self.alone))


def _find(wanted: Tensor, keys: Tensor, counts: Tensor) -> Tensor:
    place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, counts[place], 0).double()
