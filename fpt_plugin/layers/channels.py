"""Split the channels of a map."""

from __future__ import annotations

from torch import Tensor


def split_channels(x: Tensor, groups: int) -> Tensor:
    """View (B, C, H, W) as (B, groups, C / groups, H, W)."""
    # Not unflatten: the older ONNX exporter would make the sizes constants.
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
