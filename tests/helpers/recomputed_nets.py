"""Nets with all kinds of state, trained with and without activation checkpointing."""

from __future__ import annotations

import copy

import torch
from mmengine.registry import MODELS
from mmengine.runner.activation_checkpointing import (
    turn_on_activation_checkpointing,
)
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import fpt_plugin  # noqa: F401  registers the necks

RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=8)
BACKBONES = {
    'ResNet': dict(RESNET, norm_eval=False),
    'frozen ResNet': dict(RESNET, frozen_stages=1),
    'LambdaResNet': dict(type='LambdaResNet', depth='26t', norm_eval=False),
}


class Scaled(nn.Module):
    """A module whose output depends on all kinds of state that change in training."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(16, momentum=None)
        self.instance = nn.InstanceNorm2d(16, track_running_stats=True)
        self.spectral = nn.utils.spectral_norm(nn.Conv2d(16, 16, 1))
        self.drop = MODELS.build(dict(
            type='mmdet.DropBlock', drop_prob=0.5, block_size=3, warmup_iters=4))
        self.dropout = nn.Dropout(0.25)
        self.register_buffer('mean', torch.zeros(()))

    def forward(self, maps, *, scale):
        out = []
        for x in maps:
            if x.shape[-1] > 3:
                x = self.drop(x)
            x = self.instance(self.norm(self.spectral(self.dropout(x))))
            self.mean += x.detach().mean() + 1
            out.append(x * scale * self.mean.clone())
        return tuple(out)


class Net(nn.Module):

    def __init__(self, backbone='ResNet'):
        super().__init__()
        channels = [256, 512, 1024, 2048] if backbone == 'LambdaResNet' \
            else [8, 16, 32, 64]
        self.backbone = MODELS.build(copy.deepcopy(BACKBONES[backbone]))
        self.neck = MODELS.build(dict(
            type='FPT', in_channels=channels, out_channels=16, num_outs=4,
            pyramid=dict(type='mmdet.FPN', norm_cfg=dict(type='BN'))))
        self.norms = Scaled()
        with torch.no_grad():
            for p in self.parameters():
                scale = 0.3 if p.dim() < 2 else p[0].numel()**-0.5
                p.copy_(torch.randn_like(p) * scale)

    def forward(self, x):
        return sum(y.float().square().mean() for y in self.norms(
            self.neck(self.backbone(x)), scale=2.))


def steps(net, named=None, autocast=False, share=slice(None)):
    """Return the gradients of two passes, and the state of the net afterwards."""
    net.train()
    if named is not None:
        inner = net.module if hasattr(net, 'module') else net
        turn_on_activation_checkpointing(inner, named)
    gradients = []
    for step in range(2):
        torch.manual_seed(step)
        x = torch.randn(4, 3, 64, 64)[share]
        net.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            loss = net(x)
        loss.backward()
        gradients.append({n: p.grad for n, p in net.named_parameters()
                          if p.requires_grad})
    counts = [m.iter_cnt for m in net.modules() if hasattr(m, 'iter_cnt')]
    return gradients, dict(net.named_buffers()), counts


def of_ddp(named):
    """Run the steps in this process, without and with checkpointing."""
    rank = distributed.get_rank()
    found = []
    for parts in (None, named):
        torch.manual_seed(0)
        found.append(steps(DistributedDataParallel(Net()), parts,
                           share=slice(2 * rank, 2 * rank + 2)))
    return found
