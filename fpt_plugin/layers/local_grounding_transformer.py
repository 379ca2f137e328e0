"""Locality-constrained Grounding Transformer, for segmentation.

Feature Pyramid Transformer, Sec. 3.3: https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor

from ..functional import local_mixture_attention
from ..functional.attention_rows import local_mixture_rows
from ..functional.deprecation import renamed_argument
from ..functional.local_attention import check_pad, check_window
from ..openmmlab.registry import register
from .channels import split_channels
from .checks import check_map, check_same_batch
from .mixture import MixtureTransformer, select_pixels


@register(MODELS)
class LocalGroundingTransformer(MixtureTransformer):
    """Locality-constrained Grounding Transformer (LGT), top-down.

    A Grounding Transformer in which each query attends only to a square window of the
    coarse map Xc, around the pixel that contains the query's centre. q comes from the
    fine map Xf, k and v from Xc. The similarity F_sim is -||q_i - k_j||^2, in a mixture
    of four softmaxes over the window. The cost grows with the number of pixels, not
    with its square. The mixture weights come from the mean key of the whole map.

    Args:
        in_channels: Channels C of both maps.
        embed_channels: Channels E of q, k, v and of the output; None: C.
        num_mixtures: Parts N of the mixture.
        window: Side of the window in pixels of Xc, odd.
        pad: ``'zero'``: keys and values outside the map are zero and are part
            of the softmax, as in the paper; ``'mask'``: they are left out.
        scale: Factor of the distance; None is 1 / sqrt(E / N); the paper has 1.0.
        init_cfg: mmengine's initialisation, applied after the layer's own.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or ``embed_channels`` is not
            a multiple of ``num_mixtures``.

    Example:
        >>> import torch
        >>> lgt = LocalGroundingTransformer(64, embed_channels=32)
        >>> lgt(torch.rand(1, 64, 50, 84), torch.rand(1, 64, 25, 42)).shape
        torch.Size([1, 32, 50, 84])
    """

    similarity = 'neg_euclid'

    def __init__(self,
                 in_channels: int,
                 embed_channels: int | None = None,
                 num_mixtures: int = 4,
                 window: int = 5,
                 pad: str = 'zero',
                 scale: float | None = None,
                 init_cfg: dict | list | None = None) -> None:
        self.window = check_window(window)
        self.pad = check_pad(pad)
        super().__init__(
            in_channels,
            embed_channels,
            num_mixtures,
            scale=scale,
            init_cfg=init_cfg)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Attend from the fine map to windows of the coarse one.

        Args:
            fine: Xf, (B, C, Hf, Wf).
            coarse: Xc, (B, C, Hc, Wc).

        Returns:
            (B, E, Hf, Wf).

        Raises:
            TypeError: A map is not a floating point tensor.
            ValueError: A map is not (B, C, H, W), or the batch sizes differ.
        """
        check_map('fine', fine, self.in_channels, self.query.weight)
        check_map('coarse', coarse, self.in_channels, self.query.weight)
        check_same_batch(fine, coarse)
        key = self.key(coarse)  # (B, E, Hc, Wc)
        return local_mixture_attention(
            split_channels(self.query(fine), self.num_mixtures),  # (B, N, d, Hf, Wf)
            split_channels(key, self.num_mixtures),  # (B, N, d, Hc, Wc)
            self.value(coarse),  # (B, E, Hc, Wc)
            self._mixture_weights(key),  # (B, N)
            window=self.window,
            similarity=self.similarity,
            pad=self.pad,
            scale=self.scale)

    @renamed_argument('places', 'pixels')
    def attention_at(self, pixels: Tensor, fine: Tensor,
                     coarse: Tensor) -> Tensor:
        """Compute the attention maps of some pixels: the weights of the values.

        Args:
            pixels: (P, 2), row and column of each pixel in ``fine``.
            fine: As in the forward pass.
            coarse: As in the forward pass.

        Returns:
            (B, P, Hc, Wc) in float64. With ``pad='zero'`` a map may sum to less
            than 1: the rest is the weight of the zero keys around the coarse map.
        """
        key = self.key(coarse)
        return local_mixture_rows(
            self._split(self.query(select_pixels(fine, pixels))),
            split_channels(key, self.num_mixtures),
            self._mixture_weights(key),
            pixels,
            fine.shape[2:],
            window=self.window,
            similarity=self.similarity,
            pad=self.pad,
            scale=self.scale)

    def extra_repr(self) -> str:
        """Show the arguments that the printed submodules do not."""
        return (f'similarity={self.similarity!r}, '
                f'num_mixtures={self.num_mixtures}, window={self.window}, '
                f'pad={self.pad!r}, scale={self.scale}')
