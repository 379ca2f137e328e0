"""Mixture-of-softmaxes attention in bounded memory.

Feature Pyramid Transformer, Sec. 3.1 and 3.2: https://arxiv.org/abs/2007.09451

The Lq x Lk maps of all mixture parts never exist at once. Queries are taken in
chunks whose scores fit a fixed budget; within a chunk the maps of the parts
are summed first and multiplied with the values once, which is the same sum in
another order and N - 1 products cheaper. The backward pass recomputes the
scores chunk by chunk, so nothing of size Lq x Lk is ever saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from . import reference
from .budget import chunk_length, score_budget
from .checks import (
    accumulation_dtype,
    check_floating,
    check_ranks,
    check_similarity,
    no_autocast,
    shapes_of,
)
from .cpu_workarounds import product
from .operators import Operator, differentiable_again
from .paths import choose_mixture_path

# Keys of a block of the fused kernels, blocks that keep a GPU busy (two for each
# multiprocessor of an H100), and queries that make a block worth while. They
# follow from how the kernels work and were not tuned by a measurement.
KEY_BLOCK, BUSY_BLOCKS, SHORTEST_PIECE = 128, 264, 1024


def mixture_attention(query: Tensor,
                      key: Tensor,
                      value: Tensor,
                      weights: Tensor,
                      *,
                      similarity: str = 'dot',
                      scale: float | None = None,
                      path: str | None = None) -> Tensor:
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
        path: ``'chunked'``, ``'fused'`` (torch's fused attention, the parts
            as heads) or ``'eager'`` (all scores at once, plain operators);
            None: see :mod:`fpt_plugin.functional.paths`.

    Returns:
        (B, Lq, C) in the dtype of ``value``. Scores and sums are kept in
        float32 (float64 for float64 inputs), also under autocast. The fused
        path keeps the operands and the sum over the parts in the dtype of
        ``value``; torch's kernels keep scores and sums over keys in float32.

    Raises:
        TypeError: An argument is not a floating point tensor.
        ValueError: Shapes do not fit together, a dimension that must not be
            empty is, ``similarity`` or ``path`` is unknown, or ``path`` is
            ``'fused'`` where a distance would overflow in float16.
        RuntimeError: ``path`` is ``'fused'``, torch has no fused kernel for
            the operands, and their scores exceed the budget.
    """
    _check(query, key, value, weights, similarity)
    scale = int(query.shape[-1])**-0.5 if scale is None else float(scale)
    compute = {
        'chunked': _chunked,
        'fused': _fused,
        'eager': _eager
    }[choose_mixture_path(path, query, value, similarity)]
    return compute(query, key, value, weights, similarity, scale)


def _check(query: Tensor, key: Tensor, value: Tensor, weights: Tensor,
           similarity: str) -> None:
    tensors = dict(query=query, key=key, value=value, weights=weights)
    check_floating(tensors)
    check_similarity(similarity)
    check_ranks(tensors, (4, 4, 3, 2))
    batch, parts, _, depth = query.shape
    if (key.shape[0], key.shape[1], key.shape[3]) != (batch, parts, depth):
        raise ValueError('query (B, N, Lq, d) and key (B, N, Lk, d) must agree '
                         f'in B, N and d, got {shapes_of(tensors)}')
    if value.shape[:2] != (batch, key.shape[2]):
        raise ValueError('value must be (B, Lk, C) with the B and Lk of key, '
                         f'got {shapes_of(tensors)}')
    if weights.shape != (batch, parts):
        raise ValueError('weights must be (B, N) with the B and N of query, '
                         f'got {shapes_of(tensors)}')
    if min(parts, depth, key.shape[2]) == 0:
        raise ValueError(f'N, d and Lk must not be 0, got {shapes_of(tensors)}')


def _eager(query: Tensor, key: Tensor, value: Tensor, weights: Tensor,
           similarity: str, scale: float) -> Tensor:
    """The same numbers by plain operators, all scores at once."""
    dtype = accumulation_dtype(query, key, value, weights)
    query, key = query.to(dtype), key.to(dtype)
    with no_autocast(value.device):
        # As in score_operands. No result depends on it: it has no gradient.
        centre = key.detach().mean(dim=-2, keepdim=True)
        out = reference.mixture_attention(
            query if similarity == 'dot' else query - centre,
            key - centre,
            value.to(dtype),
            weights.to(dtype),
            similarity=similarity,
            scale=scale)
    return out.to(value.dtype)


def _fused(query: Tensor, key: Tensor, value: Tensor, weights: Tensor,
           similarity: str, scale: float) -> Tensor:
    """One call of torch's fused attention, in the dtype of ``value``."""
    if similarity == 'neg_euclid' and value.dtype == torch.float16:
        raise ValueError("path='fused' cannot hold squared norms in float16; "
                         "use bfloat16 or path='chunked', got value of "
                         f'{value.dtype} with neg_euclid')
    batch, parts, queries, _ = query.shape
    if min(queries, key.shape[2]) <= 1:
        # One pixel has strides that the backward pass of the kernels refuses.
        return _eager(query, key, value, weights, similarity, scale)
    pieces = _pieces(query, key)
    with no_autocast(value.device):
        query, key = _fused_operands(query, key, similarity, value.dtype)
        depth, width = _fused_widths(query, value)
        query = F.pad(query, (0, depth - query.shape[3], 0, -queries % pieces))
        query = query.unflatten(2, (pieces, -1)).flatten(1, 2)
        key = F.pad(key, (0, depth - key.shape[3]))
        key = key.repeat_interleave(pieces, dim=1)
        values = F.pad(value, (0, width - value.shape[2])).contiguous()
        values = values.unsqueeze(1).expand(-1, parts * pieces, -1, -1)
        # The kernels want the numbers of a pixel side by side.
        query, key = query.contiguous(), key.contiguous()
        # (B, N * pieces, l, depth), (..., Lk, depth), (..., Lk, width)
        bounded = batch * parts * queries * key.shape[2] <= score_budget(
            value.device)
        with nullcontext() if bounded else _without_scores():
            heads = F.scaled_dot_product_attention(
                query, key, values, scale=scale)
        heads = differentiable_again(heads, _plain_heads, (query, key, values),
                                     scale)
        heads = heads.unflatten(1, (parts, pieces)).flatten(2, 3)
        heads = heads[:, :, :queries, :value.shape[2]]  # (B, N, Lq, C)
        # Not a product: its gradient would be a few very long dot products.
        return (heads * weights.to(value.dtype)[:, :, None, None]).sum(dim=1)


def _plain_heads(query: Tensor, key: Tensor, value: Tensor,
                 scale: float) -> Tensor:
    """``scaled_dot_product_attention`` in plain operators."""
    dtype = accumulation_dtype(query, key, value)
    scores = scale * (query.to(dtype) @ key.to(dtype).transpose(-2, -1))
    return (scores.softmax(dim=-1) @ value.to(dtype)).to(value.dtype)


def _fused_operands(query: Tensor, key: Tensor, similarity: str,
                    dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Query and key whose scaled product is the score, in one dtype.

    A distance becomes a product: q' = [q, 1, 1], k' = [2 k, -||k||^2], the
    norm in two columns so that bfloat16 keeps twice its digits.

    Returns:
        (B, N, Lq, d') and (B, N, Lk, d').
    """
    wide = accumulation_dtype(query, key)
    key = key.to(wide)
    with torch.no_grad():  # a centre changes no score
        mean = key.mean(dim=-2, keepdim=True)
        # Keys that lie around zero stay as they are: the centred ones would be
        # rounded once more.
        far = mean.abs() > 4 * key.std(-2, correction=0, keepdim=True)
        centre = mean.where(far, mean.new_zeros(()))
    key = key - centre
    if similarity == 'dot':
        return query.to(dtype), key.to(dtype)
    norm = -key.square().sum(-1, keepdim=True)
    high = norm.to(dtype)
    key = torch.cat([(2 * key).to(dtype), high, (norm - high).to(dtype)], dim=-1)
    query = (query.to(wide) - centre).to(dtype)
    return F.pad(query, (0, 2), value=1), key


def _fused_widths(query: Tensor, value: Tensor) -> tuple[int, int]:
    """Columns of queries and values that the fused kernels take."""
    depth, channels = query.shape[3], value.shape[2]
    if query.device.type == 'cpu':
        return (max(depth, channels), ) * 2
    return depth + -depth % 8, channels + -channels % 8


def _without_scores() -> AbstractContextManager:
    """Leave scaled_dot_product_attention the kernels that keep no scores."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # torch < 2.3
        return torch.backends.cuda.sdp_kernel(enable_math=False)
    return sdpa_kernel([
        getattr(SDPBackend, name) for name in
        ('FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION')
        if hasattr(SDPBackend, name)
    ])


def _pieces(query: Tensor, key: Tensor) -> int:
    """Pieces that the queries are cut into, as further heads.

    In the backward pass a fused kernel gives each block of keys to one
    multiprocessor, which reads all queries of a head. A few keys for very many
    queries would leave most of them idle.
    """
    batch, parts, queries, _ = query.shape
    if query.device.type == 'cpu' or batch == 0:
        return 1
    blocks = batch * parts * ceil(key.shape[2] / KEY_BLOCK)
    return max(1, min(ceil(BUSY_BLOCKS / blocks), queries // SHORTEST_PIECE))


def score_operands(query: Tensor, key: Tensor, centre: Tensor, similarity: str,
                   scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Factors of one product that gives the scores up to a softmax constant.

    The query norm of -||q - k||^2 is the same for all keys and cancels in the
    softmax: 2 q . k - ||k||^2 is left, a product plus a bias per key.

    Args:
        query: (..., Lq, d).
        key: (..., Lk, d).
        centre: What is taken off the keys, their mean: keys that lie around
            zero lose fewer digits to cancellation. When all keys move together
            (for the distance, queries too) scores change by a constant a
            query, which the softmax does not see.
        similarity: ``'dot'`` or ``'neg_euclid'``.
        scale: Factor of the similarity.

    Returns:
        query (..., Lq, d), scaled key (..., Lk, d) and the key bias
        (..., Lk) or None.
    """
    key = key - centre
    if similarity == 'dot':
        return query, scale * key, None
    return (query - centre, (2 * scale) * key,
            -scale * key.square().sum(dim=-1))


def score_gradient(key: Tensor, grad_key: Tensor, grad_bias: Tensor | None,
                   scale: float) -> Tensor:
    """The gradient of the keys, from those of :func:`score_operands`.

    Moving all keys by the same vector changes no score, so the centre that was
    taken off has no gradient.

    Args:
        key: The scaled key, (..., Lk, d).
        grad_key: Its gradient, changed in place.
        grad_bias: The gradient of the bias, (..., Lk), or None.
        scale: Factor of the similarity.
    """
    if grad_bias is None:
        return grad_key.mul_(scale)
    # bias = -scale ||k||^2 and key = 2 scale k: d bias / d k = -key.
    return grad_key.mul_(2 * scale).sub_(key * grad_bias.unsqueeze(-1))


def softmax_(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, in place."""
    return torch.softmax(scores, dim=-1, out=scores)


def softmax_backward_(grad: Tensor, maps: Tensor) -> Tensor:
    """The gradient of a softmax, maps * (grad - sum(maps * grad)), in place."""
    # What autograd calls for softmax; row by row, so that it may write where
    # it reads.
    return torch.ops.aten._softmax_backward_data.out(
        grad, maps, -1, maps.dtype, grad_input=maps)


class _Chunks:
    """The chunks of queries of one call, and a buffer for the mixed maps."""

    def __init__(self, query: Tensor, key: Tensor) -> None:
        self.batch, _, self.queries, _ = query.shape
        self.keys = key.shape[2]
        self.length = chunk_length(query.device, self.queries,
                                   self.batch * self.keys)
        self.memory = query.new_empty(self.batch * self.length * self.keys)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of a chunk, and the buffer (B, c, Lk)."""
        for start in range(0, self.queries, self.length):
            length = min(self.length, self.queries - start)
            shape = (self.batch, length, self.keys)
            yield (slice(start, start + length),
                   self.memory[:self.batch * length * self.keys].view(shape))


class _Operands:
    """The inputs of one call as its products want them, in one dtype."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor,
                 weights: Tensor, similarity: str, scale: float) -> None:
        dtype = accumulation_dtype(query, key, value, weights)
        key = key.to(dtype)
        self.query, self.key, self.bias = score_operands(
            query.to(dtype), key, key.mean(dim=-2, keepdim=True), similarity,
            scale)
        self.value = value.to(dtype)
        self.shares = weights.to(dtype)[:, :, None, None]
        self.num_parts = weights.shape[1]

    def maps(self, part: int, rows: slice) -> Tensor:
        """softmax_j of one part's scores, (B, c, Lk)."""
        bias = None if self.bias is None else self.bias[:, part]
        return softmax_(
            product(self.query[:, part, rows], self.key[:, part], bias))

    def mix_(self, mixed: Tensor, maps: Tensor, part: int) -> None:
        """Add a part's maps, by its share, to those of the parts before."""
        if part == 0:
            torch.mul(maps, self.shares[:, 0], out=mixed)
        else:
            mixed.addcmul_(maps, self.shares[:, part])


def _sum_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """(B, c, d), (B, c, Lk) to (B, Lk, d): outer products of the rows."""
    left = left.transpose(1, 2).contiguous()
    return product(left, right.transpose(1, 2)).transpose(1, 2)


def _inner(maps: Tensor, grad: Tensor) -> Tensor:
    """sum(maps * grad) of each image, (B, 1, 1); row by row for its digits."""
    return torch.linalg.vecdot(maps, grad).sum(dim=1)[:, None, None]


def _forward(query, key, value, weights, similarity, scale):
    """Chunk by chunk."""
    with no_autocast(value.device):
        x = _Operands(query, key, value, weights, similarity, scale)
        out = x.value.new_empty(query.shape[0], query.shape[2],
                                value.shape[2])
        value_t = x.value.transpose(1, 2).contiguous()
        for rows, mixed in _Chunks(x.query, x.key):
            for part in range(x.num_parts):
                x.mix_(mixed, x.maps(part, rows), part)
            out[:, rows] = product(mixed, value_t)
    return out.to(value.dtype)


def _backward(grad, query, key, value, weights, similarity, scale):
    """Recompute each chunk's maps."""
    with no_autocast(value.device):
        x = _Operands(query, key, value, weights, similarity, scale)
        grad = grad.to(x.value.dtype)
        grad_q, grad_k, grad_v, grad_pi = map(
            torch.zeros_like, (x.query, x.key, x.value, x.shares))
        grad_bias = None if x.bias is None else torch.zeros_like(x.bias)
        key_t = x.key.transpose(2, 3).contiguous()
        for rows, mixed in _Chunks(x.query, x.key):
            g = grad[:, rows]
            d_maps = product(g, x.value)
            for part in range(x.num_parts):
                maps = x.maps(part, rows)
                x.mix_(mixed, maps, part)
                grad_pi[:, part] += _inner(maps, d_maps)
                # The part's share is applied to the results below.
                d_scores = softmax_backward_(d_maps, maps)
                grad_q[:, part, rows] = product(d_scores, key_t[:, part])
                grad_k[:, part] += _sum_over_rows(
                    x.query[:, part, rows], d_scores)
                if grad_bias is not None:
                    grad_bias[:, part] += d_scores.sum(dim=1)
            grad_v += _sum_over_rows(g, mixed)
        grad_q *= x.shares
        grad_k *= x.shares
        if grad_bias is not None:
            grad_bias *= x.shares[..., 0]
        grad_k = score_gradient(x.key, grad_k, grad_bias, scale)
    return (grad_q.to(query.dtype), grad_k.to(key.dtype),
            grad_v.to(value.dtype),
            grad_pi[:, :, 0, 0].to(weights.dtype))


def _empty(query, key, value, weights, similarity, scale):
    return value.new_empty(query.shape[0], query.shape[2], value.shape[2])


_chunked = Operator('mixture_attention', dict(query=4, key=4, value=3, weights=2),
                    'str similarity, float scale', _forward, _backward, _eager,
                    _empty)
