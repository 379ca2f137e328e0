"""The base of Self- and Grounding-Transformer: projections and mixture weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..functional import mixture_attention
from ..functional.attention_rows import mixture_rows
from ..functional.checks import no_autocast
from .checks import check_positive_int, check_scale


def pool_keys(x: Tensor, stride: int) -> Tensor:
    """Average-pool the source map of keys and values.

    Windows at the border may be smaller; their average is that of their pixels.

    Args:
        x: (B, C, H, W).
        stride: Side of the pooling window in pixels of ``x``.

    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)).
    """
    if stride == 1:
        return x
    return F.avg_pool2d(
        x, stride, stride, ceil_mode=True, count_include_pad=False)


def select_pixels(x: Tensor, pixels: Tensor) -> Tensor:
    """Select some pixels of a map: (B, C, H, W) and (P, 2) to (B, C, P, 1).

    Raises:
        ValueError: ``pixels`` is not (P, 2) of integers, or is outside the map.
    """
    if pixels.dim() != 2 or pixels.shape[1] != 2 or pixels.is_floating_point():
        raise ValueError('pixels must be (P, 2), a row and a column each, got '
                         f'{tuple(pixels.shape)} of {pixels.dtype}')
    size = pixels.new_tensor(x.shape[2:])
    if ((pixels < 0) | (pixels >= size)).any():
        raise ValueError(f'pixels must be inside the map of {tuple(x.shape[2:])}'
                         f' pixels, got {pixels.tolist()}')
    return x[:, :, pixels[:, 0], pixels[:, 1]].unsqueeze(-1)


class MixtureTransformer(BaseModule):
    r"""Query, key and value projections for a mixture of softmaxes.

    The base of :class:`SelfTransformer` and :class:`GroundingTransformer`
    (FPT, Eq. 2): q and k are split along channels into N parts of d = E / N channels
    each, v is not split. The weight of part n is
    :math:`\pi_n = softmax_n(w_n \cdot mean_j(k_j))` with a learned vector w_n on the
    whole, unscaled key.

    Args:
        in_channels: Channels C of the maps.
        embed_channels: Channels E of q, k, v and of the output; None: C.
        num_mixtures: Parts N of the mixture. E must be a multiple of it.
        key_stride: Stride of the average pooling of the source map before keys and
            values; 1 is exact.
        scale: Factor of the similarity; None is 1 / sqrt(E / N); the paper has 1.0.
        init_cfg: mmengine's initialisation, applied after the layer's own.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``embed_channels`` is not a multiple of ``num_mixtures``,
            or a number is out of range.
    """

    similarity: str

    def __init__(self,
                 in_channels: int,
                 embed_channels: int | None = None,
                 num_mixtures: int = 2,
                 key_stride: int = 1,
                 scale: float | None = None,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels = check_positive_int('in_channels', in_channels)
        if embed_channels is None:
            embed_channels = in_channels
        self.embed_channels = check_positive_int('embed_channels',
                                                 embed_channels)
        self.num_mixtures = check_positive_int('num_mixtures', num_mixtures)
        self.key_stride = check_positive_int('key_stride', key_stride)
        self.scale = check_scale(scale)
        if embed_channels % num_mixtures:
            raise ValueError('embed_channels must be a multiple of num_mixtures, '
                             f'got embed_channels={embed_channels} and '
                             f'num_mixtures={num_mixtures}')

        self.query = nn.Conv2d(in_channels, embed_channels, 1, bias=False)
        self.key = nn.Conv2d(in_channels, embed_channels, 1, bias=False)
        self.value = nn.Conv2d(in_channels, embed_channels, 1, bias=False)
        # A single part always has the weight 1, so w would have no gradient.
        mixture = (
            nn.Parameter(torch.empty(num_mixtures, embed_channels))
            if num_mixtures > 1 else None)
        self.register_parameter('mixture_weight', mixture)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set Xavier projections and equal mixture weights."""
        for conv in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(conv.weight)
        if self.mixture_weight is not None:
            nn.init.zeros_(self.mixture_weight)

    def init_weights(self) -> None:
        """Apply the layer's own initialisation, then that of ``init_cfg``.

        The init_cfg of a parent may have changed the convolutions before.
        """
        if not self.is_init:
            self.reset_parameters()
        super().init_weights()

    def attend(self, x: Tensor, source: Tensor, key_stride: int) -> Tensor:
        """Attend from each pixel of ``x`` to all pooled pixels of ``source``.

        Args:
            x: (B, C, H, W), where the queries come from.
            source: (B, C, h, w), where keys and values come from.
            key_stride: Pooling of ``source``.

        Returns:
            (B, E, H, W).
        """
        batch, _, height, width = x.shape
        source = pool_keys(source, key_stride)
        key = self.key(source)  # (B, E, h', w')
        out = mixture_attention(
            self._split(self.query(x)),  # (B, N, Lq, d)
            self._split(key),  # (B, N, Lk, d)
            self.value(source).flatten(2).transpose(1, 2),  # (B, Lk, E)
            self._mixture_weights(key),  # (B, N)
            similarity=self.similarity,
            scale=self.scale)
        # (B, Lq, E) to (B, E, H, W). Not transpose and reshape: for one image they
        # give unusual strides, see cpu_workarounds.usual_strides.
        return out.view(batch, height, width,
                        self.embed_channels).permute(0, 3, 1, 2)

    def attend_at(self, pixels: Tensor, x: Tensor, source: Tensor,
                  key_stride: int | None = None) -> Tensor:
        """Compute the attention maps of some pixels of ``x`` in :meth:`attend`.

        Args:
            pixels: (P, 2), row and column of each pixel.
            x: (B, C, H, W), where the queries come from.
            source: (B, C, h, w), where keys and values come from.
            key_stride: Pooling of ``source``; None: the layer's own.

        Returns:
            (B, P, ceil(h / key_stride), ceil(w / key_stride)) in float64, the
            weight of each value in the output at a pixel.
        """
        if key_stride is None:
            key_stride = self.key_stride
        key = self.key(pool_keys(source, key_stride))
        rows = mixture_rows(
            self._split(self.query(select_pixels(x, pixels))),
            self._split(key),
            self._mixture_weights(key),
            similarity=self.similarity,
            scale=self.scale)  # (B, P, Lk)
        return rows.unflatten(2, key.shape[2:])

    def _split(self, x: Tensor) -> Tensor:
        """Split channels into parts: (B, E, H, W) to (B, N, H * W, E / N)."""
        depth = self.embed_channels // self.num_mixtures
        parts = x.reshape(x.shape[0], self.num_mixtures, depth,
                          x.shape[2] * x.shape[3])
        return parts.transpose(-2, -1)

    def _mixture_weights(self, key: Tensor) -> Tensor:
        """Compute pi_n = softmax_n(w_n . mean_j(k_j)): (B, E, h, w) to (B, N)."""
        if self.mixture_weight is None:
            return torch.ones(
                key.shape[0], 1, dtype=torch.float32, device=key.device)
        dtype = torch.promote_types(key.dtype, torch.float32)
        with no_autocast(key.device):
            mean = key.to(dtype).mean(dim=(2, 3))  # (B, E)
            return F.linear(mean, self.mixture_weight.to(dtype)).softmax(dim=1)

    def extra_repr(self) -> str:
        """Show the arguments that the printed submodules do not."""
        return (f'similarity={self.similarity!r}, '
                f'num_mixtures={self.num_mixtures}, '
                f'key_stride={self.key_stride}, scale={self.scale}')
