"""Pyramids of the FPT paper that mmdet and mmseg do not have."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import BaseModule, ModuleList, Sequential
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..functional.cpu_workarounds import channels_last, guard_narrow_maps
from ..layers.checks import check_levels, check_positive_int
from ..openmmlab.registry import register


@register(MODELS)
class BottomUpPyramid(BaseModule):
    """The paper's bottom-up feature pyramid (BFP): only 1x1 lateral convolutions.

    Each backbone map is projected to ``out_channels``; there is no top-down
    path and no 3x3 convolution (FPT, Sec. 4.1). The paper reports FPT's gains
    over this pyramid. It is not mmdet's ``BFP`` (Balanced Feature Pyramid). The
    arguments are those of mmdet's FPN.

    Args:
        in_channels: Channels of each backbone map, fine to coarse.
        out_channels: Channels of every output map.
        num_outs: Number of output maps; None: the number of backbone maps used.
        start_level: First backbone map used.
        end_level: Last backbone map used; -1: the last one.
        add_extra_convs: Make extra maps by stride-2 convolutions: ``True`` or
            ``'on_input'`` from the last backbone map, ``'on_lateral'`` or
            ``'on_output'`` (the same here) from the last lateral output.
            ``False`` subsamples the last map.
        relu_before_extra_convs: ReLU before the second and later extra
            convolutions.
        no_norm_on_lateral: Do not apply ``norm_cfg`` to the laterals.
        conv_cfg: Convolution type.
        norm_cfg: Norm after each convolution.
        act_cfg: Activation after each convolution.
        init_cfg: Initialisation; the default is FPN's.

    Raises:
        TypeError: ``in_channels`` is not a list of numbers.
        ValueError: Levels, ``num_outs`` or ``add_extra_convs`` do not fit.

    Example:
        >>> import torch
        >>> maps = [torch.rand(1, c, s, s) for c, s in [(8, 32), (16, 16)]]
        >>> neck = BottomUpPyramid([8, 16], 4, num_outs=3)
        >>> [tuple(x.shape) for x in neck(maps)]
        [(1, 4, 32, 32), (1, 4, 16, 16), (1, 4, 8, 8)]
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int | None = None,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        no_norm_on_lateral: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list | None = dict(
            type='Xavier', layer='Conv2d', distribution='uniform')
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not isinstance(in_channels, (list, tuple)):
            raise TypeError('in_channels must be a list of ints, one per backbone '
                            f'map, got {in_channels!r}')
        self.in_channels = list(in_channels)
        self.out_channels = check_positive_int('out_channels', out_channels)
        num_ins = len(self.in_channels)
        last = num_ins - 1 if end_level == -1 else end_level
        if not 0 <= start_level <= last < num_ins:
            raise ValueError(
                'start_level and end_level must be levels of in_channels in '
                f'ascending order, got start_level={start_level}, '
                f'end_level={end_level} and {num_ins} maps')
        self.start_level = start_level
        self.backbone_end_level = last + 1
        num_laterals = self.backbone_end_level - start_level
        self.num_outs = num_laterals if num_outs is None else check_levels(
            'num_outs', num_outs)
        if self.num_outs < num_laterals:
            raise ValueError(f'num_outs must be at least {num_laterals}, the '
                             f'number of backbone maps used, got {num_outs}')
        if add_extra_convs is True:
            add_extra_convs = 'on_input'
        if add_extra_convs not in (False, 'on_input', 'on_lateral',
                                   'on_output'):
            raise ValueError(
                "add_extra_convs must be a bool, 'on_input', 'on_lateral' or "
                f"'on_output', got {add_extra_convs!r}")
        self.add_extra_convs = add_extra_convs
        self.relu_before_extra_convs = relu_before_extra_convs

        def conv(channels: int, *, kernel_size: int, stride: int = 1,
                 norm: bool = True) -> ConvModule:
            return ConvModule(
                channels,
                out_channels,
                kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg if norm else None,
                act_cfg=act_cfg,
                inplace=False)

        used = self.in_channels[start_level:self.backbone_end_level]
        self.lateral_convs = nn.ModuleList(
            conv(c, kernel_size=1, norm=not no_norm_on_lateral) for c in used)
        self.extra_convs = nn.ModuleList()
        if add_extra_convs:
            first = used[-1] if add_extra_convs == 'on_input' else out_channels
            self.extra_convs.extend(
                conv(first if i == 0 else out_channels, kernel_size=3, stride=2)
                for i in range(self.num_outs - num_laterals))
            guard_narrow_maps(self.extra_convs)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Project the backbone's maps.

        Args:
            inputs: Backbone maps (B, in_channels[i], H_i, W_i).

        Returns:
            ``num_outs`` maps (B, out_channels, H_i, W_i).

        Raises:
            ValueError: The number of maps differs from that of ``in_channels``.
        """
        _check_count(self.in_channels, inputs)
        used = inputs[self.start_level:self.backbone_end_level]
        outs = [conv(x) for conv, x in zip(self.lateral_convs, used)]
        if not self.add_extra_convs:
            while len(outs) < self.num_outs:
                outs.append(F.max_pool2d(outs[-1], 1, stride=2))
            return tuple(outs)
        source = used[-1] if self.add_extra_convs == 'on_input' else outs[-1]
        for i, conv in enumerate(self.extra_convs):
            if i > 0 and self.relu_before_extra_convs:
                source = F.relu(source)
            outs.append(conv(source))
            source = outs[-1]
        return tuple(outs)


def _check_count(in_channels: list[int], inputs: tuple[Tensor, ...]) -> None:
    """Require one map per entry of ``in_channels``."""
    if len(inputs) != len(in_channels):
        raise ValueError(f'in_channels={in_channels} expects '
                         f'{len(in_channels)} maps, got {len(inputs)}')


@register(MODELS)
class UFP(BaseModule):
    """The paper's unscathed feature pyramid (UFP) for segmentation.

    The last maps of a dilated backbone have one size, so the scales come from
    the kernels: the last map is reduced to ``out_channels`` and convolved with
    large separable kernels of growing size, as in Global Convolutional Networks
    (FPT, Sec. 4.2; GCN: https://arxiv.org/abs/1703.02719). All outputs have the
    size of that map, the smallest kernel first.

    The paper gives neither the reduction nor its width. Without a reduction,
    2048 channels would need branches of 445 million parameters.

    Args:
        in_channels: Channels of each backbone map; the last one is used.
        out_channels: Channels of every output map.
        num_outs: Number of output maps; must be that of ``kernel_sizes`` or
            None.
        kernel_sizes: Odd side of each branch's kernel; 1 is a 1x1 convolution.
        conv_cfg: Convolution type.
        norm_cfg: Norm after the reduction; None: none.
        act_cfg: Activation after the reduction; None: none.
        init_cfg: Initialisation.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or ``num_outs`` differs from
            the number of kernels.

    Example:
        >>> import torch
        >>> maps = [torch.rand(1, c, 9, 9) for c in (8, 16)]
        >>> [tuple(x.shape) for x in UFP([8, 16], 4).eval()(maps)]
        [(1, 4, 9, 9), (1, 4, 9, 9), (1, 4, 9, 9), (1, 4, 9, 9)]
    """

    one_size = True  # read by FPT: all maps have one size

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int | None = None,
        kernel_sizes: Sequence[int] = (1, 7, 15, 31),
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = dict(type='BN'),
        act_cfg: dict | None = dict(type='ReLU'),
        init_cfg: dict | list | None = dict(
            type='Xavier', layer='Conv2d', distribution='uniform')
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not isinstance(in_channels, (list, tuple)) or not in_channels:
            raise TypeError('in_channels must be a list of ints, one per backbone '
                            f'map, got {in_channels!r}')
        if not isinstance(kernel_sizes, (list, tuple)) or not kernel_sizes:
            raise TypeError('kernel_sizes must be a list or tuple of ints, got '
                            f'{kernel_sizes!r}')
        for size in kernel_sizes:
            if check_positive_int('kernel_sizes', size) % 2 == 0:
                raise ValueError('kernel_sizes must be odd, to keep the size of '
                                 f'the map, got {tuple(kernel_sizes)}')
        self.in_channels = list(in_channels)
        self.out_channels = check_positive_int('out_channels', out_channels)
        self.num_outs = len(kernel_sizes) if num_outs is None else num_outs
        if self.num_outs != len(kernel_sizes):
            raise ValueError(
                'num_outs must be the number of kernel_sizes, '
                f'{len(kernel_sizes)} of {tuple(kernel_sizes)}, got {num_outs}')
        # FPN's names, read by FPT: all outputs are to be transformed.
        self.start_level, self.backbone_end_level = 0, self.num_outs
        self.reduce = ConvModule(
            self.in_channels[-1], out_channels, 1, conv_cfg=conv_cfg,
            norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        self.branches = ModuleList(
            LargeKernel(out_channels, size, conv_cfg) for size in kernel_sizes)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Convolve the last map with kernels of several sizes.

        Args:
            inputs: Backbone maps (B, in_channels[i], H_i, W_i), the last two
                of one size.

        Returns:
            One map (B, out_channels, H, W) per kernel.

        Raises:
            ValueError: The number of maps differs from that of
                ``in_channels``, or the last map is smaller than the one before.
        """
        _check_count(self.in_channels, inputs)
        sizes = [tuple(x.shape[2:]) for x in inputs]
        if len(sizes) > 1 and sizes[-1] != sizes[-2]:
            raise ValueError(
                'UFP needs a dilated backbone, whose last maps have one size, '
                f'got inputs of sizes {sizes}: for a ResNet, set '
                'strides=(1, 2, 1, 1) and dilations=(1, 1, 2, 4)')
        # Only in this format are the gradients of tall kernels safe.
        x = self.reduce(channels_last(inputs[-1]))  # (B, out_channels, H, W)
        return tuple(branch(x) for branch in self.branches)


class LargeKernel(BaseModule):
    """A k x k kernel as the sum of two pairs of k x 1 and 1 x k.

    Args:
        channels: Channels of input and output.
        size: The side k; 1 is a 1x1 convolution.
        conv_cfg: Convolution type.
    """

    def __init__(self, channels: int, size: int,
                 conv_cfg: dict | None = None) -> None:
        super().__init__()

        def conv(height: int, width: int) -> nn.Module:
            return build_conv_layer(
                conv_cfg, channels, channels, (height, width),
                padding=(height // 2, width // 2))

        if size == 1:
            self.paths = ModuleList([conv(1, 1)])
        else:
            self.paths = ModuleList([
                Sequential(conv(size, 1), conv(1, size)),
                Sequential(conv(1, size), conv(size, 1))
            ])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return sum(path(x) for path in self.paths)
