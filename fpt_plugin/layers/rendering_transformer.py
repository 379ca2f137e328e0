"""Rendering Transformer: a coarse level gets the details of a finer one.

Feature Pyramid Transformer, Sec. 3.4: https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..functional.checks import is_captured
from ..functional.cpu_workarounds import narrow_conv2d
from ..openmmlab.registry import register
from .checks import check_map, check_positive_int, check_same_batch


@register(MODELS)
class RenderingTransformer(BaseModule):
    """Rendering Transformer (RT), bottom-up, channel-wise.

    It adds details of the fine, lower level Xf to the coarse, higher level Xc (FPT,
    Eq. 5 and 6). With Q from Xc, and K and V from Xf:

        w     = GAP(K)
        Q_att = conv3x3(Q * w)
        V_dow = conv3x3(V), strided to the size of Q
        out   = conv3x3(Q_att + V_dow)

    The stride is computed from the sizes of the maps, so one layer works for any two
    levels.

    The product Q * w grows with the square of the activations. It is computed in
    float32, but the following convolution reads it in the dtype of autocast. float16
    can represent it for activations up to about 50 (with projections that keep their
    scale); bfloat16 has no such limit.

    Args:
        in_channels: Channels C of both maps.
        embed_channels: Channels E of Q, K, V and of the output; None: C.
        init_cfg: mmengine's initialisation, applied after the layer's own.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> import torch
        >>> rt = RenderingTransformer(64, embed_channels=32)
        >>> rt(torch.rand(1, 64, 25, 42), torch.rand(1, 64, 99, 167)).shape
        torch.Size([1, 32, 25, 42])
    """

    fixed_stride: int | None = None  # set by fix_strides

    def __init__(self,
                 in_channels: int,
                 embed_channels: int | None = None,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels = check_positive_int('in_channels', in_channels)
        if embed_channels is None:
            embed_channels = in_channels
        self.embed_channels = check_positive_int('embed_channels',
                                                 embed_channels)

        def projection() -> nn.Conv2d:
            return nn.Conv2d(in_channels, embed_channels, 1, bias=False)

        self.query, self.key, self.value = (projection() for _ in range(3))
        conv3x3 = dict(kernel_size=3, padding=1)
        self.query_conv = nn.Conv2d(embed_channels, embed_channels, **conv3x3)
        self.value_conv = _AnyStrideConv2d(embed_channels, embed_channels,
                                           **conv3x3)
        self.out_conv = nn.Conv2d(embed_channels, embed_channels, **conv3x3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set Xavier weights and zero biases."""
        for conv in self.children():
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def init_weights(self) -> None:
        """Apply the layer's own initialisation, then that of ``init_cfg``.

        The init_cfg of a parent may have changed the convolutions before.
        """
        if not self.is_init:
            self.reset_parameters()
        super().init_weights()

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Add details of the fine map to the coarse one.

        Args:
            coarse: Xc, (B, C, Hc, Wc).
            fine: Xf, (B, C, Hf, Wf).

        Returns:
            (B, E, Hc, Wc).

        Raises:
            TypeError: A map is not a floating point tensor.
            ValueError: A map is not (B, C, H, W), or the batch sizes differ.
        """
        check_map('coarse', coarse, self.in_channels, self.query.weight)
        check_map('fine', fine, self.in_channels, self.query.weight)
        check_same_batch(fine, coarse)
        # (B, E, Hc, Wc)
        query = _multiply(self.query(coarse), self.channel_weights(fine))
        query = self.query_conv(query.to(self.query_conv.weight.dtype))
        return self.out_conv(query + self._downsampled(fine, coarse.shape[2:]))

    def channel_weights(self, fine: Tensor) -> Tensor:
        """Compute GAP(K), the factors of Q: (B, C, Hf, Wf) to (B, E, 1, 1)."""
        # GAP(k(Xf)) equals k(GAP(Xf)), which is Hf * Wf times cheaper.
        return self.key(_global_average(fine).to(fine.dtype))

    def _downsampled(self, fine: Tensor, size: torch.Size) -> Tensor:
        """Compute V_dow by a strided convolution: (B, C, Hf, Wf) to (B, E, Hc, Wc).

        If a side is not a multiple of the stride, the result is resized: for example
        maps of 25x42, 50x84 and 99x167 pixels.
        """
        value = self.value_conv(
            self.value(fine), self.stride(fine.shape[2], size[0]))
        # A captured graph may run at other sizes than it was captured with.
        if is_captured() or value.shape[2:] != size:
            value = F.interpolate(value, size=size, mode='nearest')
        return value

    def stride(self, fine: int, coarse: int) -> int:
        """Compute the stride of the convolution of V from the heights of both maps."""
        return self.fixed_stride or max(1, round(int(fine) / int(coarse)))

    def fix_strides(self, coarse: Tensor, fine: Tensor) -> None:
        """Use the stride of these maps for all maps, as an exported graph must."""
        self.fixed_stride = None
        self.fixed_stride = self.stride(fine.shape[2], coarse.shape[2])


class _AnyStrideConv2d(nn.Conv2d):
    """A convolution whose stride is an argument of the forward pass."""

    def forward(self, x: Tensor, stride: int) -> Tensor:
        return narrow_conv2d(x, self.weight, self.bias, stride, self.padding)


def _global_average(x: Tensor) -> Tensor:
    """Average over all pixels in float32 or wider: (B, C, H, W) to (B, C, 1, 1)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.mean(dim=(2, 3), keepdim=True, dtype=dtype)


def _multiply(query: Tensor, weight: Tensor) -> Tensor:
    """Compute Q * w in float32 or wider, because both grow with the activations."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.to(dtype) * weight.to(dtype)
