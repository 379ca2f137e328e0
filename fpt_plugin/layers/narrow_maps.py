"""Strided convolutions of maps that are narrower than the stride."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.checks import is_captured


def widen(x: Tensor, stride: int) -> Tensor:
    """Append zeros to a map until it has ``stride`` columns, on a CPU.

    oneDNN's gradient of a convolution's weight in bfloat16 reads memory that
    nobody wrote where a map has fewer columns than the stride has (seen with
    torch 2.13): it comes out huge or as NaN. Convolutions that are padded to
    keep the size at a stride of 1 see these zeros anyway, so their output is
    the same.

    Args:
        x: (B, C, H, W).
        stride: Horizontal stride of the convolution.

    Returns:
        (B, C, H, max(W, stride)).
    """
    if x.device.type != 'cpu' or is_captured() or x.shape[3] >= stride:
        return x
    return F.pad(x, (0, stride - x.shape[3]))


def widen_inputs(module: nn.Module) -> None:
    """Let all strided convolutions in a module take narrow maps."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride[1] > 1 \
                and conv.kernel_size[1] > 1:
            conv.register_forward_pre_hook(_widen_input)


def _widen_input(conv: nn.Conv2d, args: tuple[Tensor]) -> tuple[Tensor]:
    return widen(args[0], conv.stride[1]),
