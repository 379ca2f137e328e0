"""The layers under autocast: digits at unit scale, large activations."""

import copy

import pytest
import torch
from helpers.oracles import maps_of, randomise, relative_error

from fpt_plugin import layers

CHANNELS = 64
FINE, COARSE = (14, 22), (7, 11)
MAPS = dict(
    SelfTransformer=[FINE],
    GroundingTransformer=[FINE, COARSE],
    LocalGroundingTransformer=[FINE, COARSE],
    RenderingTransformer=[COARSE, FINE],
    LambdaLayer=[FINE])
ATTENTION = list(MAPS)[:3]
half = pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])


def build(name):
    return randomise(getattr(layers, name)(CHANNELS)).eval()


def maps_for(name, scale=1.0):
    return [
        scale * x for x in maps_of(*MAPS[name], batch=1, channels=CHANNELS)
    ]


@half
@pytest.mark.parametrize('name', MAPS)
def test_digits_at_unit_scale(name, dtype):
    """As many as autocast leaves, which rounds the projections."""
    layer, maps = build(name), maps_for(name)
    exact = copy.deepcopy(layer).double()
    want = exact(*(x.double() for x in maps))
    with torch.autocast('cpu', dtype=dtype):
        out = layer(*maps)
        out.float().square().mean().backward()
    assert out.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert relative_error(out, want) <= 4 * eps
    want.square().mean().backward()
    grads = {n: p.grad for n, p in exact.named_parameters()}
    floor = 0.1 * max(g.norm().item() for g in grads.values())
    for key, parameter in layer.named_parameters():
        assert relative_error(parameter.grad, grads[key], floor) <= 16 * eps, key


@pytest.mark.parametrize('scale, dtype', [(1e3, torch.float16),
                                          (1e3, torch.bfloat16),
                                          (1e4, torch.bfloat16)])
@pytest.mark.parametrize('name', ATTENTION)
def test_large_activations(name, scale, dtype):
    """The output is a mean of values, so it stays inside their range."""
    layer, maps = build(name), maps_for(name, scale)
    with torch.autocast('cpu', dtype=dtype):
        out = layer(*maps)
        value = layer.value(maps[-1])
    out.float().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    # The local form has zeros outside the map.
    low, high = value.amin().clamp(max=0), value.amax().clamp(min=0)
    room = 2 * torch.finfo(dtype).eps * (high - low)
    assert low - room <= out.min() and out.max() <= high + room


@pytest.mark.parametrize('scale, dtype', [(50, torch.float16),
                                          (1e4, torch.bfloat16)])
def test_large_activations_of_the_rendering_transformer(scale, dtype):
    """The product of two projections limits the activations in float16."""
    layer, maps = build('RenderingTransformer'), maps_for(
        'RenderingTransformer', scale)
    exact = copy.deepcopy(layer).double()(*(x.double() for x in maps))
    with torch.autocast('cpu', dtype=dtype):
        out = layer(*maps)
    assert out.isfinite().all()
    assert relative_error(out, exact) <= 4 * torch.finfo(dtype).eps
