"""Multiply-adds of operations, as formulas of their arguments.

Where to add one: a function of fpt_plugin.functional or of a library with
:func:`operation`, an operator of torch in ``ATEN``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# Functions that count as one operation, as (package, name): formula.
OPERATIONS: dict[tuple[str, str], Callable[..., int]] = {}


def operation(package: str, name: str) -> Callable:
    """Count a function by a formula instead of by what it executes.

    The formula is called with the function's own arguments and returns
    multiply-adds. The function is found by its name in the package and its
    imported submodules, and intercepted wherever a module refers to it, so it
    may be imported by name and may move within the package.

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
    """Scores of all N parts, and one product with the values."""
    batch, parts, num_queries, depth = query.shape
    num_keys, channels = value.shape[1:]
    return batch * num_queries * num_keys * (parts * depth + channels)


@operation('fpt_plugin.functional', 'local_mixture_attention')
def _(query: Tensor, key: Tensor, value: Tensor,
      mixture_weights: Tensor | None = None, *, window: int, **_) -> int:
    """The same with the window's keys, those outside the map included."""
    batch, parts, depth, height, width = query.shape
    return batch * height * width * window**2 * (
        parts * depth + value.shape[1])


@operation('fpt_plugin.functional', 'content_lambda')
def _(key: Tensor, value: Tensor) -> int:
    """Keys times values, summed over positions and intra depth."""
    return key.numel() * value.shape[2]


@operation('fpt_plugin.functional', 'position_lambda')
def _(query: Tensor, value: Tensor, embedding: Tensor, **_) -> int:
    """The cheaper order, on the window's pixels outside the map too.

    Queries and embedding first, or embedding and values first and then the
    queries.
    """
    batch, heads, depth, height, width = query.shape
    channels = value.shape[2]
    window = embedding.shape[1:].numel()
    attention = heads * window * (depth + channels)
    lambdas = depth * channels * (window + heads)
    return batch * height * width * min(attention, lambdas)


@operation('mmcv.ops', 'deform_conv2d')
def _(x: Tensor, offset: Tensor, weight: Tensor, *_) -> int:
    """A convolution; the interpolation is not counted."""
    # One pair of offsets a place of the output, kernel element and group.
    return offset.shape[0] * offset.shape[2:].numel() * weight.numel()


@operation('mmcv.ops', 'modulated_deform_conv2d')
def _(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, *_) -> int:
    """The same; the mask is elementwise."""
    return offset.shape[0] * offset.shape[2:].numel() * weight.numel()


@operation('mmcv.ops', 'carafe')
def _(features: Tensor, masks: Tensor, kernel_size: int, *_) -> int:
    """Each pixel of the output is a weighted sum of a window."""
    return (features.shape[0] * features.shape[1] * masks.shape[2:].numel() *
            kernel_size**2)


@operation('mmcv.ops', 'multi_scale_deformable_attn_pytorch')
def _(value: Tensor, shapes: Tensor, locations: Tensor,
      attention_weights: Tensor) -> int:
    """The weighted sum of what is sampled; sampling is not counted."""
    return attention_weights.numel() * value.shape[-1]


def _product(out: Tensor, a: Tensor, b: Tensor, /, **_) -> int:
    """A matrix (..., m, k) times (..., k, n) or (k,)."""
    return a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _add_product(out: Tensor, added: Tensor, a: Tensor, b: Tensor, /,
                 **_) -> int:
    return _product(out, a, b)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, bias, stride, padding,
                 dilation, transposed: bool, /, *_, **__) -> int:
    """Every place of the output, or of a transposed one's input."""
    return (x if transposed else out).numel() * weight.shape[1:].numel()


def _attention(out, query: Tensor, key: Tensor, value: Tensor, /, *_,
               **__) -> int:
    """Scaled dot product attention, masked scores included."""
    return query.shape[:-1].numel() * key.shape[-2] * (
        query.shape[-1] + value.shape[-1])


# Formulas by the names of torch's operators, without the underscore of
# in-place variants; called with the result and the arguments.
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

# Operators that multiply and add, and have no formula here: to be named.
UNCOUNTED_ATEN = {
    '_native_multi_head_attention', '_transformer_encoder_layer_fwd',
    '_flash_attention_forward', '_efficient_attention_forward', '_trilinear',
    'mkldnn_rnn_layer', '_thnn_fused_lstm_cell', '_thnn_fused_gru_cell',
    '_fft_r2c', '_fft_c2r', '_fft_c2c'
}
# What mmcv's compiled operators begin with that only select, pool or compare.
HARMLESS_MMCV = ('nms', 'softnms', 'roi_', 'bbox_overlaps')
