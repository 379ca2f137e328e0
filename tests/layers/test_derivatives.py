"""Layers and networks with gradient penalties, torch.func and the meta device."""

import pytest
import torch
from helpers.oracles import maps_of, randomise, relative_error
from torch.func import functional_call, jvp, vmap
from torch.func import grad as func_grad

from fpt_plugin import (
    FPT,
    GroundingTransformer,
    LambdaLayer,
    LambdaResNet,
    LocalGroundingTransformer,
    RenderingTransformer,
    SelfTransformer,
)


class Summed(torch.nn.Module):
    """Sum the outputs of a module that takes single maps."""

    def __init__(self, module, listed=False):
        super().__init__()
        self.module, self.listed = module, listed

    def forward(self, *maps):
        outs = self.module(maps) if self.listed else self.module(*maps)
        outs = [outs] if isinstance(outs, torch.Tensor) else outs
        return sum(out.sum() for out in outs)


FINE, COARSE = (6, 7), (3, 4)
CASES = {
    'ST': lambda: (Summed(SelfTransformer(12)), maps_of(FINE)),
    'GT': lambda: (Summed(GroundingTransformer(12)), maps_of(FINE, COARSE)),
    'LGT': lambda: (Summed(LocalGroundingTransformer(12)),
                    maps_of(FINE, COARSE)),
    'RT': lambda: (Summed(RenderingTransformer(12)), maps_of(COARSE, FINE)),
    'lambda': lambda: (Summed(LambdaLayer(12, num_heads=2, query_depth=4,
                                          context_size=5)), maps_of(FINE)),
    'FPT': lambda: (Summed(FPT(12, 12, pyramid=None, num_levels=2), listed=True),
                    maps_of(FINE, COARSE)),
    'LambdaResNet': lambda: (Summed(LambdaResNet(depth='26t', out_indices=(3, ))),
                             maps_of((32, 40), channels=3)),
}
every_case = pytest.mark.parametrize('name', CASES)


def case(name):
    module, maps = CASES[name]()
    if name != 'LambdaResNet':
        randomise(module)
    return module.double().eval(), [x.double() for x in maps]


@every_case
def test_gradient_penalty(name, monkeypatch):
    """A linear loss: the incoming gradient needs no gradient."""
    module, maps = case(name)
    found = []
    for path in ('', 'eager'):
        monkeypatch.setenv('FPT_ATTENTION', path)
        monkeypatch.setenv('FPT_LAMBDA', path)
        leaves = [x.clone().requires_grad_() for x in maps]
        first = torch.autograd.grad(module(*leaves), leaves, create_graph=True)
        module.zero_grad()
        sum(x.square().sum() for x in first).backward()
        found.append([p.grad.clone() for p in module.parameters()
                      if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert any(x.any() for x in found[0])
    for got, want in zip(*found):
        assert relative_error(got, want, floor=1e-6) <= 1e-8


@every_case
def test_gradients_of_each_image(name):
    module, maps = case(name)
    parameters = {key: p.detach() for key, p in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def loss(parameters, *maps):
        return functional_call(module, (parameters, buffers), maps)

    each = vmap(func_grad(loss), in_dims=(None, *[0] * len(maps)))(
        parameters, *(x.unsqueeze(1) for x in maps))
    for i in range(2):
        want = func_grad(loss)(parameters, *(x[i:i + 1] for x in maps))
        floor = 0.1 * max(x.norm().item() for x in want.values())
        for key in want:
            assert relative_error(each[key][i], want[key], floor) <= 1e-9
    out, tangent = jvp(lambda *x: loss(parameters, *x), tuple(maps), tuple(maps))
    assert out.isfinite() and tangent.isfinite()


@every_case
def test_meta_device(name):
    module, maps = case(name)
    module.to('meta')
    leaves = [x.to('meta').requires_grad_() for x in maps]
    module(*leaves).backward()
    assert all(x.grad.shape == x.shape for x in leaves)
