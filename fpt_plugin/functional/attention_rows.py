"""Attention maps of single queries, computed by the formulas.

They are for visualisation, not for training. The fast paths never hold a whole map, and
the maps of a few queries do not need one.
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
                 mixture_weights: Tensor,
                 *,
                 similarity: str,
                 scale: float | None = None) -> Tensor:
    """Compute rows of the map of :func:`~.attention.mixture_attention`.

    Args:
        query: (B, N, P, d), the selected queries.
        key: (B, N, Lk, d), all keys.
        mixture_weights: (B, N), the weight of each part.
        similarity: ``'dot'`` or ``'neg_euclid'``.
        scale: Factor of the similarity; None is 1 / sqrt(d).

    Returns:
        (B, P, Lk) in float64: the weight of each key. Rows sum to the sum of
        ``mixture_weights``.
    """
    query, key, mixture_weights = (
        x.double() for x in (query, key, mixture_weights))
    scores_per_query = key[:, :, :, 0].numel()
    length = max(1, score_budget(key.device) // scores_per_query)
    return torch.cat([
        mixture_map(chunk, key, mixture_weights, similarity=similarity, scale=scale)
        for chunk in query.split(length, dim=2)  # (B, N, length, d)
    ], dim=1)


def local_mixture_rows(query: Tensor,
                       key: Tensor,
                       mixture_weights: Tensor,
                       pixels: Tensor,
                       size: tuple[int, int],
                       *,
                       window: int,
                       similarity: str,
                       pad: str,
                       scale: float | None = None) -> Tensor:
    """Compute rows of the map of :func:`~.local_attention.local_mixture_attention`.

    Args:
        query: (B, N, P, d), the selected queries.
        key: (B, N, d, h, w), all keys.
        mixture_weights: (B, N), the weight of each part.
        pixels: (P, 2), row and column of each query in its map.
        size: (H, W) of that map.
        window: Side of the window, odd.
        similarity: ``'dot'`` or ``'neg_euclid'``.
        pad: ``'zero'`` or ``'mask'``.
        scale: Factor of the similarity; None is 1 / sqrt(d).

    Returns:
        (B, P, h, w) in float64, zero outside the windows. With ``pad='zero'`` a map
        may sum to less than ``mixture_weights``: the rest is the weight of the zero
        keys around the map.
    """
    query, key, mixture_weights = (
        x.double() for x in (query, key, mixture_weights))
    margin = window // 2
    height, width = key.shape[-2:]
    padded = F.pad(key, [margin] * 4)  # (B, N, d, h + window - 1, w + window - 1)
    # (h + window - 1, w + window - 1)
    inside = F.pad(torch.ones_like(key[0, 0, 0]), [margin] * 4) > 0
    rows, columns = centres(size[0], height), centres(size[1], width)
    maps = []
    for i, (row, column) in enumerate(pixels.tolist()):
        # The window begins one margin above and left of its centre: in the padded map
        # that is the pixel with the centre's indices.
        window_index = (..., slice(rows[row], rows[row] + window),
                        slice(columns[column], columns[column] + window))
        keys = padded[window_index].flatten(3).transpose(2, 3)  # (B, N, window^2, d)
        weights = mixture_map(
            query[:, :, i:i + 1],
            keys,
            mixture_weights,
            similarity=similarity,
            scale=scale,
            mask=~inside[window_index].flatten() if pad == 'mask' else None,
        )  # (B, 1, window^2)
        whole = padded.new_zeros(len(key), *padded.shape[-2:])
        whole[window_index] = weights.unflatten(2, (window, window))[:, 0]
        maps.append(whole[:, margin:margin + height, margin:margin + width])
    return torch.stack(maps, dim=1)
