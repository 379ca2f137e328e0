"""Pre-training on a device: results of a CPU, bfloat16, no synchronisation."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from helpers.learning import descend, without_gradient
from helpers.masked_swins import green_mim, sim_mim
from helpers.pixel_gpts import images, pixel_gpt

from fpt_plugin.functional.window_groups import (
    attend_in_groups,
    group_windows,
)

pytestmark = pytest.mark.cuda

small_gpt = partial(pixel_gpt, dict(depth=2, embed_dims=64, num_heads=2), (8, 8))
OBJECTIVES = ('autoregressive', 'masked')  # of a PixelGPT
MODELS = dict(
    groups=green_mim,
    uniform=partial(green_mim, sampling='uniform'),
    simmim=sim_mim,
    **{name: partial(small_gpt, objective=name) for name in OBJECTIVES})


@pytest.fixture(params=MODELS)
def model_and_images(request):
    """Return a model and images; skip where the library of a Swin is absent."""
    if request.param in OBJECTIVES:
        return MODELS[request.param](), images(3, (8, 8))
    pytest.importorskip('mmdet.models', exc_type=ImportError)
    return MODELS[request.param](), torch.randn(2, 3, 96, 128)


def loss_of(model, x):
    return model(x, mode='loss')['loss']


def step(model, x):
    torch.manual_seed(0)  # masks are drawn on the CPU
    loss = loss_of(model, x)
    return loss, torch.autograd.grad(loss, list(model.parameters()))


def test_equals_the_cpu(model_and_images, device):
    model, x = model_and_images
    wanted = step(model, x)
    found = step(deepcopy(model).to(device), x.to(device))
    torch.testing.assert_close(found[0].cpu(), wanted[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(found[1], wanted[1]):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)


def test_bfloat16_for_a_hundred_steps(model_and_images, device):
    model, x = (part.to(device) for part in model_and_images)

    def loss():
        with torch.autocast(device.type, torch.bfloat16):
            return loss_of(model, x)

    losses = torch.tensor(descend(model, loss, steps=100, lr=1e-3))
    assert losses.isfinite().all() and losses[-10:].mean() < losses[:10].mean()


def test_a_step_does_not_wait(model_and_images, device, no_sync):
    model, x = (part.to(device) for part in model_and_images)
    loss_of(model, x).backward()
    with no_sync():
        loss_of(model, x).backward()
    assert not without_gradient(model, zero=True)


def test_attention_does_not_wait(device, no_sync):
    coords = torch.cartesian_prod(torch.arange(12), torch.arange(12))[::3]
    qkv = torch.randn(2, len(coords), 3, 2, 8, device=device, requires_grad=True)
    table = torch.randn(49, 2, device=device, requires_grad=True)
    groups = group_windows(coords, 4, 2, device)
    with no_sync():
        attend_in_groups(qkv, table, groups).square().sum().backward()
    assert qkv.grad.isfinite().all() and table.grad.isfinite().all()


def test_features_and_generation_of_a_pixel_gpt(device):
    model, x = small_gpt().double(), images(2, (8, 8)).double()
    there = deepcopy(model).to(device)
    for a, b in zip(there.features(x.to(device)), model.features(x)):
        torch.testing.assert_close(a.cpu(), b)
    likeliest = dict(top_k=1)
    wanted = model.complete(x, **likeliest)
    found = there.complete(
        x.to(device), generator=torch.Generator(device).manual_seed(0), **likeliest)
    assert torch.equal(found.cpu(), wanted)
    prompt = there.tokens(x.to(device))[:, :9]
    cached, uncached = (there.generate(
        prompt, generator=torch.Generator(device).manual_seed(3), cached=cached)
        for cached in (True, False))
    assert torch.equal(cached, uncached)
