"""Mixture-of-softmaxes attention to a window, without unfolding the map.

Feature Pyramid Transformer, Sec. 3.3, the locality-constrained form:
https://arxiv.org/abs/2007.09451. How windows become matrix products is told
in :mod:`fpt_plugin.functional.windows`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from . import reference
from .attention import (
    score_gradient,
    score_operands,
    softmax_,
    softmax_backward_,
)
from .checks import (
    accumulation_dtype,
    check_floating,
    check_ranks,
    check_similarity,
    no_autocast,
    shapes_of,
)
from .operators import Operator
from .paths import choose_local_path
from .tiles import Tile
from .windows import (
    Band,
    Grouping,
    Strips,
    band,
    window_blocks,
    window_views,
)

PADS = ('zero', 'mask')


def local_mixture_attention(query: Tensor,
                            key: Tensor,
                            value: Tensor,
                            weights: Tensor,
                            *,
                            window: int,
                            similarity: str = 'neg_euclid',
                            pad: str = 'zero',
                            scale: float | None = None,
                            path: str | None = None) -> Tensor:
    r"""Mixture of softmaxes over a square window of keys, exact.

    The window of a query lies around the coarse cell that contains the
    query's own centre, row floor((2i + 1) h / (2H)) and columns likewise; for
    maps of equal size that is the query's own place.

    Args:
        query: (B, N, d, H, W), of each of the N mixture parts.
        key: (B, N, d, h, w).
        value: (B, C, h, w), shared by all parts.
        weights: (B, N), the share of each part.
        window: Side of the window, odd.
        similarity: ``'dot'`` for q . k or ``'neg_euclid'`` for -||q - k||^2.
        pad: ``'zero'``: keys and values outside the map are zero and take
            part in the softmax, as in the paper; ``'mask'``: they are left
            out.
        scale: Factor of the similarity; ``None`` is 1 / sqrt(d).
        path: ``'chunked'`` or ``'eager'`` (windows unfolded, plain
            operators); None: see
            :mod:`fpt_plugin.functional.paths`.

    Returns:
        (B, C, H, W) in the dtype of ``value``. Scores and sums are kept in
        float32 (float64 for float64 inputs), also under autocast.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes do not fit together, ``window`` is even or not
            positive, or ``similarity``, ``pad`` or ``path`` is unknown.
    """
    _check(query, key, value, weights, window, similarity, pad)
    scale = int(query.shape[2])**-0.5 if scale is None else float(scale)
    compute = {
        'chunked': _chunked,
        'eager': _eager
    }[choose_local_path(path)]
    return compute(query, key, value, weights, window, similarity, pad, scale)


def check_window(window: int) -> int:
    """Require an odd whole number.

    Raises:
        TypeError: ``window`` is not an int.
        ValueError: ``window`` is even or not positive.
    """
    if not isinstance(window, int) or isinstance(window, bool):
        raise TypeError(f'window must be an int, got {window!r}')
    if window < 1 or window % 2 == 0:
        raise ValueError('window must be odd and positive, because it lies '
                         f'around a centre pixel, got {window}')
    return window


def check_pad(pad: str) -> str:
    """Require a known treatment of the border.

    Raises:
        ValueError: ``pad`` is neither of the two.
    """
    if pad not in PADS:
        raise ValueError(f'pad must be one of {PADS}, got {pad!r}')
    return pad


def _check(query, key, value, weights, window, similarity, pad) -> None:
    tensors = dict(query=query, key=key, value=value, weights=weights)
    check_floating(tensors)
    check_window(window)
    check_similarity(similarity)
    check_pad(pad)
    check_ranks(tensors, (5, 5, 4, 2))
    if key.shape[:3] != query.shape[:3]:
        raise ValueError('query (B, N, d, H, W) and key (B, N, d, h, w) must '
                         f'agree in B, N and d, got {shapes_of(tensors)}')
    if (value.shape[0], *value.shape[2:]) != (key.shape[0], *key.shape[3:]):
        raise ValueError('value must be (B, C, h, w) with the B, h and w of '
                         f'key, got {shapes_of(tensors)}')
    if weights.shape != query.shape[:2]:
        raise ValueError('weights must be (B, N) with the B and N of query, '
                         f'got {shapes_of(tensors)}')
    if 0 in (*query.shape[1:], *key.shape[1:]):
        raise ValueError(f'N, d, H, W, h and w must not be 0, got {shapes_of(tensors)}')


def _eager(query, key, value, weights, window, similarity, pad, scale):
    """The same numbers by plain operators, windows unfolded."""
    dtype = accumulation_dtype(query, key, value, weights)
    with no_autocast(value.device):
        out = reference.local_mixture_attention(
            query.to(dtype),
            key.to(dtype),
            value.to(dtype),
            weights.to(dtype),
            window=window,
            similarity=similarity,
            pad=pad,
            scale=scale)
    return out.to(value.dtype)


class _Call:
    """The operands of one call, channels last; width is that of the strips.

    Attributes:
        query: (B, N, h, width * Q, d).
        key: (B, N, h + w - 1, width + w - 1, d).
        bias: Of the keys, (B, N, h + w - 1, width + w - 1), or None.
        value: (B, h + w - 1, width + w - 1, C).
        shares: Of the parts, (B, N).
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor,
                 weights: Tensor, window: int, similarity: str, pad: str,
                 scale: float) -> None:
        dtype = accumulation_dtype(query, key, value, weights)
        self.window, self.coarse = window, tuple(key.shape[-2:])
        self.grouping = Grouping(query.shape[-2:], self.coarse)
        self.strips = Strips(self.coarse, window, self.grouping.size)
        self.fill = self.strips.width - self.coarse[1]
        key = key.to(dtype).movedim(2, -1)
        self.query, self.key, self.bias = score_operands(
            self.gather(query.to(dtype)), self._frame(key),
            key.mean(dim=(2, 3), keepdim=True), similarity, scale)
        if pad == 'mask':
            self._mask()
        self.value = self._frame(value.to(dtype).movedim(1, -1))
        self.shares = weights.to(dtype)
        self.banded = Band()

    def gather(self, x: Tensor) -> Tensor:
        """(..., D, H, W) to (..., h, width * Q, D)."""
        x = self.grouping.gather(x)
        fill = self.fill * self.grouping.size
        return F.pad(x, (0, 0, 0, fill)) if fill else x

    def scatter(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`gather`."""
        columns = self.coarse[1] * self.grouping.size
        return self.grouping.scatter(x[..., :columns, :])

    def _frame(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Surround maps (..., h, w, D) with what windows see outside."""
        pad = self.window // 2
        return F.pad(x, (0, 0, pad, pad + self.fill, pad, pad), value=fill)

    def crop(self, x: Tensor) -> Tensor:
        """The inverse of the frame, (..., D, h, w)."""
        pad, (height, width) = self.window // 2, self.coarse
        x = x[..., pad:pad + height, pad:pad + width, :]
        return x.movedim(-1, -3)

    def _mask(self) -> None:
        """Give the keys outside the map a bias that no softmax sees."""
        inside = self.key.new_zeros(*self.coarse, 1)
        # Finite, because the windows of ignored queries see nothing else.
        least = torch.finfo(inside.dtype).min / 4
        outside = self._frame(inside, fill=least)[..., 0]
        self.bias = outside.expand(self.key.shape[:-1]) \
            if self.bias is None else self.bias + outside

    def tiles(self) -> Iterator[Tile]:
        """Images, strips and rows of the products."""
        return self.strips.tiles(len(self.query), self.query.device)

    def entries(self, query: Tensor, tile: Tensor) -> Tensor:
        """Products of queries with the pixels of their windows.

        Args:
            query: (R, T * Q, D).
            tile: (R + w - 1, C, D), contiguous.

        Returns:
            (R, T, Q, w, w), a view.
        """
        blocks = window_blocks(tile, self.window)
        return band(query @ blocks.transpose(1, 2), self.grouping.size,
                    self.window)

    def maps(self, query: Tensor, key: Tensor, part: int,
             tile: Tile) -> Tensor:
        """Softmax over each window: (R, T, Q, w * w)."""
        scores = self.entries(query, key)
        if self.bias is None:
            scores = scores.contiguous()
        else:
            bias = self.strips.keys(self.bias[:, part, ..., None], tile)
            scores = scores + window_views(bias[..., 0], self.window)
        return softmax_(scores.flatten(-2))

    def operands(self, part: int, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (R, T * Q, d), keys (R + w - 1, C, d), maps of a part."""
        query = self.strips.of_queries(self.query[:, part], tile)
        key = self.strips.keys(self.key[:, part], tile)
        return query, key, self.maps(query, key, part, tile)

    def matrix(self, entries: Tensor) -> Tensor:
        """Entries (R, T, Q, w * w) as a product's (R, T * Q, w * C)."""
        return self.banded(
            entries.unflatten(-1, (self.window, self.window)),
            self.strips.seen)


def _forward(query, key, value, weights, *options):
    """Tile by tile."""
    with no_autocast(value.device):
        x = _Call(query, key, value, weights, *options)
        cut = x.strips
        out = x.value.new_empty(query.shape[0], *x.query.shape[2:4],
                                value.shape[1])
        for tile in x.tiles():
            mixed = 0
            for part, shares in enumerate(x.shares.unbind(1)):
                *_, maps = x.operands(part, tile)
                mixed = mixed + cut.of_images(shares, tile) * maps
            blocks = window_blocks(cut.keys(x.value, tile), x.window)
            cut.to_queries(out, tile, x.matrix(mixed) @ blocks)
        return x.scatter(out).to(value.dtype)


def _backward(grad, query, key, value, weights, *options):
    """Recompute each tile's maps."""
    _, similarity, _, scale = options
    with no_autocast(value.device):
        x = _Call(query, key, value, weights, *options)
        cut = x.strips
        grad = x.gather(grad.to(x.value.dtype))
        grad_q, grad_k, grad_v, grad_pi = map(
            torch.zeros_like, (x.query, x.key, x.value, x.shares))
        grad_bias = None if x.bias is None else x.bias.new_zeros(
            x.bias.shape)
        for tile in x.tiles():
            g = cut.of_queries(grad, tile)
            d_maps = x.entries(g, cut.keys(x.value, tile)).flatten(-2)
            mixed = 0
            for part, shares in enumerate(x.shares.unbind(1)):
                q, k, maps = x.operands(part, tile)
                mixed = mixed + cut.of_images(shares, tile) * maps
                inner = torch.linalg.vecdot(
                    maps.flatten(1), d_maps.flatten(1))
                grad_pi[tile.images, part] += cut.to_images(inner, tile)
                # The part's share is applied to the results below.
                d_scores = x.matrix(softmax_backward_(d_maps, maps))
                cut.to_queries(grad_q[:, part], tile,
                               d_scores @ window_blocks(k, x.window))
                d_scores = d_scores.transpose(1, 2)
                cut.add_to_keys(grad_k[:, part], tile, d_scores @ q)
                if grad_bias is not None:
                    cut.add_to_keys(grad_bias[:, part, ..., None], tile,
                                    d_scores.sum(-1, keepdim=True))
            cut.add_to_keys(grad_v, tile,
                            x.matrix(mixed).transpose(1, 2) @ g)
        shares = x.shares[:, :, None, None]
        grad_q *= shares[..., None]
        grad_k *= shares[..., None]
        if grad_bias is not None:
            grad_bias *= shares
        if similarity == 'dot':
            grad_bias = None  # the border's mask, no function of the keys
        grad_k = score_gradient(x.key, grad_k, grad_bias, scale)
    return (x.scatter(grad_q).to(query.dtype), x.crop(grad_k).to(key.dtype),
            x.crop(grad_v).to(value.dtype), grad_pi.to(weights.dtype))


def _empty(query, key, value, weights, *options):
    """(B, C, H, W)."""
    return value.new_empty(*value.shape[:2], *query.shape[3:])


_chunked = Operator('local_mixture_attention',
                    dict(query=5, key=5, value=4, weights=2),
                    'int window, str similarity, str pad, float scale',
                    _forward, _backward, _eager, _empty)
