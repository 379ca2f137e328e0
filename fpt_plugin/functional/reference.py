"""The attention of the papers as plain formulas: slow, obvious, differentiable.

These functions are the oracle of the tests (in float64) and the baseline of
the benchmarks. They keep every score in memory, so use them at small sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixture_scores(query: Tensor,
                   key: Tensor,
                   *,
                   similarity: str = 'dot',
                   scale: float | None = None) -> Tensor:
    """Similarity of each query with each key, part by part.

    Args:
        query: (B, N, Lq, d).
        key: (B, N, Lk, d).
        similarity: ``'dot'`` for q . k or ``'neg_euclid'`` for -||q - k||^2
            (FPT, Sec. 3.2).
        scale: Factor of the similarity; ``None`` is 1 / sqrt(d).

    Returns:
        Scores (B, N, Lq, Lk) before the softmax.

    Raises:
        ValueError: ``similarity`` is neither of the two.
    """
    scale = query.shape[-1]**-0.5 if scale is None else scale
    product = query @ key.transpose(-2, -1)
    if similarity == 'dot':
        return scale * product
    if similarity == 'neg_euclid':
        query_norm = query.square().sum(-1).unsqueeze(-1)
        key_norm = key.square().sum(-1).unsqueeze(-2)
        return -scale * (query_norm - 2 * product + key_norm)
    raise ValueError("similarity must be 'dot' or 'neg_euclid', "
                     f'got {similarity!r}')


def mixture_attention(query: Tensor,
                      key: Tensor,
                      value: Tensor,
                      weights: Tensor,
                      *,
                      similarity: str = 'dot',
                      scale: float | None = None) -> Tensor:
    r"""Mixture of softmaxes over all keys (FPT, Eq. 2).

    .. math::
        o_i = \sum_n \pi_n \sum_j \mathrm{softmax}_j(s^n_{ij}) v_j

    Args:
        query: (B, N, Lq, d), the queries of each of the N mixture parts.
        key: (B, N, Lk, d).
        value: (B, Lk, C), shared by all parts.
        weights: (B, N), the share of each part.
        similarity: See :func:`mixture_scores`.
        scale: See :func:`mixture_scores`.

    Returns:
        (B, Lq, C).
    """
    scores = mixture_scores(query, key, similarity=similarity, scale=scale)
    parts = torch.softmax(scores, dim=-1)
    attention = (weights[:, :, None, None] * parts).sum(dim=1)
    return attention @ value
