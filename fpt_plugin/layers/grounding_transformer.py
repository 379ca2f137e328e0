"""Grounding Transformer: a fine level attends to a coarser one.

Feature Pyramid Transformer, Sec. 3.3: https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor

from ..functional.deprecation import renamed_argument
from ..openmmlab.registry import register
from .checks import check_map, check_positive_int, check_same_batch
from .mixture import MixtureTransformer


@register(MODELS)
class GroundingTransformer(MixtureTransformer):
    """Grounding Transformer (GT), top-down.

    Each pixel of the fine, lower level Xf attends to all pixels of the coarse, higher
    level Xc: q comes from Xf, k and v from Xc. The similarity F_sim is the negative
    squared Euclidean distance -||q_i - k_j||^2, which the paper prefers to the dot
    product between levels of different semantics, in a mixture of four softmaxes
    (FPT, Eq. 2 and 3). Attention includes batch padding, so outputs depend on the
    padded size.

    Args:
        in_channels: Channels C of both maps.
        embed_channels: Channels E of q, k, v and of the output; None: C.
        num_mixtures: Parts N of the mixture.
        key_stride: Stride of the average pooling of the coarse map before keys and
            values; 1 is exact.
        scale: Factor of the distance; None is 1 / sqrt(E / N); the paper has 1.0.
            Unscaled distances of wide parts make the softmax almost one-hot at
            initialisation.
        init_cfg: mmengine's initialisation, applied after the layer's own.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or ``embed_channels`` is not
            a multiple of ``num_mixtures``.

    Example:
        >>> import torch
        >>> gt = GroundingTransformer(64, embed_channels=32)
        >>> gt(torch.rand(1, 64, 50, 84), torch.rand(1, 64, 25, 42)).shape
        torch.Size([1, 32, 50, 84])
    """

    similarity = 'neg_euclid'

    def __init__(self,
                 in_channels: int,
                 embed_channels: int | None = None,
                 num_mixtures: int = 4,
                 key_stride: int = 1,
                 scale: float | None = None,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(in_channels, embed_channels, num_mixtures, key_stride,
                         scale, init_cfg)

    def forward(self,
                fine: Tensor,
                coarse: Tensor,
                key_stride: int | None = None) -> Tensor:
        """Attend from the fine map to the coarse one.

        Args:
            fine: Xf, (B, C, Hf, Wf).
            coarse: Xc, (B, C, Hc, Wc).
            key_stride: Replaces the layer's own for this call.

        Returns:
            (B, E, Hf, Wf).

        Raises:
            TypeError: A map is not a floating point tensor.
            ValueError: A map is not (B, C, H, W), or the batch sizes differ.
        """
        check_map('fine', fine, self.in_channels, self.query.weight)
        check_map('coarse', coarse, self.in_channels, self.query.weight)
        check_same_batch(fine, coarse)
        if key_stride is None:
            key_stride = self.key_stride
        return self.attend(fine, coarse,
                           check_positive_int('key_stride', key_stride))

    @renamed_argument('places', 'pixels')
    def attention_at(self,
                     pixels: Tensor,
                     fine: Tensor,
                     coarse: Tensor,
                     key_stride: int | None = None) -> Tensor:
        """Compute the attention maps of some pixels: the weights of the values.

        Args:
            pixels: (P, 2), row and column of each pixel in ``fine``.
            fine: As in the forward pass.
            coarse: As in the forward pass.
            key_stride: As in the forward pass.

        Returns:
            (B, P, h, w) in float64, on the grid of the pooled keys.
        """
        return self.attend_at(pixels, fine, coarse, key_stride)
