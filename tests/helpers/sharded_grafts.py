"""Grafts with parameters sharded by FSDP, and which of them train."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from fpt_plugin import FPT, LambdaLayer, TrainGraftOnlyHook


class Net(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1)
        self.plugin = LambdaLayer(
            8, 8, residual=True, context_size=3, num_heads=2, query_depth=4,
            norm_cfg=dict(type='GN', num_groups=2))
        self.neck = FPT([8, 8], 8, num_outs=2, pyramid=dict(type='BottomUpPyramid'))

    def forward(self, x):
        x = self.plugin(self.backbone(x))
        return self.neck((x, nn.functional.avg_pool2d(x, 2)))


def sharded(layers: list[str] | None, use_orig_params: bool) -> nn.Module:
    policy = layers and dict(type='wrap_layers', layers=layers)
    return MODEL_WRAPPERS.build(dict(
        type='MMFullyShardedDataParallel', module=Net(), device_id='cpu',
        auto_wrap_policy=policy, use_orig_params=use_orig_params))


def train_only_graft(model: nn.Module) -> None:
    TrainGraftOnlyHook().before_train(SimpleNamespace(model=model))


def optim_wrapper_of(model: nn.Module):
    return build_optim_wrapper(model, dict(
        constructor='GraftOptimWrapperConstructor', graft=dict(lr_mult=2.),
        optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1)))


def refusals_and_training() -> tuple[list[str], dict[str, list[str]]]:
    """Run both of the following functions, to start processes only once."""
    return refusals(), trained_names()


def refusals() -> list[str]:
    """Return the errors of the hook and of the constructor for flat parameters."""
    found = []
    for layers in (None, ['SelfTransformer'], ['FPT', 'LambdaLayer']):
        model = sharded(layers, use_orig_params=False)
        for use in (train_only_graft, optim_wrapper_of):
            try:
                use(model)
            except ValueError as error:
                found.append(str(error))
    return found


def trained_names() -> dict[str, list[str]]:
    """Return which original parameters get gradients, and which change."""
    torch.manual_seed(0)
    model = sharded(['SelfTransformer'], use_orig_params=True)
    wrapper = optim_wrapper_of(model)
    train_only_graft(model)
    before = _whole(model)
    for _ in range(3):
        wrapper.update_params(sum(
            x.square().mean() for x in model(torch.randn(2, 3, 16, 16))))
    after = _whole(model)
    return dict(
        learning=sorted(_name(n) for n, p in model.named_parameters()
                        if p.requires_grad),
        moved=sorted(n for n in after if not torch.equal(after[n], before[n])),
        new=sorted(n for n in after if n.startswith('plugin.')
                   or (n.startswith('neck.') and '.pyramid.' not in n)))


def _whole(model: nn.Module) -> dict[str, torch.Tensor]:
    with model.summon_full_params(model):
        return {_name(n): p.detach().clone() for n, p in model.named_parameters()}


def _name(name: str) -> str:
    return name.replace('_fsdp_wrapped_module.', '')
