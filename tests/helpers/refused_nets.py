"""Nets that DistributedDataParallel refuses; torch alone, to start fast."""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Unused(nn.Module):
    """One convolution, and a parameter that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def train_unused() -> None:
    """Two steps: the second one finds that the first was not finished."""
    model = DistributedDataParallel(Unused())
    for _ in range(2):
        model(torch.ones(1, 3, 2, 2)).sum().backward()


def wrap_sync_bn() -> None:
    DistributedDataParallel(
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.SyncBatchNorm(2)))
