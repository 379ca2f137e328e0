"""Mixture-of-softmaxes attention in bounded memory.

Feature Pyramid Transformer, Sec. 3.1 and 3.2: https://arxiv.org/abs/2007.09451

The Lq x Lk maps of all mixture parts never exist at once. Queries are taken in
chunks whose scores fit a fixed budget; within a chunk the maps of the parts
are summed first and multiplied with the values once, which is the same sum in
another order and N - 1 products cheaper. The backward pass recomputes the
scores chunk by chunk, so nothing of size Lq x Lk is ever saved.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import reference

SIMILARITIES = ('dot', 'neg_euclid')

# Scores held at once, all parts of a chunk together: 4 MiB of float32, which
# stays in the last-level cache of a CPU core. A GPU wants larger products.
SCORE_BUDGET = {'cpu': 1 << 20, 'cuda': 1 << 26}


def mixture_attention(query: Tensor,
                      key: Tensor,
                      value: Tensor,
                      weights: Tensor,
                      *,
                      similarity: str = 'dot',
                      scale: float | None = None) -> Tensor:
    r"""Mixture of softmaxes over all keys, exact, in bounded memory.

    .. math::
        o_i = \sum_n \pi_n \sum_j \mathrm{softmax}_j(s^n_{ij}) v_j

    with :math:`s^n_{ij}` the scaled dot product or the negative squared
    Euclidean distance of query i and key j in part n (FPT, Eq. 2 and
    Sec. 3.2).

    Args:
        query: (B, N, Lq, d), the queries of each of the N mixture parts.
        key: (B, N, Lk, d).
        value: (B, Lk, C), shared by all parts.
        weights: (B, N), the share of each part; FPT uses a softmax over N.
        similarity: ``'dot'`` for q . k or ``'neg_euclid'`` for
            -||q - k||^2.
        scale: Factor of the similarity. ``None`` is 1 / sqrt(d); the papers
            to the letter is 1.

    Returns:
        (B, Lq, C) in the dtype of ``value``. Scores and sums are kept in
        float32 (float64 for float64 inputs), also under autocast.

    Raises:
        TypeError: An argument is not a floating point tensor.
        ValueError: Shapes do not fit together, a dimension that must not be
            empty is, or ``similarity`` is unknown.
    """
    _check(query, key, value, weights, similarity)
    scale = int(query.shape[-1])**-0.5 if scale is None else float(scale)
    # Traced graphs (export, operation counters) see plain operators instead of
    # a loop whose length would be frozen at the traced size.
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return _eager(query, key, value, weights, similarity, scale)
    return _MixtureAttention.apply(query, key, value, weights, similarity,
                                   scale)


def _check(query: Tensor, key: Tensor, value: Tensor, weights: Tensor,
           similarity: str) -> None:
    tensors = dict(query=query, key=key, value=value, weights=weights)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            given = (
                tensor.dtype if isinstance(tensor, Tensor) else
                type(tensor).__name__)
            raise TypeError(
                f'{name} must be a floating point tensor, got {given}')
    if similarity not in SIMILARITIES:
        raise ValueError(
            f'similarity must be one of {SIMILARITIES}, got {similarity!r}')
    shapes = ', '.join(f'{n} {tuple(t.shape)}' for n, t in tensors.items())
    for name, rank in (('query', 4), ('key', 4), ('value', 3), ('weights', 2)):
        if tensors[name].dim() != rank:
            raise ValueError(f'{name} must have {rank} dimensions, got {shapes}')
    batch, parts, _, depth = query.shape
    if (key.shape[0], key.shape[1], key.shape[3]) != (batch, parts, depth):
        raise ValueError('query (B, N, Lq, d) and key (B, N, Lk, d) must agree '
                         f'in B, N and d, got {shapes}')
    if value.shape[:2] != (batch, key.shape[2]):
        raise ValueError('value must be (B, Lk, C) with the B and Lk of key, '
                         f'got {shapes}')
    if weights.shape != (batch, parts):
        raise ValueError('weights must be (B, N) with the B and N of query, '
                         f'got {shapes}')
    if min(parts, depth, key.shape[2]) == 0:
        raise ValueError(f'N, d and Lk must not be 0, got {shapes}')


def _accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Float64 stays float64; everything else is computed in float32."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def _eager(query: Tensor, key: Tensor, value: Tensor, weights: Tensor,
           similarity: str, scale: float) -> Tensor:
    """The same numbers by plain operators, all scores at once."""
    dtype = _accumulation_dtype(query, key, value, weights)
    with torch.autocast(value.device.type, enabled=False):
        out = reference.mixture_attention(
            query.to(dtype),
            _centred(key.to(dtype)) if similarity == 'dot' else key.to(dtype),
            value.to(dtype),
            weights.to(dtype),
            similarity=similarity,
            scale=scale)
    return out.to(value.dtype)


def _centred(key: Tensor) -> Tensor:
    """Keys minus their mean.

    Both similarities only change by a constant per query when all keys move
    together (for the distance, query and key move together), and the softmax
    over keys does not see it. Centred keys lose fewer digits to cancellation.
    """
    return key - key.mean(dim=-2, keepdim=True)


def _score_operands(query: Tensor, key: Tensor, similarity: str,
                    scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Factors of one product that gives the scores up to a softmax constant.

    The query norm of -||q - k||^2 is the same for all keys and cancels in the
    softmax: 2 q . k - ||k||^2 is left, a product plus a bias per key.

    Returns:
        query (B, N, Lq, d), scaled key (B, N, d, Lk) and the key bias
        (B, N, 1, Lk) or None.
    """
    if similarity == 'dot':
        return query, scale * _centred(key).transpose(-2, -1), None
    centre = key.mean(dim=-2, keepdim=True)
    key = key - centre
    bias = -scale * key.square().sum(-1).unsqueeze(-2)
    return query - centre, (2 * scale) * key.transpose(-2, -1), bias


def _chunk_length(query: Tensor, key: Tensor) -> int:
    """Queries whose scores, over batch and parts, fit the budget."""
    batch, parts, num_queries, _ = query.shape
    budget = SCORE_BUDGET.get(query.device.type, SCORE_BUDGET['cuda'])
    per_query = max(1, batch * parts * key.shape[2])
    return max(1, min(num_queries, budget // per_query))


def _parts(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """softmax_j of the scores of a chunk: (B, N, c, Lk)."""
    scores = query @ key
    if bias is not None:
        scores += bias
    return torch.softmax(scores, dim=-1)


class _MixtureAttention(torch.autograd.Function):
    """Chunked forward; backward that recomputes each chunk's maps."""

    @staticmethod
    def forward(ctx, query, key, value, weights, similarity, scale):
        ctx.save_for_backward(query, key, value, weights)
        ctx.similarity, ctx.scale = similarity, scale
        dtype = _accumulation_dtype(query, key, value, weights)
        with torch.autocast(value.device.type, enabled=False):
            q, k, bias = _score_operands(
                query.to(dtype), key.to(dtype), similarity, scale)
            v, pi = value.to(dtype), weights.to(dtype)[:, :, None, None]
            out = value.new_empty(
                (query.shape[0], query.shape[2], value.shape[2]))
            step = _chunk_length(query, key)
            for start in range(0, query.shape[2], step):
                rows = slice(start, start + step)
                maps = _parts(q[:, :, rows], k, bias)
                out[:, rows] = maps.mul_(pi).sum(dim=1) @ v
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, weights = ctx.saved_tensors
        similarity, scale = ctx.similarity, ctx.scale
        dtype = _accumulation_dtype(query, key, value, weights)
        with torch.autocast(value.device.type, enabled=False):
            q, k, bias = _score_operands(
                query.to(dtype), key.to(dtype), similarity, scale)
            v, pi = value.to(dtype), weights.to(dtype)[:, :, None, None]
            grad = grad.to(dtype)
            grad_q = torch.empty_like(q)
            grad_k = torch.zeros_like(k)
            grad_v = torch.zeros_like(v)
            grad_pi = torch.zeros_like(pi)
            # d scores / d (key norm), summed over queries; the distance alone
            # needs it.
            column = None if bias is None else torch.zeros_like(bias)
            step = _chunk_length(query, key)
            for start in range(0, query.shape[2], step):
                rows = slice(start, start + step)
                maps = _parts(q[:, :, rows], k, bias)
                g = grad[:, rows]
                grad_v += (maps * pi).sum(dim=1).transpose(1, 2) @ g
                d_maps = (g @ v.transpose(1, 2)).unsqueeze(1)
                inner = (maps * d_maps).sum(dim=-1, keepdim=True)
                grad_pi += inner.sum(dim=2, keepdim=True)
                d_scores = maps.mul_(d_maps - inner).mul_(pi)
                grad_q[:, :, rows] = d_scores @ k.transpose(-2, -1)
                grad_k += q[:, :, rows].transpose(-2, -1) @ d_scores
                if column is not None:
                    column += d_scores.sum(dim=2, keepdim=True)
            # k was scale * key^T ('dot') or 2 * scale * key^T. Moving all keys
            # by the same vector changes no score, so the mean that was taken
            # off above has no gradient.
            if column is None:
                grad_key = scale * grad_k.transpose(-2, -1)
            else:
                # bias = -scale ||k||^2, and k / (2 scale) is the centred key:
                # d bias / d key = -2 scale key = -k.
                grad_key = (2 * scale * grad_k - k * column).transpose(-2, -1)
        return (grad_q.to(query.dtype), grad_key.to(key.dtype),
                grad_v.to(value.dtype),
                grad_pi[:, :, 0, 0].to(weights.dtype), None, None)
