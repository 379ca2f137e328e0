"""Nets that DistributedDataParallel refuses; imports only torch, to start fast."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Unused(nn.Conv2d):
    """A convolution, and a parameter that no output depends on."""

    def __init__(self) -> None:
        super().__init__(3, 2, 1)
        self.unused = nn.Parameter(torch.zeros(1))


def train_unused() -> None:
    """Run two steps; DDP notices in the second that the first was incomplete."""
    model = DistributedDataParallel(Unused())
    for _ in range(2):
        model(torch.ones(1, 3, 2, 2)).sum().backward()


def wrap_sync_bn() -> None:
    DistributedDataParallel(nn.Sequential(nn.Conv2d(3, 2, 1), nn.SyncBatchNorm(2)))
