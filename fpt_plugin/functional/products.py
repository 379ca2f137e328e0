"""Matrix products on the fastest library at hand.

torch multiplies float32 matrices on a CPU by MKL, which leaves half of an AMD
processor's vector width unused; oneDNN, which torch convolves with, does not.
Where torch has oneDNN's product, it is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What torch.compile makes of a linear layer on a CPU; not documented, so that
# nothing depends on it.
_ONEDNN = getattr(torch.ops.mkldnn, '_linear_pointwise', None) \
    if torch.backends.mkldnn.is_available() \
    and hasattr(torch.ops.mkldnn, '_linear_pointwise') else None


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A @ B^T + bias, image by image.

    Args:
        a: (B, M, K).
        b: (B, N, K), of any strides.
        bias: (B, N), or None.

    Returns:
        (B, M, N), contiguous.
    """
    if _onednn_takes(a, b):
        biases = [None] * len(b) if bias is None else bias
        images = [
            _ONEDNN(x.contiguous(), _dense(y), z, 'none', [], '')
            for x, y, z in zip(a, b, biases)
        ]
        return images[0].unsqueeze(0) if len(images) == 1 else torch.stack(
            images)
    if bias is None:
        return torch.bmm(a, b.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), a, b.transpose(1, 2))


def _dense(matrix: Tensor) -> Tensor:
    """A matrix or its transpose without gaps: oneDNN crawls over others."""
    if matrix.is_contiguous() or matrix.t().is_contiguous():
        return matrix
    return matrix.contiguous()


def _onednn_takes(a: Tensor, b: Tensor) -> bool:
    return (_ONEDNN is not None and torch.backends.mkldnn.enabled
            and a.device.type == 'cpu' and a.dtype == torch.float32
            and a.numel() > 0 and b.numel() > 0)
