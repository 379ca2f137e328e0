"""Channels of a map in groups."""

from __future__ import annotations

from torch import Tensor


def split_channels(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) to (B, groups, C / groups, H, W), a view."""
    # Not unflatten: behind it the older exporter of ONNX takes the size for a
    # constant.
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
