"""Where single queries look: some rows of the attention maps, by formula.

For looking at, not for training: the whole maps never exist in the fast paths,
and the few rows that are asked for need none of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .budget import score_budget
from .reference import mixture_map
from .windows import centres


def mixture_rows(query: Tensor,
                 key: Tensor,
                 weights: Tensor,
                 *,
                 similarity: str,
                 scale: float | None = None) -> Tensor:
    """Rows of the map of :func:`~.attention.mixture_attention`.

    Args:
        query: (B, N, P, d), the queries that are asked for.
        key: (B, N, Lk, d), all keys.
        weights: (B, N), the share of each part.
        similarity: ``'dot'`` or ``'neg_euclid'``.
        scale: Factor of the similarity; None is 1 / sqrt(d).

    Returns:
        (B, P, Lk) in float64: the shares of the keys, which sum to 1 where
        the weights do.
    """
    query, key, weights = query.double(), key.double(), weights.double()
    scores = key[:, :, :, 0].numel()  # of one query
    rows = max(1, score_budget(key.device) // scores)
    return torch.cat([
        mixture_map(some, key, weights, similarity=similarity, scale=scale)
        for some in query.split(rows, dim=2)
    ], dim=1)


def local_mixture_rows(query: Tensor,
                       key: Tensor,
                       weights: Tensor,
                       places: Tensor,
                       size: tuple[int, int],
                       *,
                       window: int,
                       similarity: str,
                       pad: str,
                       scale: float | None = None) -> Tensor:
    """Rows of the map of :func:`~.local_attention.local_mixture_attention`.

    Args:
        query: (B, N, P, d), the queries that are asked for.
        key: (B, N, d, h, w), all keys.
        weights: (B, N), the share of each part.
        places: (P, 2), row and column of each query in its map.
        size: (H, W) of that map.
        window: Side of the window, odd.
        similarity: ``'dot'`` or ``'neg_euclid'``.
        pad: ``'zero'`` or ``'mask'``.
        scale: Factor of the similarity; None is 1 / sqrt(d).

    Returns:
        (B, P, h, w) in float64, zero outside of the windows. With zero padding
        a row may sum to less than its weights: the rest fell on the zero keys
        around the map.
    """
    query, key, weights = query.double(), key.double(), weights.double()
    reach = window // 2
    height, width = key.shape[-2:]
    padded = F.pad(key, [reach] * 4)
    inside = F.pad(torch.ones_like(key[0, 0, 0]), [reach] * 4) > 0
    rows, columns = centres(size[0], height), centres(size[1], width)
    maps = []
    for place, (row, column) in enumerate(places.tolist()):
        there = (..., slice(rows[row], rows[row] + window),
                 slice(columns[column], columns[column] + window))
        shares = mixture_map(
            query[:, :, place:place + 1],
            padded[there].flatten(3).transpose(2, 3),
            weights,
            similarity=similarity,
            scale=scale,
            mask=~inside[there].flatten() if pad == 'mask' else None)
        whole = padded.new_zeros(len(key), *padded.shape[-2:])
        whole[there] = shares.unflatten(2, (window, window))[:, 0]
        maps.append(whole[:, reach:reach + height, reach:reach + width])
    return torch.stack(maps, dim=1)
