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
    RenderingTransformer=[COARSE, FINE])
ATTENTION = [name for name in MAPS if name != 'RenderingTransformer']
half = pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])


def build(name):
    return randomise(getattr(layers, name)(CHANNELS))


def maps_for(name, scale=1.0):
    return [
        scale * x for x in maps_of(*MAPS[name], batch=1, channels=CHANNELS)
    ]


@half
@pytest.mark.parametrize('name', MAPS)
def test_digits_at_unit_scale(name, dtype):
    """As many as the projections, which autocast rounds, leave."""
    layer, maps = build(name), maps_for(name)
    exact = copy.deepcopy(layer).double()(*(x.double() for x in maps))
    with torch.autocast('cpu', dtype=dtype):
        out = layer(*maps)
    assert out.dtype == dtype
    assert relative_error(out, exact) <= 4 * torch.finfo(dtype).eps


@half
@pytest.mark.parametrize('name', MAPS)
def test_gradients_at_unit_scale(name, dtype):
    layer, maps = build(name), maps_for(name)
    exact = copy.deepcopy(layer).double()
    exact(*(x.double() for x in maps)).square().mean().backward()
    with torch.autocast('cpu', dtype=dtype):
        layer(*maps).float().square().mean().backward()
    want = {n: p.grad for n, p in exact.named_parameters()}
    floor = 0.1 * max(g.norm().item() for g in want.values())
    for parameter_name, parameter in layer.named_parameters():
        error = relative_error(parameter.grad, want[parameter_name], floor)
        assert error <= 16 * torch.finfo(dtype).eps, parameter_name


@pytest.mark.parametrize('scale, dtype', [(1e3, torch.float16),
                                          (1e3, torch.bfloat16),
                                          (1e4, torch.bfloat16)])
@pytest.mark.parametrize('name', ATTENTION)
def test_large_activations(name, scale, dtype):
    """The output is a mean of values: inside their range, whatever the keys."""
    layer, maps = build(name), maps_for(name, scale)
    with torch.autocast('cpu', dtype=dtype):
        out = layer(*maps)
        value = layer.value(maps[-1])
    out.float().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    # outside of its map the local form sees zeros
    low, high = value.amin().clamp(max=0), value.amax().clamp(min=0)
    room = 2 * torch.finfo(dtype).eps * (high - low)
    assert low - room <= out.min() and out.max() <= high + room


@pytest.mark.parametrize('scale, dtype', [(50, torch.float16),
                                          (1e4, torch.bfloat16)])
def test_large_activations_of_the_rendering_transformer(scale, dtype):
    """It multiplies two projections: in float16 up to the documented bound."""
    layer, maps = build('RenderingTransformer'), maps_for(
        'RenderingTransformer', scale)
    exact = copy.deepcopy(layer).double()(*(x.double() for x in maps))
    with torch.autocast('cpu', dtype=dtype):
        out = layer(*maps)
    assert out.isfinite().all()
    assert relative_error(out, exact) <= 4 * torch.finfo(dtype).eps
    if dtype == torch.float16:
        assert f'up to about {scale} ' in layers.RenderingTransformer.__doc__
