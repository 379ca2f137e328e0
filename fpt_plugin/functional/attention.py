"""Mixture-of-softmaxes attention in bounded memory.

Feature Pyramid Transformer, Sec. 3.1 and 3.2: https://arxiv.org/abs/2007.09451

The Lq x Lk attention maps of the N mixture parts never exist as a whole. Queries are
processed in chunks whose scores fit a fixed budget. Within a chunk the maps of the
parts are summed first and then multiplied by the values once: the same result with
N - 1 fewer matrix products. The backward pass computes the scores of each chunk again,
so nothing of size Lq x Lk is saved.

Shapes: B images, N mixture parts, Lq queries, Lk keys, d channels of a part, C channels
of the values, c queries of a chunk.
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
from .cpu_workarounds import matmul_transposed
from .deprecation import renamed_argument
from .operators import Operator, with_second_derivatives
from .paths import choose_mixture_path

# Of the fused kernels on a GPU: keys of a block, blocks that keep the GPU busy (two for
# each multiprocessor of an H100), and the fewest queries worth a block. The numbers
# follow from the kernels' design and were not tuned by measurements.
KEYS_PER_BLOCK, BUSY_BLOCKS, MIN_PIECE_LENGTH = 128, 264, 1024


@renamed_argument('weights', 'mixture_weights')
def mixture_attention(query: Tensor,
                      key: Tensor,
                      value: Tensor,
                      mixture_weights: Tensor,
                      *,
                      similarity: str = 'dot',
                      scale: float | None = None,
                      path: str | None = None) -> Tensor:
    r"""Compute a mixture of softmaxes over all keys, exactly and in bounded memory.

    .. math::
        o_i = \sum_n \pi_n \sum_j \mathrm{softmax}_j(s^n_{ij}) v_j

    with :math:`s^n_{ij}` the scaled dot product or negative squared Euclidean
    distance of query i and key j in part n, and mixture weights :math:`\pi_n`
    (FPT, Eq. 2 and Sec. 3.2).

    Args:
        query: (B, N, Lq, d), the queries of each of the N mixture parts.
        key: (B, N, Lk, d).
        value: (B, Lk, C), shared by all parts.
        mixture_weights: (B, N), the weight of each part; in FPT a softmax over N.
        similarity: ``'dot'`` for q . k or ``'neg_euclid'`` for
            -||q - k||^2.
        scale: Factor of the similarity. ``None`` is 1 / sqrt(d); the paper has 1.0.
        path: ``'chunked'``, ``'fused'`` (torch's fused attention with the parts
            as heads) or ``'eager'`` (all scores at once, plain operators);
            None: see :mod:`fpt_plugin.functional.paths`.

    Returns:
        (B, Lq, C) in the dtype of ``value``. Scores and sums are computed in
        float32 (float64 for float64 inputs), also under autocast. On the fused
        path the operands and the sum over the parts have the dtype of ``value``;
        torch's kernels compute scores and sums over keys in float32.

    Raises:
        TypeError: An argument is not a floating point tensor.
        ValueError: Shapes do not match, N, d or Lk is 0, ``similarity`` or
            ``path`` is unknown, or ``path`` is ``'fused'`` with distances of
            float16 values, which would overflow.
        RuntimeError: ``path`` is ``'fused'``, torch has no fused kernel for
            the operands, and their scores exceed the budget.
    """
    _check(query, key, value, mixture_weights, similarity)
    scale = int(query.shape[-1])**-0.5 if scale is None else float(scale)
    compute = {
        'chunked': _chunked,
        'fused': _fused,
        'eager': _eager
    }[choose_mixture_path(path, query, value, similarity)]
    return compute(query, key, value, mixture_weights, similarity, scale)


def _check(query: Tensor, key: Tensor, value: Tensor, mixture_weights: Tensor,
           similarity: str) -> None:
    tensors = dict(query=query, key=key, value=value,
                   mixture_weights=mixture_weights)
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
    if mixture_weights.shape != (batch, parts):
        raise ValueError('mixture_weights must be (B, N) with the B and N of query, '
                         f'got {shapes_of(tensors)}')
    if min(parts, depth, key.shape[2]) == 0:
        raise ValueError(f'N, d and Lk must not be 0, got {shapes_of(tensors)}')


def _eager(query: Tensor, key: Tensor, value: Tensor, mixture_weights: Tensor,
           similarity: str, scale: float) -> Tensor:
    """Compute the same with plain operators and all scores at once."""
    dtype = accumulation_dtype(query, key, value, mixture_weights)
    query, key = query.to(dtype), key.to(dtype)
    with no_autocast(value.device):
        # See score_operands. The centre changes no result, so it needs no gradient.
        centre = key.detach().mean(dim=-2, keepdim=True)  # (B, N, 1, d)
        out = reference.mixture_attention(
            query if similarity == 'dot' else query - centre,
            key - centre,
            value.to(dtype),
            mixture_weights.to(dtype),
            similarity=similarity,
            scale=scale)
    return out.to(value.dtype)


def _fused(query: Tensor, key: Tensor, value: Tensor, mixture_weights: Tensor,
           similarity: str, scale: float) -> Tensor:
    """Call torch's fused attention once, in the dtype of ``value``.

    The heads are the N parts, each cut into P pieces of l queries.
    """
    if similarity == 'neg_euclid' and value.dtype == torch.float16:
        raise ValueError("path='fused' cannot hold squared norms in float16; "
                         "use bfloat16 or path='chunked', got value of "
                         f'{value.dtype} with neg_euclid')
    batch, parts, queries, _ = query.shape
    if min(queries, key.shape[2]) <= 1:
        # The strides of a single pixel make the kernels' backward pass fail.
        return _eager(query, key, value, mixture_weights, similarity, scale)
    pieces = _num_pieces(query, key)
    with no_autocast(value.device):
        query, key = _fused_operands(query, key, similarity, value.dtype)
        depth, width = _fused_widths(query, value)
        # (B, N, P * l, depth)
        query = F.pad(query, (0, depth - query.shape[3], 0, -queries % pieces))
        query = query.unflatten(2, (pieces, -1)).flatten(1, 2)  # (B, N * P, l, depth)
        key = F.pad(key, (0, depth - key.shape[3]))
        key = key.repeat_interleave(pieces, dim=1)  # (B, N * P, Lk, depth)
        values = F.pad(value, (0, width - value.shape[2])).contiguous()
        # (B, N * P, Lk, width)
        values = values.unsqueeze(1).expand(-1, parts * pieces, -1, -1)
        # The kernels need the last dimension contiguous.
        query, key = query.contiguous(), key.contiguous()
        bounded = batch * parts * queries * key.shape[2] <= score_budget(
            value.device)
        with nullcontext() if bounded else _without_scores():
            heads = F.scaled_dot_product_attention(
                query, key, values, scale=scale)  # (B, N * P, l, width)
        heads = with_second_derivatives(heads, _eager_heads, (query, key, values),
                                        scale)
        heads = heads.unflatten(1, (parts, pieces)).flatten(2, 3)
        heads = heads[:, :, :queries, :value.shape[2]]  # (B, N, Lq, C)
        # Not a matmul: its gradient would be a few very long dot products.
        mixture_weights = mixture_weights.to(value.dtype)[:, :, None, None]
        return (heads * mixture_weights).sum(dim=1)


def _eager_heads(query: Tensor, key: Tensor, value: Tensor,
                 scale: float) -> Tensor:
    """Compute ``scaled_dot_product_attention`` with plain operators."""
    dtype = accumulation_dtype(query, key, value)
    scores = scale * (query.to(dtype) @ key.to(dtype).transpose(-2, -1))
    return (scores.softmax(dim=-1) @ value.to(dtype)).to(value.dtype)


def _fused_operands(query: Tensor, key: Tensor, similarity: str,
                    dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Build queries and keys whose scaled dot product is the score.

    A distance becomes a dot product: q' = [q, 1, 1], k' = [2 k, -||k||^2]. The norm
    is split over two columns, its rounded value and the remainder, so that it has
    twice the digits of ``dtype``.

    Returns:
        (B, N, Lq, d') and (B, N, Lk, d') in ``dtype``.
    """
    wide = accumulation_dtype(query, key)
    key = key.to(wide)
    with torch.no_grad():  # subtracting a centre changes no softmax
        mean = key.mean(dim=-2, keepdim=True)  # (B, N, 1, d)
        # Keys around zero are not centred: that would round them once more.
        far = mean.abs() > 4 * key.std(-2, correction=0, keepdim=True)
        centre = mean.where(far, mean.new_zeros(()))
    key = key - centre
    if similarity == 'dot':
        return query.to(dtype), key.to(dtype)
    norm = -key.square().sum(-1, keepdim=True)  # (B, N, Lk, 1)
    high = norm.to(dtype)
    key = torch.cat([(2 * key).to(dtype), high, (norm - high).to(dtype)], dim=-1)
    query = (query.to(wide) - centre).to(dtype)
    return F.pad(query, (0, 2), value=1), key


def _fused_widths(query: Tensor, value: Tensor) -> tuple[int, int]:
    """Return the padded channels of queries and values for the fused kernels."""
    depth, channels = query.shape[3], value.shape[2]
    if query.device.type == 'cpu':
        return (max(depth, channels), ) * 2
    return depth + -depth % 8, channels + -channels % 8


def _without_scores() -> AbstractContextManager:
    """Allow only the kernels of scaled_dot_product_attention that keep no scores."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # torch < 2.3
        return torch.backends.cuda.sdp_kernel(enable_math=False)
    return sdpa_kernel([
        getattr(SDPBackend, name) for name in
        ('FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION')
        if hasattr(SDPBackend, name)
    ])


def _num_pieces(query: Tensor, key: Tensor) -> int:
    """Choose into how many pieces the queries are cut; pieces become heads.

    In the backward pass a fused kernel assigns each block of keys of a head to one
    multiprocessor. With few keys and many queries most multiprocessors would be idle.
    """
    batch, parts, queries, _ = query.shape
    if query.device.type == 'cpu' or batch == 0:
        return 1
    blocks = batch * parts * ceil(key.shape[2] / KEYS_PER_BLOCK)
    return max(1, min(ceil(BUSY_BLOCKS / blocks), queries // MIN_PIECE_LENGTH))


def score_operands(query: Tensor, key: Tensor, centre: Tensor, similarity: str,
                   scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Build operands of the scores: scores = query @ key^T + bias.

    The scores are equal to the similarity up to a constant for each query, which
    cancels in the softmax. Of -||q - k||^2 = 2 q . k - ||k||^2 - ||q||^2 the last
    term is such a constant, so that a dot product and a bias for each key are left.

    Args:
        query: (..., Lq, d).
        key: (..., Lk, d).
        centre: (..., 1, d), the mean of the keys. It is subtracted from the keys, and
            for distances from the queries: this changes scores only by a constant for
            each query, and keys around zero lose fewer digits to cancellation.
        similarity: ``'dot'`` or ``'neg_euclid'``.
        scale: Factor of the similarity.

    Returns:
        query (..., Lq, d), scaled key (..., Lk, d) and the key bias
        (..., Lk) or None.
    """
    key = key - centre
    if similarity == 'dot':
        return query, scale * key, None
    bias = -scale * key.square().sum(dim=-1)  # (..., Lk)
    return query - centre, (2 * scale) * key, bias


def score_gradient(key: Tensor, grad_key: Tensor, grad_bias: Tensor | None,
                   scale: float) -> Tensor:
    """Compute the keys' gradient from those of the :func:`score_operands`.

    The subtracted centre needs no gradient, because it changes no softmax.

    Args:
        key: The scaled key, (..., Lk, d).
        grad_key: Its gradient, (..., Lk, d), changed in place.
        grad_bias: The gradient of the bias, (..., Lk), or None.
        scale: Factor of the similarity.

    Returns:
        (..., Lk, d).
    """
    if grad_bias is None:
        return grad_key.mul_(scale)
    # bias = -scale ||k||^2 and key = 2 scale k: d bias / d k = -key.
    return grad_key.mul_(2 * scale).sub_(key * grad_bias.unsqueeze(-1))


def softmax_(scores: Tensor) -> Tensor:
    """Apply a softmax to the last dimension, in place."""
    return torch.softmax(scores, dim=-1, out=scores)


def softmax_backward_(grad: Tensor, maps: Tensor) -> Tensor:
    """Compute the gradient of a softmax: maps * (grad - sum(maps * grad)).

    Args:
        grad: The gradient of the maps.
        maps: The softmax over the last dimension; overwritten by the result.
    """
    # The operator that autograd calls for softmax. It works row by row, so its output
    # may be its input.
    return torch.ops.aten._softmax_backward_data.out(
        grad, maps, -1, maps.dtype, grad_input=maps)


class _Chunks:
    """The chunks of queries of one call, with a buffer for their mixed maps."""

    def __init__(self, query: Tensor, key: Tensor) -> None:
        self.batch, _, self.queries, _ = query.shape
        self.keys = key.shape[2]
        self.length = chunk_length(query.device, self.queries,
                                   self.batch * self.keys)
        self.memory = query.new_empty(self.batch * self.length * self.keys)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Iterate over the queries of each chunk and a buffer (B, c, Lk)."""
        for start in range(0, self.queries, self.length):
            length = min(self.length, self.queries - start)
            shape = (self.batch, length, self.keys)
            yield (slice(start, start + length),
                   self.memory[:self.batch * length * self.keys].view(shape))


class _Operands:
    """The inputs of one call, prepared for its matrix products, in one dtype.

    Attributes:
        query: (B, N, Lq, d).
        key: (B, N, Lk, d), scaled.
        bias: (B, N, Lk), or None.
        value: (B, Lk, C).
        mixture_weights: (B, N, 1, 1).
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor,
                 mixture_weights: Tensor, similarity: str, scale: float) -> None:
        dtype = accumulation_dtype(query, key, value, mixture_weights)
        key = key.to(dtype)
        self.query, self.key, self.bias = score_operands(
            query.to(dtype), key, key.mean(dim=-2, keepdim=True), similarity,
            scale)
        self.value = value.to(dtype)
        self.mixture_weights = mixture_weights.to(dtype)[:, :, None, None]
        self.num_parts = mixture_weights.shape[1]

    def maps(self, part: int, rows: slice) -> Tensor:
        """Compute the softmax over the keys of one part: (B, c, Lk)."""
        bias = None if self.bias is None else self.bias[:, part]
        return softmax_(
            matmul_transposed(self.query[:, part, rows], self.key[:, part], bias))

    def mix_(self, mixed: Tensor, maps: Tensor, part: int) -> None:
        """Add one part's weighted maps to ``mixed``, (B, c, Lk); part 0 comes first."""
        if part == 0:
            torch.mul(maps, self.mixture_weights[:, 0], out=mixed)
        else:
            mixed.addcmul_(maps, self.mixture_weights[:, part])


def _outer_products(left: Tensor, right: Tensor) -> Tensor:
    """Sum outer products over the queries: (B, c, d), (B, c, Lk) to (B, Lk, d)."""
    left = left.transpose(1, 2).contiguous()  # (B, d, c)
    return matmul_transposed(left, right.transpose(1, 2)).transpose(1, 2)


def _dot_of_images(maps: Tensor, grad: Tensor) -> Tensor:
    """Compute sum(maps * grad) of each image: (B, c, Lk) to (B, 1, 1).

    Rows are summed first, which keeps more digits than one long sum.
    """
    return torch.linalg.vecdot(maps, grad).sum(dim=1)[:, None, None]


def _forward(query, key, value, mixture_weights, similarity, scale):
    """Compute the output chunk by chunk: (B, Lq, C)."""
    with no_autocast(value.device):
        x = _Operands(query, key, value, mixture_weights, similarity, scale)
        out = x.value.new_empty(query.shape[0], query.shape[2],
                                value.shape[2])  # (B, Lq, C)
        value_t = x.value.transpose(1, 2).contiguous()  # (B, C, Lk)
        for rows, mixed in _Chunks(x.query, x.key):
            for part in range(x.num_parts):
                x.mix_(mixed, x.maps(part, rows), part)  # (B, c, Lk)
            out[:, rows] = matmul_transposed(mixed, value_t)  # (B, c, C)
    return out.to(value.dtype)


def _backward(grad, query, key, value, mixture_weights, similarity, scale):
    """Compute the gradients; the maps of each chunk are computed again."""
    with no_autocast(value.device):
        x = _Operands(query, key, value, mixture_weights, similarity, scale)
        grad = grad.to(x.value.dtype)
        grad_q, grad_k, grad_v, grad_w = map(
            torch.zeros_like, (x.query, x.key, x.value, x.mixture_weights))
        grad_bias = None if x.bias is None else torch.zeros_like(x.bias)
        key_t = x.key.transpose(2, 3).contiguous()  # (B, N, d, Lk)
        for rows, mixed in _Chunks(x.query, x.key):
            g = grad[:, rows]  # (B, c, C)
            d_mixed = matmul_transposed(g, x.value)  # (B, c, Lk)
            for part in range(x.num_parts):
                maps = x.maps(part, rows)  # (B, c, Lk)
                x.mix_(mixed, maps, part)
                grad_w[:, part] += _dot_of_images(maps, d_mixed)
                # Without the part's weight, which multiplies the sums below.
                d_scores = softmax_backward_(d_mixed, maps)  # (B, c, Lk)
                grad_q[:, part, rows] = matmul_transposed(d_scores, key_t[:, part])
                grad_k[:, part] += _outer_products(
                    x.query[:, part, rows], d_scores)  # (B, Lk, d)
                if grad_bias is not None:
                    grad_bias[:, part] += d_scores.sum(dim=1)  # (B, Lk)
            grad_v += _outer_products(g, mixed)  # (B, Lk, C)
        grad_q *= x.mixture_weights
        grad_k *= x.mixture_weights
        if grad_bias is not None:
            grad_bias *= x.mixture_weights[..., 0]
        grad_k = score_gradient(x.key, grad_k, grad_bias, scale)
    return (grad_q.to(query.dtype), grad_k.to(key.dtype),
            grad_v.to(value.dtype),
            grad_w[:, :, 0, 0].to(mixture_weights.dtype))


def _empty(query, key, value, mixture_weights, similarity, scale):
    """Return an uninitialised output, (B, Lq, C)."""
    return value.new_empty(query.shape[0], query.shape[2], value.shape[2])


_chunked = Operator('mixture_attention',
                    dict(query=4, key=4, value=3, mixture_weights=2),
                    'str similarity, float scale', _forward, _backward, _eager,
                    _empty)
