"""Train a model for a few steps, and find parameters that do not learn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def descend(model: nn.Module, loss_of: Callable[[], Tensor], steps: int,
            lr: float) -> list[float]:
    """Take steps of AdamW; return the loss before each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def without_gradient(model: nn.Module, zero: bool = False) -> list[str]:
    """Name the parameters with no finite gradient, or with one of only zeros.

    Args:
        model: After a backward pass.
        zero: Whether a gradient of zeros is enough.
    """
    return [name for name, p in model.named_parameters() if p.requires_grad and (
        p.grad is None or not p.grad.isfinite().all() or not (zero or p.grad.any()))]
