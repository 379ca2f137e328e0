"""The papers' equations as plain formulas: slow, simple and differentiable.

The tests compare the fast functions with these in float64, and the benchmarks use them
as a baseline. They keep all scores and lambdas in memory, so use them at small sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .deprecation import renamed_argument


def mixture_scores(query: Tensor,
                   key: Tensor,
                   *,
                   similarity: str = 'dot',
                   scale: float | None = None) -> Tensor:
    """Compute the similarity of each query with each key in each part.

    Args:
        query: (B, N, Lq, d).
        key: (B, N, Lk, d).
        similarity: ``'dot'`` for q . k or ``'neg_euclid'`` for -||q - k||^2
            (FPT, Sec. 3.2).
        scale: Factor of the similarity; ``None`` is 1 / sqrt(d).

    Returns:
        Scores (B, N, Lq, Lk) before the softmax.

    Raises:
        ValueError: ``similarity`` is unknown.
    """
    scale = query.shape[-1]**-0.5 if scale is None else scale
    dot = query @ key.transpose(-2, -1)  # (B, N, Lq, Lk)
    if similarity == 'dot':
        return scale * dot
    if similarity == 'neg_euclid':
        query_norm = query.square().sum(-1).unsqueeze(-1)  # (B, N, Lq, 1)
        key_norm = key.square().sum(-1).unsqueeze(-2)  # (B, N, 1, Lk)
        return -scale * (query_norm - 2 * dot + key_norm)
    raise ValueError("similarity must be 'dot' or 'neg_euclid', "
                     f'got {similarity!r}')


def mixture_map(query: Tensor,
                key: Tensor,
                mixture_weights: Tensor,
                *,
                similarity: str = 'dot',
                scale: float | None = None,
                mask: Tensor | None = None) -> Tensor:
    """Compute the attention map of a mixture (FPT, Eq. 2 without the values).

    Args:
        query: (B, N, Lq, d), the queries of each of the N mixture parts.
        key: (B, N, Lk, d).
        mixture_weights: (B, N), the weight of each part.
        similarity: See :func:`mixture_scores`.
        scale: See :func:`mixture_scores`.
        mask: Broadcastable to (B, N, Lq, Lk), True where a key is left out.

    Returns:
        (B, Lq, Lk), the weight of each key for each query. Rows sum to the sum of
        ``mixture_weights``.
    """
    scores = mixture_scores(query, key, similarity=similarity, scale=scale)
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    parts = torch.softmax(scores, dim=-1)  # (B, N, Lq, Lk)
    return (mixture_weights[:, :, None, None] * parts).sum(dim=1)


@renamed_argument('weights', 'mixture_weights')
def mixture_attention(query: Tensor,
                      key: Tensor,
                      value: Tensor,
                      mixture_weights: Tensor,
                      *,
                      similarity: str = 'dot',
                      scale: float | None = None) -> Tensor:
    r"""Compute a mixture of softmaxes over all keys (FPT, Eq. 2).

    .. math::
        o_i = \sum_n \pi_n \sum_j \mathrm{softmax}_j(s^n_{ij}) v_j

    Args:
        query: (B, N, Lq, d), the queries of each of the N mixture parts.
        key: (B, N, Lk, d).
        value: (B, Lk, C), shared by all parts.
        mixture_weights: (B, N), the weight of each part.
        similarity: See :func:`mixture_scores`.
        scale: See :func:`mixture_scores`.

    Returns:
        (B, Lq, C).
    """
    return mixture_map(
        query, key, mixture_weights, similarity=similarity, scale=scale) @ value


@renamed_argument('weights', 'mixture_weights')
def local_mixture_attention(query: Tensor,
                            key: Tensor,
                            value: Tensor,
                            mixture_weights: Tensor,
                            *,
                            window: int,
                            similarity: str = 'neg_euclid',
                            pad: str = 'zero',
                            scale: float | None = None) -> Tensor:
    """Compute a mixture of softmaxes over unfolded windows (FPT, Sec. 3.3).

    Args:
        query: (B, N, d, H, W).
        key: (B, N, d, h, w).
        value: (B, C, h, w).
        mixture_weights: (B, N).
        window: Side of the window, odd.
        similarity: See :func:`mixture_scores`.
        pad: ``'zero'``: keys and values outside the map are zero;
            ``'mask'``: they are left out.
        scale: See :func:`mixture_scores`.

    Returns:
        (B, C, H, W).
    """
    scale = query.shape[2]**-0.5 if scale is None else scale
    # (B, N * d, window^2, H, W)
    keys = _windows(key.flatten(1, 2), window, query.shape[-2:])
    # Not unflatten: the older ONNX exporter would make the sizes constants.
    keys = keys.reshape(*key.shape[:3], *keys.shape[2:])  # (B, N, d, window^2, H, W)
    values = _windows(value, window, query.shape[-2:])  # (B, C, window^2, H, W)
    # (B, N, window^2, H, W)
    scores = torch.einsum('bndhw,bndohw->bnohw', query, keys)
    if similarity == 'neg_euclid':
        query_norm = query.square().sum(2).unsqueeze(2)  # (B, N, 1, H, W)
        scores = 2 * scores - query_norm - keys.square().sum(2)
    elif similarity != 'dot':
        raise ValueError("similarity must be 'dot' or 'neg_euclid', "
                         f'got {similarity!r}')
    scores = scale * scores
    if pad == 'mask':
        inside = _windows(
            torch.ones_like(value[:, :1]), window, query.shape[-2:])
        scores = scores.masked_fill(inside == 0, -torch.inf)
    parts = torch.softmax(scores, dim=2)
    # (B, window^2, H, W)
    attention = (mixture_weights[:, :, None, None, None] * parts).sum(dim=1)
    return torch.einsum('bohw,bcohw->bchw', attention, values)


def window_attention(qkv: Tensor,
                     table: Tensor,
                     coords: Tensor,
                     *,
                     window: int,
                     shift: int = 0,
                     scale: float | None = None) -> Tensor:
    """Compute the window attention of a Swin Transformer for the visible tokens.

    Args:
        qkv: (B, N, 3, h, d), queries, keys and values of the visible tokens.
        table: ((2 * window - 1)^2, h), biases by relative position.
        coords: (N, 2), row and column of each token in the map.
        window: Side of a window.
        shift: Number of pixels that windows are moved up and left.
        scale: Factor of the products; None is 1 / sqrt(d).

    Returns:
        (B, N, h * d).
    """
    scale = qkv.shape[-1]**-0.5 if scale is None else scale
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, h, N, d) each
    windows = (coords + window - shift) // window  # (N, 2)
    same = (windows[:, None] == windows[None]).all(-1)  # (N, N)
    offsets = coords[:, None] - coords[None] + window - 1  # (N, N, 2)
    rows = offsets[..., 0] * (2 * window - 1) + offsets[..., 1]
    bias = table[rows.where(same, 0)].permute(2, 0, 1)  # (h, N, N)
    scores = scale * query @ key.transpose(-2, -1) + bias  # (B, h, N, N)
    weights = scores.masked_fill(~same, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def texture_transfer(query: Tensor, key: Tensor, values: list[Tensor],
                     patch: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    """Transfer the best matching patches by unfold and fold (TTSR, Eq. 3 to 6).

    Args:
        query: (B, C, h, w).
        key: (B, C, hk, wk).
        values: (B, C_i, s_i * hk, s_i * wk) for each scale.
        patch: Side of the patches.

    Returns:
        (B, C_i, s_i * h, s_i * w) for each scale, the mean of the transferred patches
        that cover a pixel; soft attention (B, 1, h, w); index of the match (B, h, w).
    """
    def patches(maps, scale=1):
        """Return (B, C * (scale * patch)^2, number of patches)."""
        return F.unfold(maps, scale * patch, padding=scale * (patch // 2),
                        stride=scale)

    size = query.shape[2:]
    relevance = torch.einsum(
        'bck,bcq->bkq', F.normalize(patches(key), dim=1),
        F.normalize(patches(query), dim=1))  # (B, hk * wk, h * w)
    soft, index = relevance.max(dim=1)  # (B, h * w)
    outs = []
    for value in values:
        scale = value.shape[2] // key.shape[2]
        parts = patches(value, scale)
        parts = parts.gather(2, index[:, None].expand(-1, parts.shape[1], -1))
        total, count = (
            F.fold(x, [scale * side for side in size], scale * patch,
                   padding=scale * (patch // 2), stride=scale)
            for x in (parts, torch.ones_like(parts)))
        outs.append(total / count)
    return outs, soft.view(-1, 1, *size), index.view(-1, *size)


def patch_contrastive_loss(features: Tensor) -> Tensor:
    """Compute the contrastive loss of IPT (Eq. 7 and 8) with loops.

    Args:
        features: (B, N, C), N patches of B images.

    Returns:
        The mean over all images j and patches n and m of
        -log(exp(d(f_j^n, f_j^m)) / sum_{k != j} exp(d(f_j^n, f_k^m))), with d the
        cosine similarity.
    """
    def similarity(j, n, k, m):
        return F.cosine_similarity(features[j, n], features[k, m], dim=0)

    images, patches, _ = features.shape
    losses = [
        torch.stack([similarity(j, n, k, m)
                     for k in range(images) if k != j]).logsumexp(dim=0)
        - similarity(j, n, j, m)
        for j in range(images) for n in range(patches) for m in range(patches)]
    return torch.stack(losses).mean()


def content_lambda(key: Tensor, value: Tensor) -> Tensor:
    """Sum values weighted by a softmax of the keys (LambdaNetworks, Eq. 1).

    Args:
        key: (B, k, u, n).
        value: (B, u, v, n).

    Returns:
        (B, k, v).
    """
    return torch.einsum('bkun,buvn->bkv', torch.softmax(key, dim=-1), value)


def position_lambda(query: Tensor, value: Tensor, embedding: Tensor) -> Tensor:
    """Compute position lambdas by conv2d, with value channels as a batch.

    Args:
        query: (B, h, k, H, W).
        value: (B, u, v, H, W).
        embedding: (k, u, rows, columns), both odd.

    Returns:
        (B, h, v, H, W).
    """
    padding = tuple(side // 2 for side in embedding.shape[2:])
    lambdas = F.conv2d(
        value.transpose(1, 2).flatten(0, 1), embedding, padding=padding)
    # (B * v, k, H, W) to (B, v, k, H, W)
    lambdas = lambdas.reshape(value.shape[0], value.shape[2],
                              *lambdas.shape[1:])
    return torch.einsum('bhkyx,bvkyx->bhvyx', query, lambdas)


def position_lambda_depthwise(query: Tensor, value: Tensor,
                              embedding: Tensor) -> Tensor:
    """Compute the same by a depthwise conv2d from v to v * k channels (u = 1)."""
    batch, _, channels = value.shape[:3]
    padding = tuple(side // 2 for side in embedding.shape[2:])
    lambdas = F.conv2d(
        value.flatten(1, 2),
        embedding.repeat(channels, 1, 1, 1),
        padding=padding,
        groups=channels)
    lambdas = lambdas.unflatten(1, (channels, -1))  # (B, v, k, H, W)
    return torch.einsum('bhkyx,bvkyx->bhvyx', query, lambdas)


def position_lambda_conv3d(query: Tensor,
                           value: Tensor,
                           embedding: Tensor,
                           channels_first: bool = False) -> Tensor:
    """Compute the same by a conv3d over (H, W, v) and a broadcast product.

    Args:
        query: (B, h, k, H, W).
        value: (B, u, v, H, W).
        embedding: (k, u, rows, columns), both odd.
        channels_first: Convolve over (v, H, W) instead.
    """
    padding = [side // 2 for side in embedding.shape[2:]]
    if channels_first:
        # (B, k, v, H, W)
        lambdas = F.conv3d(value, embedding.unsqueeze(2), padding=[0, *padding])
        return (query.unsqueeze(3) * lambdas.unsqueeze(1)).sum(dim=2)
    lambdas = F.conv3d(
        value.permute(0, 1, 3, 4, 2), embedding.unsqueeze(4),
        padding=[*padding, 0])  # (B, k, H, W, v)
    out = (query.unsqueeze(-1) * lambdas.unsqueeze(1)).sum(dim=2)  # (B, h, H, W, v)
    return out.permute(0, 1, 4, 2, 3)


def _windows(x: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Unfold the window of each query: (B, D, h, w) to (B, D, window^2, H, W)."""
    height, width = x.shape[-2:]
    windows = F.unfold(x, window, padding=window // 2)
    windows = windows.view(x.shape[0], x.shape[1], window**2, height, width)
    # As windows.centres: the coarse pixel that contains the centre of each fine one.
    # Computed by operators, so that an exported graph works at every size.
    rows, columns = ((2 * torch.arange(fine, device=x.device) + 1) * coarse //
                     (2 * fine) for fine, coarse in zip(size, (height, width)))
    return windows.index_select(-2, rows).index_select(-1, columns)
