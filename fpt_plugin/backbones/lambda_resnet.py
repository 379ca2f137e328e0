"""LambdaResNet: a ResNet with lambda layers instead of some 3x3 convolutions.

LambdaNetworks, Sec. 4 and 5: https://arxiv.org/abs/2102.08602
"""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import (
    build_activation_layer,
    build_conv_layer,
    build_norm_layer,
)
from mmengine.model import BaseModule, Sequential, initialize
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..functional.cpu_workarounds import guard_narrow_maps
from ..layers import LambdaLayer
from ..layers.checks import check_flags, check_positive_int, refusing
from ..openmmlab.registry import register
from ..openmmlab.versions import check_versions
from .architectures import BlockIndex, all_blocks, architecture
from .blocks import Bottleneck

# The initialisation of ResNet in mmdet and mmseg.
_INITIAL = (dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']))


@register(MODELS)
class LambdaResNet(BaseModule):
    """LambdaResNet with the arguments of mmdet's and mmseg's ResNet.

    It accepts the ResNet arguments of a base config. The weights of a ResNet do
    not fit, so ``frozen_stages`` depends on the weights you have
    (configs/lambda_resnet). State-dict keys are those of the libraries' ResNet,
    so that ``tools/convert_weights.py torchvision-resnet`` can fill the
    convolutions; a lambda layer is ``conv2`` of its block.

    Depths 50 to 420 are the paper's hybrids with the stem and the shortcuts of
    ResNet-D. The presets ``'26t'``, ``'26rpt'``, ``'50ts'`` (timm) and
    ``'d-li14-50'`` have public ImageNet weights, see
    ``tools/convert_weights.py``.

    Args:
        depth: 50, 101, 152, 200, 270, 350 or 420, or the name of a preset.
        in_channels: Channels of the image.
        num_stages: Number of stages, 1 to 4.
        strides: Stride of the first block of each stage.
        dilations: Dilation of the 3x3 convolutions of each stage. A lambda
            layer has no dilation; in a dilated stage its stride is 1.
        out_indices: Stages whose maps are returned.
        style: Only ``'pytorch'``: the 3x3 convolution has the stride.
        frozen_stages: Stages that are not trained: 0 the stem, 1 the stem and
            the first stage, ...; -1: none.
        lambda_blocks: ``'hybrid'`` (the default of the depth), ``'all'``, or a
            list of (stage, block), counted from 0.
        lambda_layer: Arguments to change in the lambda layers, such as
            ``dict(intra_depth=4)``; a ``type`` selects another layer.
        se: Add squeeze-and-excitation to the convolution blocks.
        contract_dilation: Halve the dilation of the first block of a stage.
        conv_cfg: Type of the convolutions.
        norm_cfg: Type of all norms, also in the lambda layers.
        norm_eval: Keep batch norms in evaluation mode in training.
        act_cfg: Activation; None: the default of the depth.
        with_cp: Recompute blocks in the backward pass to save memory.
        zero_init_residual: Start each block as its shortcut.
        init_cfg: mmengine's initialisation, applied after the backbone's own.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range or does not fit another one.
        ImportError: The installed OpenMMLab versions do not fit.

    Example:
        >>> import torch
        >>> backbone = LambdaResNet(50).eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 65, 96))]
        [(1, 256, 17, 24), (1, 512, 9, 12), (1, 1024, 5, 6), (1, 2048, 3, 3)]
    """

    def __init__(self,
                 depth: int | str,
                 in_channels: int = 3,
                 num_stages: int = 4,
                 strides: Sequence[int] = (1, 2, 2, 2),
                 dilations: Sequence[int] = (1, 1, 1, 1),
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 style: str = 'pytorch',
                 frozen_stages: int = -1,
                 lambda_blocks: str | Sequence[BlockIndex] = 'hybrid',
                 lambda_layer: dict | None = None,
                 se: bool = False,
                 contract_dilation: bool = False,
                 conv_cfg: dict | None = None,
                 norm_cfg: dict = dict(type='BN', requires_grad=True),
                 norm_eval: bool = True,
                 act_cfg: dict | None = None,
                 with_cp: bool = False,
                 zero_init_residual: bool = True,
                 init_cfg: dict | list | None = None) -> None:
        check_versions()
        super().__init__(init_cfg=init_cfg)
        check_flags(
            se=se, contract_dilation=contract_dilation, norm_eval=norm_eval,
            with_cp=with_cp, zero_init_residual=zero_init_residual)
        self.depth = depth
        self.architecture = architecture(depth)
        self.num_stages = check_positive_int('num_stages', num_stages)
        if num_stages > len(self.architecture.blocks):
            raise ValueError('num_stages must be at most '
                             f'{len(self.architecture.blocks)}, got {num_stages}')
        self.strides = self._check_per_stage('strides', strides)
        self.dilations = self._check_per_stage('dilations', dilations)
        self.out_indices = self._check_out_indices(out_indices)
        if style != 'pytorch':
            raise ValueError("style must be 'pytorch' (the 3x3 convolution has "
                             f'the stride), got {style!r}')
        if not isinstance(frozen_stages, int) or isinstance(
                frozen_stages, bool):
            raise TypeError(
                f'frozen_stages must be an int, got {frozen_stages!r}')
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(f'frozen_stages must be from -1 to {num_stages}, '
                             f'got {frozen_stages!r}')
        self.frozen_stages = frozen_stages
        self.lambda_blocks = self._check_lambda_blocks(lambda_blocks)
        self.norm_eval = norm_eval
        self.zero_init_residual = zero_init_residual
        self.conv_cfg, self.norm_cfg = conv_cfg, norm_cfg
        if act_cfg is not None and not isinstance(act_cfg, dict):
            raise TypeError(f'act_cfg must be a dict or None, got {act_cfg!r}')
        self.act_cfg = dict(act_cfg or self.architecture.act_cfg)
        self.contract_dilation = contract_dilation
        self._block_args = dict(
            average=self.architecture.average_lambda, conv_cfg=conv_cfg,
            norm_cfg=norm_cfg, act_cfg=self.act_cfg, with_cp=with_cp)
        check_positive_int('in_channels', in_channels)
        with refusing('conv_cfg, norm_cfg, act_cfg or lambda_layer',
                      (conv_cfg, norm_cfg, act_cfg, lambda_layer)):
            self._make_stem(in_channels)
            self.feat_dim = 64
            for stage in range(num_stages):
                self.add_module(f'layer{stage + 1}',
                                self._make_stage(stage, lambda_layer or {}, se))
        guard_narrow_maps(self)
        self._initialise()
        self._freeze()

    # ------------------------------------------------------------ construction

    def _check_per_stage(self, name: str,
                         numbers: Sequence[int]) -> tuple[int, ...]:
        """Return a positive number per stage; surplus numbers are ignored."""
        if not isinstance(numbers, (list, tuple)):
            raise TypeError(
                f'{name} must be a list or tuple of ints, got {numbers!r}')
        if len(numbers) < self.num_stages:
            raise ValueError(f'{name} must have a number for each of the '
                             f'num_stages={self.num_stages}, got {numbers}')
        return tuple(
            check_positive_int(name, n) for n in numbers[:self.num_stages])

    def _check_out_indices(self, indices: Sequence[int]) -> tuple[int, ...]:
        if not isinstance(indices, (list, tuple)) or not indices or any(
                i not in range(self.num_stages) for i in indices):
            raise ValueError('out_indices must be stages from 0 to '
                             f'{self.num_stages - 1}, got {indices!r}')
        return tuple(indices)

    def _check_lambda_blocks(
            self, given: str | Sequence[BlockIndex]) -> frozenset[BlockIndex]:
        existing = all_blocks(self.architecture.blocks)
        if isinstance(given, str):
            named = dict(hybrid=self.architecture.lambda_blocks, all=existing)
            if given not in named:
                raise ValueError("lambda_blocks must be 'hybrid', 'all' or "
                                 f'pairs (stage, block), got {given!r}')
            return named[given]
        if not isinstance(given, (list, tuple, set, frozenset)) or any(
                not isinstance(pair, (list, tuple)) for pair in given):
            raise TypeError("lambda_blocks must be 'hybrid', 'all' or pairs "
                            f'(stage, block), got {given!r}')
        blocks = frozenset(map(tuple, given))
        if not blocks <= existing:
            raise ValueError(
                'lambda_blocks must be pairs (stage, block), counted from 0, '
                f'of stages with {self.architecture.blocks} blocks, got '
                f'{sorted(blocks - existing)}')
        return blocks

    def _make_stem(self, channels: int) -> None:
        """Add the stem, which reduces the image by 4: convolutions, [pooling]."""
        act = build_activation_layer(self.act_cfg)
        if self.architecture.stem is None:
            self.conv1 = build_conv_layer(
                self.conv_cfg, channels, 64, 7, stride=2, padding=3, bias=False)
            self.norm1_name, norm = build_norm_layer(
                self.norm_cfg, 64, postfix=1)
            self.add_module(self.norm1_name, norm)
            self.act = act
        else:
            layers = []
            for width, stride in self.architecture.stem:
                layers += [
                    build_conv_layer(
                        self.conv_cfg, channels, width, 3, stride=stride,
                        padding=1, bias=False),
                    build_norm_layer(self.norm_cfg, width)[1], act
                ]
                channels = width
            self.stem = Sequential(*layers)
        self.stem_pool = nn.MaxPool2d(3, 2, 1) \
            if self.architecture.stem_pool else nn.Identity()

    def _stem_modules(self) -> list[nn.Module]:
        if self.architecture.stem is None:
            return [self.conv1, getattr(self, self.norm1_name), self.act]
        return [self.stem]

    def _make_stage(self, stage: int, lambda_layer: dict,
                    se: bool) -> Sequential:
        planes = 64 * 2**stage
        blocks = []
        for block in range(self.architecture.blocks[stage]):
            index = stage, block
            stride = self.strides[stage] if block == 0 else 1
            dilation = self.dilations[stage]
            if block == 0 and self.contract_dilation:
                dilation = max(1, dilation // 2)
            is_lambda = index in self.lambda_blocks
            layer = dict(
                type='LambdaLayer',
                context_size=self.architecture.context_size(index),
                content_bias=self.architecture.content_bias,
                norm_cfg=self.norm_cfg)
            layer.update(lambda_layer)
            blocks.append(
                Bottleneck(
                    self.feat_dim,
                    planes,
                    stride=stride,
                    dilation=dilation,
                    lambda_layer=layer if is_lambda else None,
                    downsample=self._make_shortcut(
                        4 * planes, stride) if block == 0 else None,
                    se=se and not is_lambda,
                    **self._block_args))
            self.feat_dim = 4 * planes
        return Sequential(*blocks)

    def _make_shortcut(self, channels: int, stride: int) -> Sequential:
        """Build a shortcut: [average pooling,] 1x1 convolution and norm."""
        average = self.architecture.average_shortcut
        layers = [
            build_conv_layer(
                self.conv_cfg, self.feat_dim, channels, 1,
                stride=1 if average else stride, bias=False),
            build_norm_layer(self.norm_cfg, channels)[1]
        ]
        if average:
            layers.insert(
                0,
                nn.AvgPool2d(
                    stride, ceil_mode=True, count_include_pad=False)
                if stride > 1 else nn.Identity())
        return Sequential(*layers)

    # ---------------------------------------------------------- initialisation

    def _initialise(self) -> None:
        for cfg in _INITIAL:
            initialize(self, dict(cfg))
        for module in self.modules():
            if isinstance(module, Bottleneck) and self.zero_init_residual:
                module.zero_residual()
            elif isinstance(module, LambdaLayer):
                module.reset_parameters()

    def init_weights(self) -> None:
        """Apply the backbone's own initialisation, then ``init_cfg``."""
        if not self.is_init:
            self._initialise()
        super().init_weights()

    # ------------------------------------------------------------------ freeze

    def _freeze(self) -> None:
        frozen = self._stem_modules() if self.frozen_stages >= 0 else []
        frozen += [
            getattr(self, f'layer{i}')
            for i in range(1, self.frozen_stages + 1)
        ]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> LambdaResNet:
        """Set the training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    # ----------------------------------------------------------------- forward

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the stages in ``out_indices``.

        Args:
            x: Image (B, in_channels, H, W).

        Returns:
            (B, 256 * 2^i, H_i, W_i) for each i of ``out_indices``; H_i is
            H / 2^(i + 2) with the default strides, rounded up at each step.
        """
        for module in self._stem_modules():
            x = module(x)
        x = self.stem_pool(x)  # (B, 64, H / 4, W / 4)
        outs = []
        for stage in range(self.num_stages):
            x = getattr(self, f'layer{stage + 1}')(x)  # (B, 256 * 2^stage, ...)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)
