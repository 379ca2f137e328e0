"""Mixture-of-softmaxes attention to a window, without unfolding the map.

Feature Pyramid Transformer, Sec. 3.3, the locality-constrained form:
https://arxiv.org/abs/2007.09451. :mod:`fpt_plugin.functional.windows` explains how
windows become matrix products.

Shapes: B images, N mixture parts, d channels of a part, C channels of the values, D
any channels; H x W queries, h x w keys, windows of w x w keys (w is also the width of
the keys' map). Q queries share a window. A strip has T columns, its windows reach
S = T + w - 1 columns, and the products of a tile have R rows.
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
from .deprecation import renamed_argument
from .operators import Operator
from .paths import choose_local_path
from .tiles import Tile
from .windows import (
    BandedMatrices,
    QueryGroups,
    Strips,
    band_view,
    window_blocks,
    window_views,
)

PADS = ('zero', 'mask')


@renamed_argument('weights', 'mixture_weights')
def local_mixture_attention(query: Tensor,
                            key: Tensor,
                            value: Tensor,
                            mixture_weights: Tensor,
                            *,
                            window: int,
                            similarity: str = 'neg_euclid',
                            pad: str = 'zero',
                            scale: float | None = None,
                            path: str | None = None) -> Tensor:
    r"""Compute a mixture of softmaxes over a square window of keys, exactly.

    The window of a query is centred on the coarse pixel that contains the query's
    centre: row floor((2i + 1) h / (2H)) for a query in row i, and the same for
    columns. In maps of equal size that is the query's own pixel.

    Args:
        query: (B, N, d, H, W), the queries of each of the N mixture parts.
        key: (B, N, d, h, w).
        value: (B, C, h, w), shared by all parts.
        mixture_weights: (B, N), the weight of each part.
        window: Side of the window, odd.
        similarity: ``'dot'`` for q . k or ``'neg_euclid'`` for -||q - k||^2.
        pad: ``'zero'``: keys and values outside the map are zero and are part
            of the softmax, as in the paper; ``'mask'``: they are left out.
        scale: Factor of the similarity; ``None`` is 1 / sqrt(d).
        path: ``'chunked'`` or ``'eager'`` (windows unfolded, plain
            operators); None: see
            :mod:`fpt_plugin.functional.paths`.

    Returns:
        (B, C, H, W) in the dtype of ``value``. Scores and sums are computed in
        float32 (float64 for float64 inputs), also under autocast.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes do not match, ``window`` is even or not positive, or
            ``similarity``, ``pad`` or ``path`` is unknown.
    """
    _check(query, key, value, mixture_weights, window, similarity, pad)
    scale = int(query.shape[2])**-0.5 if scale is None else float(scale)
    compute = {
        'chunked': _chunked,
        'eager': _eager
    }[choose_local_path(path)]
    return compute(query, key, value, mixture_weights, window, similarity, pad,
                   scale)


def check_window(window: int) -> int:
    """Require an odd positive integer.

    Raises:
        TypeError: ``window`` is not an int.
        ValueError: ``window`` is even or not positive.
    """
    if not isinstance(window, int) or isinstance(window, bool):
        raise TypeError(f'window must be an int, got {window!r}')
    if window < 1 or window % 2 == 0:
        raise ValueError('window must be odd and positive, because it has a '
                         f'centre pixel, got {window}')
    return window


def check_pad(pad: str) -> str:
    """Require a known way of padding.

    Raises:
        ValueError: ``pad`` is unknown.
    """
    if pad not in PADS:
        raise ValueError(f'pad must be one of {PADS}, got {pad!r}')
    return pad


def _check(query, key, value, mixture_weights, window, similarity, pad) -> None:
    tensors = dict(query=query, key=key, value=value,
                   mixture_weights=mixture_weights)
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
    if mixture_weights.shape != query.shape[:2]:
        raise ValueError('mixture_weights must be (B, N) with the B and N of query, '
                         f'got {shapes_of(tensors)}')
    if 0 in (*query.shape[1:], *key.shape[1:]):
        raise ValueError(f'N, d, H, W, h and w must not be 0, got {shapes_of(tensors)}')


def _eager(query, key, value, mixture_weights, window, similarity, pad, scale):
    """Compute the same with plain operators and unfolded windows."""
    dtype = accumulation_dtype(query, key, value, mixture_weights)
    with no_autocast(value.device):
        out = reference.local_mixture_attention(
            query.to(dtype),
            key.to(dtype),
            value.to(dtype),
            mixture_weights.to(dtype),
            window=window,
            similarity=similarity,
            pad=pad,
            scale=scale)
    return out.to(value.dtype)


class _Operands:
    """The inputs of one call, prepared for its matrix products: channels last.

    ``width`` is that of all strips together, w or a few more.

    Attributes:
        query: (B, N, h, width * Q, d).
        key: (B, N, h + w - 1, width + w - 1, d), scaled.
        bias: Bias of the keys, (B, N, h + w - 1, width + w - 1), or None.
        value: (B, h + w - 1, width + w - 1, C).
        mixture_weights: (B, N).
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor,
                 mixture_weights: Tensor, window: int, similarity: str, pad: str,
                 scale: float) -> None:
        dtype = accumulation_dtype(query, key, value, mixture_weights)
        self.window, self.coarse = window, tuple(key.shape[-2:])
        self.groups = QueryGroups(query.shape[-2:], self.coarse)
        self.strips = Strips(self.coarse, window, self.groups.size)
        self.fill = self.strips.width - self.coarse[1]
        key = key.to(dtype).movedim(2, -1)  # (B, N, h, w, d)
        self.query, self.key, self.bias = score_operands(
            self.gather(query.to(dtype)), self._pad(key),
            key.mean(dim=(2, 3), keepdim=True), similarity, scale)
        if pad == 'mask':
            self._mask_padding()
        self.value = self._pad(value.to(dtype).movedim(1, -1))
        self.mixture_weights = mixture_weights.to(dtype)
        self.banded = BandedMatrices()

    def gather(self, x: Tensor) -> Tensor:
        """Sort queries by coarse pixel: (..., D, H, W) to (..., h, width * Q, D)."""
        x = self.groups.gather(x)
        fill = self.fill * self.groups.size
        return F.pad(x, (0, 0, 0, fill)) if fill else x

    def scatter(self, x: Tensor) -> Tensor:
        """Invert :meth:`gather`."""
        columns = self.coarse[1] * self.groups.size
        return self.groups.scatter(x[..., :columns, :])

    def _pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Pad a map by the margin that windows reach.

        Args:
            x: (..., h, w, D).
            value: The value outside the map.

        Returns:
            (..., h + w - 1, width + w - 1, D).
        """
        margin = self.window // 2
        return F.pad(x, (0, 0, margin, margin + self.fill, margin, margin),
                     value=value)

    def crop(self, x: Tensor) -> Tensor:
        """Invert the padding: (..., h + w - 1, width + w - 1, D) to (..., D, h, w)."""
        margin, (height, width) = self.window // 2, self.coarse
        x = x[..., margin:margin + height, margin:margin + width, :]
        return x.movedim(-1, -3)

    def _mask_padding(self) -> None:
        """Add a very low bias to the keys outside the map."""
        inside = self.key.new_zeros(*self.coarse, 1)  # (h, w, 1)
        # Not -inf: the windows of ignored queries contain no other keys, and their
        # softmax must not be NaN.
        lowest = torch.finfo(inside.dtype).min / 4
        outside = self._pad(inside, value=lowest)[..., 0]  # (h + w - 1, width + w - 1)
        self.bias = outside.expand(self.key.shape[:-1]) \
            if self.bias is None else self.bias + outside

    def tiles(self) -> Iterator[Tile]:
        """Iterate over images, strips and rows that are computed together."""
        return self.strips.tiles(len(self.query), self.query.device)

    def window_products(self, query: Tensor, tile: Tensor) -> Tensor:
        """Multiply queries by the pixels of their windows.

        Args:
            query: (R, T * Q, D).
            tile: (R + w - 1, S, D), contiguous.

        Returns:
            (R, T, Q, w, w), a view.
        """
        blocks = window_blocks(tile, self.window)  # (R, w * S, D)
        # (R, T * Q, w * S), of which the windows are a band
        return band_view(query @ blocks.transpose(1, 2), self.groups.size, self.window)

    def maps(self, query: Tensor, key: Tensor, part: int,
             tile: Tile) -> Tensor:
        """Compute the softmax over each window: (R, T, Q, w * w)."""
        scores = self.window_products(query, key)  # (R, T, Q, w, w)
        if self.bias is None:
            scores = scores.contiguous()
        else:
            bias = self.strips.take_keys(self.bias[:, part, ..., None], tile)
            # bias (R + w - 1, S) to (R, T, 1, w, w)
            scores = scores + window_views(bias[..., 0], self.window)
        return softmax_(scores.flatten(-2))

    def part(self, part: int, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """Take queries and keys of a mixture part, and compute its maps.

        Returns:
            (R, T * Q, d), (R + w - 1, S, d) and (R, T, Q, w * w).
        """
        query = self.strips.take_queries(self.query[:, part], tile)
        key = self.strips.take_keys(self.key[:, part], tile)
        return query, key, self.maps(query, key, part, tile)

    def to_matrix(self, maps: Tensor) -> Tensor:
        """Write maps into a banded matrix: (R, T, Q, w * w) to (R, T * Q, w * S)."""
        return self.banded(
            maps.unflatten(-1, (self.window, self.window)),
            self.strips.reached)


def _forward(query, key, value, mixture_weights, *options):
    """Compute the output tile by tile: (B, C, H, W)."""
    with no_autocast(value.device):
        x = _Operands(query, key, value, mixture_weights, *options)
        strips = x.strips
        out = x.value.new_empty(query.shape[0], *x.query.shape[2:4],
                                value.shape[1])  # (B, h, width * Q, C)
        for tile in x.tiles():
            mixed = 0
            for part, weights in enumerate(x.mixture_weights.unbind(1)):
                *_, maps = x.part(part, tile)  # (R, T, Q, w * w)
                mixed = mixed + strips.expand_to_rows(weights, tile) * maps
            # (R, w * S, C)
            blocks = window_blocks(strips.take_keys(x.value, tile), x.window)
            strips.put_queries(out, tile, x.to_matrix(mixed) @ blocks)  # (R, T * Q, C)
        return x.scatter(out).to(value.dtype)


def _backward(grad, query, key, value, mixture_weights, *options):
    """Compute the gradients; the maps of each tile are computed again."""
    _, similarity, _, scale = options
    with no_autocast(value.device):
        x = _Operands(query, key, value, mixture_weights, *options)
        strips = x.strips
        grad = x.gather(grad.to(x.value.dtype))  # (B, h, width * Q, C)
        grad_q, grad_k, grad_v, grad_w = map(
            torch.zeros_like, (x.query, x.key, x.value, x.mixture_weights))
        grad_bias = None if x.bias is None else x.bias.new_zeros(
            x.bias.shape)
        for tile in x.tiles():
            g = strips.take_queries(grad, tile)  # (R, T * Q, C)
            # (R, T, Q, w * w)
            d_mixed = x.window_products(g, strips.take_keys(x.value, tile)).flatten(-2)
            mixed = 0
            for part, weights in enumerate(x.mixture_weights.unbind(1)):
                q, k, maps = x.part(part, tile)
                mixed = mixed + strips.expand_to_rows(weights, tile) * maps
                dots = torch.linalg.vecdot(
                    maps.flatten(1), d_mixed.flatten(1))  # (R,)
                grad_w[tile.images, part] += strips.sum_by_image(dots, tile)
                # Without the part's weight, which multiplies the sums below.
                # (R, T * Q, w * S)
                d_scores = x.to_matrix(softmax_backward_(d_mixed, maps))
                strips.put_queries(grad_q[:, part], tile,
                                   d_scores @ window_blocks(k, x.window))
                d_scores = d_scores.transpose(1, 2)  # (R, w * S, T * Q)
                strips.add_to_keys(grad_k[:, part], tile, d_scores @ q)
                if grad_bias is not None:
                    strips.add_to_keys(grad_bias[:, part, ..., None], tile,
                                       d_scores.sum(-1, keepdim=True))
            # (R, w * S, T * Q) @ (R, T * Q, C)
            strips.add_to_keys(grad_v, tile,
                               x.to_matrix(mixed).transpose(1, 2) @ g)
        weights = x.mixture_weights[:, :, None, None]  # (B, N, 1, 1)
        grad_q *= weights[..., None]
        grad_k *= weights[..., None]
        if grad_bias is not None:
            grad_bias *= weights
        if similarity == 'dot':
            grad_bias = None  # the bias is only the mask, which is constant
        grad_k = score_gradient(x.key, grad_k, grad_bias, scale)
    return (x.scatter(grad_q).to(query.dtype), x.crop(grad_k).to(key.dtype),
            x.crop(grad_v).to(value.dtype), grad_w.to(mixture_weights.dtype))


def _empty(query, key, value, mixture_weights, *options):
    """Return an uninitialised output, (B, C, H, W)."""
    return value.new_empty(*value.shape[:2], *query.shape[3:])


_chunked = Operator('local_mixture_attention',
                    dict(query=5, key=5, value=4, mixture_weights=2),
                    'int window, str similarity, str pad, float scale',
                    _forward, _backward, _eager, _empty)
