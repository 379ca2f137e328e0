"""Work-arounds for faults of torch's CPU kernels.

tests/functional/test_cpu_workarounds.py checks plain torch for each fault. If such a
check passes unexpectedly, the function here is no longer needed.

==========================  =============================================  ========
function                    fault                                          seen in
==========================  =============================================  ========
:func:`matmul_transposed`   float32 products by MKL use half of an AMD     2.1-2.13
                            processor's vector width; oneDNN uses all
:func:`narrow_conv2d`       oneDNN's strided bfloat16 convolutions read    2.13
                            uninitialised memory if the output is one
                            column wide: for the gradient of the weights,
                            and on processors with AMX for the output
:func:`channels_last`       oneDNN's gradient of tall kernels writes       2.13
                            beyond its memory on maps of 10 to 16 rows
:func:`usual_strides`       the backward pass of a batch norm is wrong     2.11,
                            for channels-last maps with unusual strides;   2.13
                            on CUDA too
==========================  =============================================  ========
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils import _python_dispatch

from .checks import is_captured, is_transformed

# The linear layer that torch.compile uses on a CPU. It is not documented, so its
# absence is allowed for.
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, '_linear_pointwise', None) \
    if torch.backends.mkldnn.is_available() \
    and hasattr(torch.ops.mkldnn, '_linear_pointwise') else None


def matmul_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute a @ b^T + bias for each image with the fastest available library.

    Args:
        a: (B, M, K).
        b: (B, N, K), with any strides.
        bias: (B, N), or None.

    Returns:
        (B, M, N), contiguous.
    """
    if _can_use_onednn(a, b):
        biases = [None] * len(b) if bias is None else bias
        images = [
            _ONEDNN_LINEAR(x.contiguous(), _without_gaps(y), z, 'none', [], '')
            for x, y, z in zip(a, b, biases)
        ]  # (M, N) each
        return images[0].unsqueeze(0) if len(images) == 1 else torch.stack(
            images)
    if bias is None:
        return torch.bmm(a, b.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), a, b.transpose(1, 2))


def _without_gaps(matrix: Tensor) -> Tensor:
    """Copy a matrix unless it or its transpose is contiguous.

    oneDNN is slow for other layouts.
    """
    if matrix.is_contiguous() or matrix.t().is_contiguous():
        return matrix
    return matrix.contiguous()


def _can_use_onednn(a: Tensor, b: Tensor) -> bool:
    return (_ONEDNN_LINEAR is not None and torch.backends.mkldnn.enabled
            and not _has_dispatch_mode()
            and a.device.type == 'cpu' and a.dtype == torch.float32
            and a.numel() > 0 and b.numel() > 0)


def _has_dispatch_mode() -> bool:
    """Tell whether a mode intercepts operators, such as a FLOP counter.

    FLOP counters have a formula for bmm, but none for oneDNN's operator.
    """
    mode = getattr(_python_dispatch, '_get_current_dispatch_mode', None)
    return mode is not None and mode() is not None


def narrow_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int,
                  padding: int) -> Tensor:
    """Compute ``F.conv2d``, in float32 where a CPU's bfloat16 kernels are wrong.

    Args:
        x: (B, C, H, W).
        weight: (D, C, k, k) with an odd k.
        bias: (D, ) or None.
        stride: Stride in both directions.
        padding: k // 2.

    Returns:
        (B, D, ceil(H / stride), ceil(W / stride)).
    """
    out = F.conv2d(x, weight, bias, stride, padding)
    if not _is_narrow(x, out, stride):
        return out
    with torch.autocast('cpu', enabled=False):
        return F.conv2d(x.float(), weight.float(),
                        None if bias is None else bias.float(), stride,
                        padding).to(out.dtype)


def guard_narrow_maps(module: nn.Module) -> None:
    """Make all strided convolutions of a module correct for narrow maps."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride[1] > 1 \
                and conv.kernel_size[1] > 1:
            conv.register_forward_hook(_repeat_in_float32, with_kwargs=True)


def _repeat_in_float32(conv: nn.Conv2d, args: tuple[Tensor, ...],
                       kwargs: dict[str, Tensor], out: Tensor) -> Tensor | None:
    """Repeat a convolution in float32 if its input is narrow: a forward hook."""
    x = args[0] if args else kwargs['input']
    if not _is_narrow(x, out, conv.stride[1]):
        return None
    with torch.autocast('cpu', enabled=False):
        if type(conv) is nn.Conv2d:
            # Not functional_call: under FSDP weight and bias are plain tensors.
            bias = None if conv.bias is None else conv.bias.float()
            again = conv._conv_forward(x.float(), conv.weight.float(), bias)
        else:  # a subclass may do more than a convolution
            parameters = {name: value.float()
                          for name, value in conv.named_parameters()}
            again = functional_call(conv, parameters, x.float())
    return again.to(out.dtype)


def _is_narrow(x: Tensor, out: Tensor, stride: int) -> bool:
    return (out.dtype == torch.bfloat16 and out.device.type == 'cpu'
            and not is_captured() and x.shape[3] <= stride)


def channels_last(x: Tensor) -> Tensor:
    """Convert a map to channels_last on a CPU.

    Convolutions and the matrix products of attention are faster in this format, too.
    Captured graphs are left unchanged, and vmap supports no memory formats.
    """
    if x.device.type != 'cpu' or is_captured() or is_transformed():
        return x
    return x.contiguous(memory_format=torch.channels_last)


def usual_strides(out: Tensor, x: Tensor) -> Tensor:
    """Convert ``out`` to the memory format of ``x``, with torch's default strides.

    Args:
        out: (B, C, H, W) with any strides.
        x: (B, D, H, W).
    """
    if is_transformed():  # vmap supports no memory formats
        return out.contiguous()
    # A clone, because contiguous() does not change the batch stride of one image.
    return out.contiguous() if x.is_contiguous() else out.clone(
        memory_format=torch.channels_last)
