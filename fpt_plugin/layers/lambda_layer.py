"""Lambda layer: long-range interactions without attention maps.

LambdaNetworks, Sec. 3: https://arxiv.org/abs/2102.08602
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ..functional import content_lambda, position_lambda
from ..functional.checks import no_autocast
from ..functional.cpu_workarounds import usual_strides
from ..openmmlab.registry import register
from .channels import split_channels
from .checks import check_flags, check_map, check_positive_int


@register(MODELS)
class LambdaLayer(BaseModule):
    r"""Lambda layer with local positions, for maps of any size.

    The context of each pixel is summarised in a linear function, its lambda, which is
    applied to the pixel's queries (LambdaNetworks, Eq. 1 and 2):

    .. math::
        \lambda^c = \bar K^T V, \quad \lambda^p_n = E_n^T V, \quad
        y_n = (\lambda^c + \lambda^p_n)^T q_n

    Keys are normalised by a softmax over all pixels. E are the position embeddings of
    the offsets inside a window of ``context_size``. Queries and values have a norm; the
    heads share keys, values and embeddings. The content lambda includes batch padding,
    so outputs depend on the padded size.

    If the layer replaces a 3x3 convolution, a norm should follow it. As a plugin of a
    trained ResNet, ``residual=True`` makes it a branch with a gate that starts at zero:
    the network is unchanged until training changes the gate::

        plugins=[dict(cfg=dict(type='LambdaLayer', residual=True),
                      stages=(False, False, True, True),
                      position='after_conv2')]

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels of the output, a multiple of ``num_heads``;
            None: C.
        num_heads: Heads h, the queries of a pixel.
        query_depth: Channels k of a query.
        intra_depth: Intra depth u of keys and values.
        context_size: Side of the window of positions, odd; or two sides,
            (rows, columns).
        content_bias: Add a learned number for each query channel to the content
            lambda. Converted checkpoints need it if their convolution has a bias.
        residual: Return the input plus the gated and normalised output.
        norm_cfg: Norm of queries and values, and of the output if ``residual`` is
            set. Use GN in a pretrained backbone, because ``norm_eval`` of mmdet and
            mmseg keeps batch norms in evaluation mode.
        init_cfg: mmengine's initialisation, applied after the layer's own.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, ``context_size`` is even,
            ``out_channels`` is not a multiple of ``num_heads`` or, with
            ``residual``, not C, or the groups of a group norm do not divide its
            channels.

    Example:
        >>> import torch
        >>> layer = LambdaLayer(64, context_size=7)
        >>> layer(torch.rand(1, 64, 25, 42)).shape
        torch.Size([1, 64, 25, 42])
    """

    _abbr_ = 'lambda_layer'

    def __init__(self,
                 in_channels: int,
                 out_channels: int | None = None,
                 num_heads: int = 4,
                 query_depth: int = 16,
                 intra_depth: int = 1,
                 context_size: int | tuple[int, int] = 23,
                 content_bias: bool = False,
                 residual: bool = False,
                 norm_cfg: dict = dict(type='BN'),
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels = check_positive_int('in_channels', in_channels)
        if out_channels is None:
            out_channels = in_channels
        self.out_channels = check_positive_int('out_channels', out_channels)
        self.num_heads = check_positive_int('num_heads', num_heads)
        self.query_depth = check_positive_int('query_depth', query_depth)
        self.intra_depth = check_positive_int('intra_depth', intra_depth)
        self.context_size = check_context_size(context_size)
        check_flags(content_bias=content_bias, residual=residual)
        self.residual = residual
        if out_channels % num_heads:
            raise ValueError('out_channels must be a multiple of num_heads, got '
                             f'out_channels={out_channels} and '
                             f'num_heads={num_heads}')
        if residual and out_channels != in_channels:
            raise ValueError('residual=True needs out_channels equal to '
                             f'in_channels, got out_channels={out_channels} '
                             f'and in_channels={in_channels}')
        self.value_depth = out_channels // num_heads
        self.widths = (num_heads * query_depth, query_depth * intra_depth,
                       self.value_depth * intra_depth)
        self.qkv = Conv2d(in_channels, sum(self.widths))
        self.norm_q = build_norm('queries', norm_cfg, self.widths[0])
        self.norm_v = build_norm('values', norm_cfg, self.widths[2])
        self.embedding = nn.Parameter(
            torch.empty(query_depth, intra_depth, *self.context_size))
        self.register_parameter(
            'content_bias',
            nn.Parameter(torch.empty(query_depth)) if content_bias else None)
        self.norm_out = build_norm('output', norm_cfg, out_channels) \
            if residual else None
        self.register_parameter(
            'gate',
            nn.Parameter(torch.empty(out_channels)) if residual else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as in the paper; set gate and content bias to zero.

        Queries have the variance 1 / (k C), keys and values 1 / C, embeddings 1.
        """
        std = self.in_channels**-0.5
        query, key, value = self.qkv.weight.split(self.widths)
        nn.init.normal_(query, std=std * self.query_depth**-0.5)
        nn.init.normal_(key, std=std)
        nn.init.normal_(value, std=std)
        nn.init.normal_(self.embedding)
        for parameter in (self.content_bias, self.gate):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def init_weights(self) -> None:
        """Apply the layer's own initialisation, then that of ``init_cfg``.

        The init_cfg of a parent may have changed the convolution before.
        """
        if not self.is_init:
            self.reset_parameters()
        super().init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the lambda of each pixel to its queries.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, out_channels, H, W), channels head-major.

        Raises:
            TypeError: ``x`` is not a floating point tensor.
            ValueError: ``x`` is not (B, C, H, W), or has no pixel.
        """
        if isinstance(x, fx.Proxy):  # torch.fx does not trace into the layer
            path = x.tracer.path_of_module(self)
            return x.tracer.create_proxy('call_module', path, (x, ), {})
        check_map('x', x, self.in_channels, self.qkv.weight)
        query, key, value = self.qkv(x).split(self.widths, dim=1)
        query = split_channels(self.norm_q(query), self.num_heads)  # (B, h, k, H, W)
        key = split_channels(key, self.intra_depth)  # (B, u, k, H, W)
        value = split_channels(self.norm_v(value), self.intra_depth)  # (B, u, v, H, W)
        content = content_lambda(
            key.transpose(1, 2).flatten(3), value.flatten(3))  # (B, k, v)
        if self.content_bias is not None:
            content = content + self.content_bias[:, None]
        out = position_lambda(query, value, self.embedding)  # (B, h, v, H, W)
        # (B, h * v, H, W)
        out = (out + apply_lambda(query, content).to(out.dtype)).flatten(1, 2)
        out = usual_strides(out, x)
        if not self.residual:
            return out
        return x + self.gate[:, None, None] * self.norm_out(out)

    def extra_repr(self) -> str:
        """Show the arguments that the printed submodules do not."""
        return (f'num_heads={self.num_heads}, query_depth={self.query_depth}, '
                f'intra_depth={self.intra_depth}, '
                f'context_size={self.context_size}, residual={self.residual}')


class Conv2d(_ConvNd):
    """A 1x1 convolution without bias that is not an ``nn.Conv2d``.

    mmcv's fuse_conv_bn merges each ``nn.Conv2d`` with the batch norm that follows among
    the children of a module. In a lambda layer this would be wrong, because the norms
    apply to parts of the output. The class is called Conv2d so that an init_cfg with
    ``layer='Conv2d'`` finds it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size=(1, 1), stride=(1, 1),
            padding=(0, 0), dilation=(1, 1), transposed=False,
            output_padding=(0, 0), groups=1, bias=False, padding_mode='zeros')

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return F.conv2d(x, self.weight)


def apply_lambda(query: Tensor, content: Tensor) -> Tensor:
    """Apply the lambda of each image to all its queries, in float32 or wider.

    Args:
        query: (B, h, k, H, W).
        content: (B, k, v).

    Returns:
        (B, h, v, H, W).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with no_autocast(query.device):
        return torch.einsum('bhkyx,bkv->bhvyx', query.to(dtype),
                            content.to(dtype))


def check_context_size(
        context_size: int | tuple[int, int]) -> tuple[int, int]:
    """Require one or two odd sides.

    Returns:
        (rows, columns).

    Raises:
        TypeError: ``context_size`` is not an int or two.
        ValueError: A side is even or not positive.
    """
    sides = context_size if isinstance(context_size, (list, tuple)) else (
        context_size, ) * 2
    if len(sides) != 2 or any(
            not isinstance(s, int) or isinstance(s, bool) for s in sides):
        raise TypeError('context_size must be an int or two, '
                        f'got {context_size!r}')
    if any(s < 1 or s % 2 == 0 for s in sides):
        raise ValueError('context_size must be odd and positive, because the '
                         f'window has a centre pixel, got {context_size}')
    return tuple(sides)


def build_norm(name: str, norm_cfg: dict, channels: int) -> nn.Module:
    """Build a norm.

    Args:
        name: Name of the normalised tensor, for messages.
        norm_cfg: Config of the norm.
        channels: Channels of the normalised tensor.

    Raises:
        TypeError: ``norm_cfg`` is not a dict with a type.
        ValueError: The groups do not divide the channels.
    """
    if not isinstance(norm_cfg, dict) or 'type' not in norm_cfg:
        raise TypeError(f'norm_cfg must be a dict with a type, got {norm_cfg!r}')
    groups = norm_cfg.get('num_groups')
    if groups and channels % groups:
        raise ValueError(
            f'norm_cfg has num_groups={groups}, which does not divide the '
            f'{channels} channels of the {name} of a LambdaLayer, got '
            f'norm_cfg={dict(norm_cfg)}')
    return build_norm_layer(norm_cfg, channels)[1]
