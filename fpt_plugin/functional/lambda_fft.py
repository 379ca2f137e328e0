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

    The backward pass differentiates each group of channels anew, so no more
    than one group's transforms are ever kept.
    """

    @classmethod
    def forward(cls, query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        """(B, h, v, H, W)."""
        groups = value.split(cls._group(query, embedding), dim=2)
        return torch.cat([cls._compute(query, v, embedding) for v in groups],
                         dim=2)

    @classmethod
    def backward(cls, query: Tensor, value: Tensor, embedding: Tensor,
                 grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the three operands."""
        group = cls._group(query, embedding)
        grad_q, grad_e = map(torch.zeros_like, (query, embedding))
        grads_v = []
        for v, g in zip(value.split(group, dim=2), grad.split(group, dim=2)):
            leaves = [x.detach().requires_grad_() for x in (query, v, embedding)]
            with torch.enable_grad():
                out = cls._compute(*leaves)
            of_query, of_value, of_embedding = torch.autograd.grad(
                out, leaves, g)
            grad_q += of_query
            grad_e += of_embedding
            grads_v.append(of_value)
        return grad_q, torch.cat(grads_v, dim=2), grad_e

    @staticmethod
    def _group(query: Tensor, embedding: Tensor) -> int:
        """Value channels whose transforms fit the budget."""
        batch, _, depth, height, width = query.shape
        rows, columns = fft_size(height, width, *embedding.shape[2:])
        held = 2 * batch * depth * rows * columns
        return max(1, cached_scores(query.device) // held)

    @staticmethod
    def _compute(query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
        """(B, h, k, H, W) and some channels (B, u, v, H, W): (B, h, v, H, W)."""
        height, width = query.shape[3:]
        window = embedding.shape[2:]
        size = fft_size(height, width, *window)
        down, right = (side // 2 for side in window)
        value = F.pad(value, (right, right, down, down))
        # A correlation: one factor is conjugated.
        product = torch.einsum('kuyx,buvyx->bkvyx',
                               torch.fft.rfft2(embedding, s=size).conj(),
                               torch.fft.rfft2(value, s=size))
        lambdas = torch.fft.irfft2(product, s=size)[..., :height, :width]
        return torch.einsum('bhkyx,bkvyx->bhvyx', query, lambdas)
