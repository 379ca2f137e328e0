"""A loss that pulls patches of one image together and those of others apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import accumulation_dtype


def patch_contrastive_loss(features: Tensor) -> Tensor:
    """Compute the contrastive loss of IPT (arXiv 2012.00364, Eq. 7 and 8).

    With d the cosine similarity and f_j^n patch n of image j, it is the mean over
    all j, n and m of -log(exp(d(f_j^n, f_j^m)) / sum_{k != j} exp(d(f_j^n, f_k^m))).

    Args:
        features: (B, N, C), N patches of B images.

    Returns:
        A scalar in float32 or wider; zero for a single image, because there is no
        other image to compare with.

    Raises:
        ValueError: ``features`` has another shape or is empty.
    """
    if features.dim() != 3 or 0 in features.shape:
        raise ValueError('features must be (B, N, C) and not empty, got '
                         f'{tuple(features.shape)}')
    x = F.normalize(features.to(accumulation_dtype(features)), dim=2)
    if len(x) == 1:
        return x.sum() * 0
    # d(f_j^n, f_k^m) at (j, n, k, m): (B, N, C), (B, N, C) to (B, N, B, N)
    similarity = torch.einsum('jnc,kmc->jnkm', x, x)
    same = torch.eye(len(x), dtype=torch.bool, device=x.device)  # (B, B)
    same = same[:, None, :, None]  # (B, 1, B, 1)
    # (B, N, N): log of the sum over the other images
    others = similarity.masked_fill(same, -torch.inf).logsumexp(dim=2)
    together = similarity.diagonal(dim1=0, dim2=2)  # (N, N, B)
    return others.mean() - together.mean()
