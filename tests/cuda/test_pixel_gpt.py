"""PixelGPT on a device: the numbers of a CPU, bfloat16, no waiting."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from helpers.pixel_gpts import images, pixel_gpt

from fpt_plugin import PixelGPT

pytestmark = pytest.mark.cuda

SIZE = dict(depth=2, embed_dims=64, num_heads=2)
objectives = pytest.mark.parametrize('objective', ['autoregressive', 'masked'])


def step(model, x):
    torch.manual_seed(0)  # masks are drawn on the CPU
    loss = model(x, mode='loss')['loss']
    return loss, torch.autograd.grad(loss, list(model.parameters()))


@objectives
def test_equals_the_cpu(objective, device):
    model, x = pixel_gpt(SIZE, (8, 8), objective=objective), images(3, (8, 8))
    wanted = step(model, x)
    found = step(deepcopy(model).to(device), x.to(device))
    torch.testing.assert_close(found[0].cpu(), wanted[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(found[1], wanted[1]):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)


def test_features_and_generation(device):
    model, x = pixel_gpt(SIZE, (8, 8)).double(), images(2, (8, 8)).double()
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


@objectives
def test_bfloat16_for_a_hundred_steps(objective, device):
    torch.manual_seed(0)
    x = images(4, (8, 8)).to(device)
    model = PixelGPT(SIZE, 8, 6, objective, palette=pixel_gpt().palette.colours)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(100):
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(x, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    losses = torch.stack(losses)
    assert losses.isfinite().all() and losses[-10:].mean() < losses[:10].mean()


@objectives
def test_a_step_does_not_wait(objective, device, no_sync):
    model = pixel_gpt(SIZE, (8, 8), objective=objective).to(device)
    x = images(3, (8, 8)).to(device)
    model(x, mode='loss')['loss'].backward()
    with no_sync():
        model(x, mode='loss')['loss'].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
