"""Self-Transformer: attention within one level.

Feature Pyramid Transformer, Sec. 3.2: https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor

from ..functional.deprecation import renamed_argument
from ..openmmlab.registry import register
from .checks import check_map, check_positive_int
from .mixture import MixtureTransformer


@register(MODELS)
class SelfTransformer(MixtureTransformer):
    """Self-Transformer (ST): every pixel attends to all pixels of its own level.

    The similarity F_sim is the dot product q_i . k_j, in a mixture of two softmaxes
    (FPT, Eq. 2). Attention includes batch padding, so outputs depend on the padded
    size.

    Args:
        in_channels: Channels C of the map.
        embed_channels: Channels E of q, k, v and of the output; None: C.
        num_mixtures: Parts N of the mixture.
        key_stride: Stride of the average pooling of the map before keys and values;
            1 is exact.
        scale: Factor of the dot product; None is 1 / sqrt(E / N); the paper has 1.0.
        init_cfg: mmengine's initialisation, applied after the layer's own.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or ``embed_channels`` is not
            a multiple of ``num_mixtures``.

    Example:
        >>> import torch
        >>> st = SelfTransformer(64, embed_channels=32)
        >>> st(torch.rand(1, 64, 25, 42)).shape
        torch.Size([1, 32, 25, 42])
    """

    similarity = 'dot'

    def __init__(self,
                 in_channels: int,
                 embed_channels: int | None = None,
                 num_mixtures: int = 2,
                 key_stride: int = 1,
                 scale: float | None = None,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(in_channels, embed_channels, num_mixtures, key_stride,
                         scale, init_cfg)

    def forward(self, x: Tensor, key_stride: int | None = None) -> Tensor:
        """Attend within one level.

        Args:
            x: (B, C, H, W).
            key_stride: Replaces the layer's own for this call.

        Returns:
            (B, E, H, W).

        Raises:
            TypeError: ``x`` is not a floating point tensor.
            ValueError: ``x`` is not (B, C, H, W).
        """
        check_map('x', x, self.in_channels, self.query.weight)
        if key_stride is None:
            key_stride = self.key_stride
        return self.attend(x, x, check_positive_int('key_stride', key_stride))

    @renamed_argument('places', 'pixels')
    def attention_at(self,
                     pixels: Tensor,
                     x: Tensor,
                     key_stride: int | None = None) -> Tensor:
        """Compute the attention maps of some pixels: the weights of the values.

        Args:
            pixels: (P, 2), row and column of each pixel in ``x``.
            x: As in the forward pass.
            key_stride: As in the forward pass.

        Returns:
            (B, P, h, w) in float64, on the grid of the pooled keys.
        """
        return self.attend_at(pixels, x, x, key_stride)
