"""Grafts whose parameters FSDP shards, and what trains of them."""

from __future__ import annotations

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from fpt_plugin import FPT, LambdaLayer, TrainGraftOnlyHook

SGD = dict(type='SGD', lr=0.1, weight_decay=0.1)


class Net(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1)
        self.plugin = LambdaLayer(8, 8, residual=True, context_size=3,
                                  num_heads=2, query_depth=4,
                                  norm_cfg=dict(type='GN', num_groups=2))
        self.neck = FPT([8, 8], 8, num_outs=2,
                        pyramid=dict(type='BottomUpPyramid'))

    def forward(self, x):
        x = self.plugin(self.backbone(x))
        return self.neck((x, nn.functional.avg_pool2d(x, 2)))


class Runner:
    """As much of a runner as the hook sees."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def sharded(layers: list[str] | None, use_orig_params: bool) -> nn.Module:
    policy = layers and dict(type='wrap_layers', layers=layers)
    return MODEL_WRAPPERS.build(dict(
        type='MMFullyShardedDataParallel', module=Net(), device_id='cpu',
        auto_wrap_policy=policy, use_orig_params=use_orig_params))


def refusals_and_training() -> tuple[list[str], dict[str, list[str]]]:
    """Both of the below, in one process."""
    return refusals(), trained_names()


def refusals() -> list[str]:
    """Messages of the hook and of the constructor, for several units."""
    found = []
    for layers in (None, ['SelfTransformer'], ['FPT', 'LambdaLayer']):
        model = sharded(layers, use_orig_params=False)
        for use in (
                lambda model=model: TrainGraftOnlyHook().before_train(
                    Runner(model)),
                lambda model=model: build_optim_wrapper(model, dict(
                    optimizer=SGD, graft=dict(lr_mult=2.),
                    constructor='GraftOptimWrapperConstructor'))):
            try:
                use()
            except ValueError as error:
                found.append(str(error))
    return found


def trained_names() -> dict[str, list[str]]:
    """Which parameters get gradients and which move, of single ones."""
    torch.manual_seed(0)
    model = sharded(['SelfTransformer'], use_orig_params=True)
    wrapper = build_optim_wrapper(model, dict(
        optimizer=SGD, graft=dict(lr_mult=2.),
        constructor='GraftOptimWrapperConstructor'))
    TrainGraftOnlyHook().before_train(Runner(model))
    plain = {name: value.clone() for name, value in _whole(model).items()}
    for _ in range(3):
        wrapper.update_params(sum(
            x.square().mean() for x in model(torch.randn(2, 3, 16, 16))))
    whole = _whole(model)
    return dict(
        learning=sorted(_name(n) for n, p in model.named_parameters()
                        if p.requires_grad),
        moved=sorted(n for n in whole if not torch.equal(whole[n], plain[n])),
        new=sorted(n for n in whole if n.startswith('plugin.')
                   or (n.startswith('neck.') and '.pyramid.' not in n)))


def _whole(model: nn.Module) -> dict[str, torch.Tensor]:
    with model.summon_full_params(model):
        return {_name(n): p.detach().clone()
                for n, p in model.named_parameters()}


def _name(name: str) -> str:
    return name.replace('_fsdp_wrapped_module.', '')
