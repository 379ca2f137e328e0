"""Multiply-adds of operations, as formulas of their arguments.

Add a function of fpt_plugin.functional or of a library with :func:`operation`,
and an operator of torch in ``ATEN``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# Functions that count as one operation, as (package, name): formula.
OPERATIONS: dict[tuple[str, str], Callable[..., int]] = {}


def operation(package: str, name: str) -> Callable:
    """Count a function by a formula instead of its operators.

    The formula takes the function's arguments and returns multiply-adds. The
    function is found by its name in the package and its imported submodules,
    and replaced in every module that imports it, so it may move within the
    package.

    Args:
        package: Dotted name of a package or module.
        name: The function's name in it.
    """

    def register(formula: Callable[..., int]) -> Callable[..., int]:
        OPERATIONS[package, name] = formula
        return formula

    return register


@operation('fpt_plugin.functional', 'mixture_attention')
def _(query: Tensor, key: Tensor, value: Tensor,
      mixture_weights: Tensor | None = None, **_) -> int:
    """Count the scores of all N parts, and one product with the values."""
    batch, parts, num_queries, depth = query.shape
    num_keys, channels = value.shape[1:]
    return batch * num_queries * num_keys * (parts * depth + channels)


@operation('fpt_plugin.functional', 'local_mixture_attention')
def _(query: Tensor, key: Tensor, value: Tensor,
      mixture_weights: Tensor | None = None, *, window: int, **_) -> int:
    """Count the same for the window's keys, also those outside the map."""
    batch, parts, depth, height, width = query.shape
    return batch * height * width * window**2 * (
        parts * depth + value.shape[1])


@operation('fpt_plugin.functional', 'content_lambda')
def _(key: Tensor, value: Tensor) -> int:
    """Count keys times values, summed over positions and intra depth."""
    return key.numel() * value.shape[2]


@operation('fpt_plugin.functional', 'position_lambda')
def _(query: Tensor, value: Tensor, embedding: Tensor, **_) -> int:
    """Count the cheaper order, also for window pixels outside the map.

    The orders: queries times embedding first, or embedding times values first.
    """
    batch, heads, depth, height, width = query.shape
    channels = value.shape[2]
    window = embedding.shape[1:].numel()
    attention = heads * window * (depth + channels)
    lambdas = depth * channels * (window + heads)
    return batch * height * width * min(attention, lambdas)


@operation('mmcv.ops', 'deform_conv2d')
def _(x: Tensor, offset: Tensor, weight: Tensor, *_) -> int:
    """Count the convolution without the interpolation."""
    # One pair of offsets for each output pixel, kernel element and group.
    return offset.shape[0] * offset.shape[2:].numel() * weight.numel()


@operation('mmcv.ops', 'modulated_deform_conv2d')
def _(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, *_) -> int:
    """Count the same; the mask is elementwise."""
    return offset.shape[0] * offset.shape[2:].numel() * weight.numel()


@operation('mmcv.ops', 'carafe')
def _(features: Tensor, masks: Tensor, kernel_size: int, *_) -> int:
    """Count a weighted sum over a window for each output pixel."""
    return (features.shape[0] * features.shape[1] * masks.shape[2:].numel() *
            kernel_size**2)


@operation('mmcv.ops', 'multi_scale_deformable_attn_pytorch')
def _(value: Tensor, shapes: Tensor, locations: Tensor,
      attention_weights: Tensor) -> int:
    """Count the weighted sum of the samples, without the sampling."""
    return attention_weights.numel() * value.shape[-1]


def _product(out: Tensor, a: Tensor, b: Tensor, /, **_) -> int:
    """Count a matrix (..., m, k) times (..., k, n) or (k,)."""
    return a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _add_product(out: Tensor, added: Tensor, a: Tensor, b: Tensor, /,
                 **_) -> int:
    return _product(out, a, b)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, bias, stride, padding,
                 dilation, transposed: bool, /, *_, **__) -> int:
    """Count one kernel for each output pixel; if transposed, each input pixel."""
    return (x if transposed else out).numel() * weight.shape[1:].numel()


def _attention(out, query: Tensor, key: Tensor, value: Tensor, /, *_,
               **__) -> int:
    """Count scaled dot product attention, with masked scores."""
    return query.shape[:-1].numel() * key.shape[-2] * (
        query.shape[-1] + value.shape[-1])


# Formulas by the names of torch's operators, without the underscore of
# in-place variants. They take the result and the arguments.
ATEN: dict[str, Callable[..., int]] = {
    **dict.fromkeys(['mm', 'bmm', 'mv', 'dot', 'vdot'], _product),
    **dict.fromkeys(['addmm', 'baddbmm', 'addbmm', 'addmv'], _add_product),
    **dict.fromkeys([
        'convolution', '_convolution', 'cudnn_convolution',
        'convolution_overrideable'
    ], _convolution),
    **dict.fromkeys([
        '_scaled_dot_product_flash_attention',
        '_scaled_dot_product_flash_attention_for_cpu',
        '_scaled_dot_product_efficient_attention',
        '_scaled_dot_product_cudnn_attention',
        '_scaled_dot_product_fused_attention_overrideable'
    ], _attention),
}

# Operators with multiply-adds but without a formula; they are reported.
UNCOUNTED_ATEN = {
    '_native_multi_head_attention', '_transformer_encoder_layer_fwd',
    '_flash_attention_forward', '_efficient_attention_forward', '_trilinear',
    'mkldnn_rnn_layer', '_thnn_fused_lstm_cell', '_thnn_fused_gru_cell',
    '_fft_r2c', '_fft_c2r', '_fft_c2c'
}
# Prefixes of mmcv's compiled operators that only select, pool or compare.
HARMLESS_MMCV = ('nms', 'softnms', 'roi_', 'bbox_overlaps')
