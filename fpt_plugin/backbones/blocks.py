"""The bottleneck block of LambdaResNet.

LambdaNetworks, Sec. 4: https://arxiv.org/abs/2102.08602
"""

from __future__ import annotations

from mmcv.cnn import (
    build_activation_layer,
    build_conv_layer,
    build_norm_layer,
)
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Pooling after a lambda layer of stride 2; all round odd sides up.
AVERAGES = {
    '3x3': dict(kernel_size=3, padding=1, count_include_pad=False),
    '3x3-zeros': dict(kernel_size=3, padding=1),
    '2x2': dict(kernel_size=2, ceil_mode=True),
}


class Bottleneck(BaseModule):
    """1x1 convolution, 3x3 convolution or lambda layer, 1x1, and a shortcut.

    The layers have the names of the libraries' ResNet; ``conv2`` is the lambda
    layer if there is one.

    Args:
        in_channels: Channels of the input.
        planes: Channels inside; the output has four times as many.
        stride: Stride of the 3x3 convolution, or of the pooling after the
            lambda layer.
        dilation: Dilation of the 3x3 convolution; a lambda layer has none.
        lambda_layer: Config of the lambda layer; None: a 3x3 convolution.
        average: Pooling after a lambda layer of stride 2, a key of AVERAGES.
        downsample: Module of the shortcut; None: the identity.
        se: Whether squeeze-and-excitation follows the block.
        conv_cfg: Type of the convolutions.
        norm_cfg: Type of the norms.
        act_cfg: Activation.
        with_cp: Recompute the block in the backward pass to save memory.
    """

    expansion = 4

    def __init__(self,
                 in_channels: int,
                 planes: int,
                 *,
                 stride: int = 1,
                 dilation: int = 1,
                 lambda_layer: dict | None = None,
                 average: str = '3x3',
                 downsample: nn.Module | None = None,
                 se: bool = False,
                 conv_cfg: dict | None = None,
                 norm_cfg: dict = dict(type='BN'),
                 act_cfg: dict = dict(type='ReLU', inplace=True),
                 with_cp: bool = False) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        self.conv1 = build_conv_layer(
            conv_cfg, in_channels, planes, 1, bias=False)
        self.norm1_name = self._add_norm(norm_cfg, planes, 1)
        self.average = None
        if lambda_layer is None:
            self.conv2 = build_conv_layer(
                conv_cfg, planes, planes, 3, stride=stride, padding=dilation,
                dilation=dilation, bias=False)
        else:
            self.conv2 = MODELS.build(dict(lambda_layer, in_channels=planes))
            if stride > 1:
                self.average = nn.AvgPool2d(stride=stride, **AVERAGES[average])
        self.norm2_name = self._add_norm(norm_cfg, planes, 2)
        self.conv3 = build_conv_layer(
            conv_cfg, planes, out_channels, 1, bias=False)
        self.norm3_name = self._add_norm(norm_cfg, out_channels, 3)
        self.se = SqueezeExcite(out_channels) if se else None
        self.act = build_activation_layer(act_cfg)
        self.downsample = downsample
        self.with_cp = with_cp

    def _add_norm(self, norm_cfg: dict, channels: int, number: int) -> str:
        """Add a norm under the libraries' name for it: bn1, gn1, ..."""
        name, norm = build_norm_layer(norm_cfg, channels, postfix=number)
        self.add_module(name, norm)
        return name

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The three norms, whose attribute names depend on their type."""
        return tuple(
            getattr(self, name)
            for name in (self.norm1_name, self.norm2_name, self.norm3_name))

    def zero_residual(self) -> None:
        """Zero the last norm, so that the block starts as its shortcut."""
        if getattr(self.norms[-1], 'weight', None) is not None:
            nn.init.zeros_(self.norms[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, 4 * planes, H / stride, W / stride), sides rounded up.
        """
        if self.with_cp and x.requires_grad:
            out = checkpoint(self._sum, x, use_reentrant=False)
        else:
            out = self._sum(x)
        return self.act(out)

    def _sum(self, x: Tensor) -> Tensor:
        norm1, norm2, norm3 = self.norms
        out = self.act(norm1(self.conv1(x)))  # (B, planes, H, W)
        out = self.conv2(out)  # a convolution applies the stride here
        if self.average is not None:
            out = self.average(out)  # (B, planes, H / stride, W / stride)
        out = norm3(self.conv3(self.act(norm2(out))))  # (B, 4 * planes, ...)
        if self.se is not None:
            out = self.se(out)
        return out + (x if self.downsample is None else self.downsample(x))


class SqueezeExcite(BaseModule):
    """Squeeze-and-excitation: scale channels by a function of their means.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 4, 1)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        squeezed = self.conv1(  # (B, C / 4, 1, 1)
            x.mean(dim=(2, 3), keepdim=True)).relu()
        return x * self.conv2(squeezed).sigmoid()
