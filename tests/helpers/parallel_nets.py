"""Backbones with necks, and their gradients in one process and in several."""

from __future__ import annotations

from copy import deepcopy

import torch
from mmengine.registry import MODEL_WRAPPERS, MODELS
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from fpt_plugin.engine import wrap_layers
from helpers.oracles import randomise, settle_norms

BATCH, SIDES = 4, (61, 90)
RESNET = dict(depth=18, base_channels=8, norm_eval=True)
NECK = dict(type='FPT', preset='full', in_channels=[8, 16, 32, 64], out_channels=16,
            num_outs=5, pyramid=dict(type='mmdet.FPN'))
NETS = {
    'ResNet, FPT over FPN': dict(
        backbone=dict(type='mmdet.ResNet', **RESNET), neck=NECK),
    'LambdaResNet, FPT over FPN': dict(
        backbone=dict(type='LambdaResNet', depth='26t', norm_eval=True),
        neck=dict(NECK, in_channels=[256, 512, 1024, 2048])),
    'dilated ResNet, FPT with windows over UFP': dict(
        backbone=dict(type='mmseg.ResNet', strides=(1, 2, 1, 1),
                      dilations=(1, 1, 2, 4), **RESNET),
        neck=dict(NECK, num_outs=4, embed_channels=16, key_strides=1, fusion='concat',
                  pyramid=dict(type='UFP', norm_cfg=dict(type='GN', num_groups=4)),
                  grounding_transformer=dict(
                      type='LocalGroundingTransformer', window=5))),
}


class Net(nn.Module):
    """Draw every parameter, the same values in every process.

    Initial zeros would hide the branches that they multiply.
    """

    def __init__(self, backbone: dict, neck: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(deepcopy(backbone))
        self.neck = MODELS.build(deepcopy(neck))
        randomise(self)
        settle_norms(self.backbone, images(torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(x))


def images(dtype: torch.dtype) -> Tensor:
    """Return the whole batch; its halves have different scales."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(BATCH, 3, *SIDES, generator=generator, dtype=torch.float64)
    return (x * torch.linspace(0.5, 2, BATCH)[:, None, None, None]).to(dtype)


def own_share(x: Tensor) -> Tensor:
    """Return the images of this process."""
    return x.chunk(distributed.get_world_size())[distributed.get_rank()]


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Compute the gradients of a mean over the pixels, by parameter names.

    The pass runs twice: where a parameter had no gradient, DistributedDataParallel
    raises in the next forward pass.
    """
    model.train()
    for _ in range(2):
        model.zero_grad()
        sum(out.square().mean() for out in model(x)).backward()
    plain = getattr(model, 'module', model)
    return {name: p.grad for name, p in plain.named_parameters()}


def of_one_process(name: str, dtype: torch.dtype,
                   images_of: slice = slice(None)) -> dict[str, Tensor]:
    return gradients(Net(**NETS[name]).to(dtype), images(dtype)[images_of])


def of_ddp() -> dict[tuple[str, torch.dtype], dict[str, Tensor]]:
    """Compute the gradients of all nets in both precisions, in each process."""
    return {
        (name, dtype): gradients(
            DistributedDataParallel(Net(**NETS[name]).to(dtype)),
            own_share(images(dtype)))
        for name in NETS for dtype in (torch.float32, torch.float64)}


def of_fsdp() -> dict[str, tuple[dict[str, Tensor], list[str]]]:
    """Use mmengine's wrapper; return gradients and the classes of wrapped layers."""
    return {name: _of_fsdp(Net(**net)) for name, net in NETS.items()}


def _of_fsdp(net: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    model = MODEL_WRAPPERS.build(dict(
        type='MMFullyShardedDataParallel', module=net, device_id='cpu',
        auto_wrap_policy=dict(type='wrap_layers')))
    gradients(model, own_share(images(torch.float32)))
    units = [type(m.module).__name__ for m in model.modules()
             if isinstance(m, FullyShardedDataParallel) and m is not model]
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        return {key.replace('_fsdp_wrapped_module.', ''): p.grad.clone()
                for key, p in model.named_parameters()}, units


def of_fully_shard() -> dict[str, tuple[dict[str, Tensor], list[str]]]:
    """Use torch's second FSDP with the same layers."""
    mesh = init_device_mesh('cpu', (distributed.get_world_size(), ))
    found = {}
    for name, net in NETS.items():
        model = Net(**net)
        layers = [m for m in model.modules() if wrap_layers(m, False, 0)]
        units = [type(m).__name__ for m in layers]
        for module in (*layers, model):
            fully_shard(module, mesh=mesh)
        grads = gradients(model, own_share(images(torch.float32)))
        found[name] = {key: grad.full_tensor() for key, grad in grads.items()}, units
    return found
