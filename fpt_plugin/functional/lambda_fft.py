"""Position lambdas whose correlation is a product of Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .budget import cached_scores


def fft_size(height: int, width: int, rows: int,
             columns: int) -> tuple[int, int]:
    """Sides of the transforms: no smaller than a map and its margins."""
    return _fast(height + rows - 1), _fast(width + columns - 1)


def _fast(length: int) -> int:
    """The next product of 2, 3 and 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


class FourierOrder:
    """Lambdas of a few value channels at a time, then their queries.

    No more than one group's transforms are ever kept.
    """

    def __init__(self, query: Tensor, embedding: Tensor) -> None:
        batch, _, depth, *self.map = query.shape
        self.window = embedding.shape[2:]
        self.size = fft_size(*self.map, *self.window)
        self.embedding = torch.fft.rfft2(embedding, s=self.size)  # (k, u, ...)
        # Value channels whose transforms fit the budget.
        held = 2 * batch * depth * self.size[0] * self.size[1]
        self.group = max(1, cached_scores(query.device) // held)

    def values(self, value: Tensor) -> Tensor:
        """Transforms of some channels (B, u, v, H, W) and their margins."""
        down, right = (side // 2 for side in self.window)
        value = F.pad(value, (right, right, down, down))
        return torch.fft.rfft2(value, s=self.size)

    def inverse(self, x: Tensor, sides: tuple[int, int],
                start: tuple[int, int] = (0, 0)) -> Tensor:
        """What transforms (..., frequencies) are of, a part of some sides."""
        x = torch.fft.irfft2(x, s=self.size)
        for dim, (first, side) in enumerate(zip(start, sides), x.dim() - 2):
            x = x.narrow(dim, first, side)
        return x

    def lambdas(self, values: Tensor) -> Tensor:
        """(B, k, v, H, W): a correlation, so that one factor is conjugated."""
        product = torch.einsum('kuyx,buvyx->bkvyx', self.embedding.conj(),
                               values)
        return self.inverse(product, self.map)

    @classmethod
    def forward(cls, query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        """(B, h, v, H, W)."""
        x = cls(query, embedding)
        return torch.cat([
            torch.einsum('bhkyx,bkvyx->bhvyx', query, x.lambdas(x.values(v)))
            for v in value.split(x.group, dim=2)
        ], dim=2)

    @classmethod
    def backward(cls, query: Tensor, value: Tensor, embedding: Tensor,
                 grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the three operands."""
        x = cls(query, embedding)
        grad_q, grad_e = map(torch.zeros_like, (query, x.embedding))
        grads_v = []
        for v, g in zip(value.split(x.group, dim=2),
                        grad.split(x.group, dim=2)):
            values = x.values(v)
            grad_q += torch.einsum('bhvyx,bkvyx->bhkyx', g, x.lambdas(values))
            d_lambdas = torch.fft.rfft2(
                torch.einsum('bhkyx,bhvyx->bkvyx', query, g), s=x.size)
            grad_e += torch.einsum('bkvyx,buvyx->kuyx', d_lambdas.conj(),
                                   values)
            grads_v.append(x.inverse(
                torch.einsum('kuyx,bkvyx->buvyx', x.embedding, d_lambdas),
                x.map, [side // 2 for side in x.window]))
        return grad_q, torch.cat(grads_v, dim=2), x.inverse(grad_e, x.window)
