"""Pre-training on a device: results of a CPU, bfloat16, no synchronisation."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from helpers.masked_swins import green_mim, sim_mim

from fpt_plugin.functional.window_groups import (
    attend_in_groups,
    group_windows,
)

pytestmark = pytest.mark.cuda


@pytest.fixture
def swins():
    """Skip where the library cannot be imported."""
    pytest.importorskip('mmdet.models', exc_type=ImportError)


MODELS = dict(
    groups=green_mim,
    uniform=lambda: green_mim(sampling='uniform'),
    simmim=sim_mim)
models = pytest.mark.parametrize('make', MODELS.values(), ids=MODELS)


def step(model, images, visible):
    loss = model.loss(images, visible, model.grid_of(images))
    return loss, torch.autograd.grad(loss, list(model.parameters()))


@models
def test_equals_the_cpu(make, device, swins):
    model, images = make(), torch.randn(2, 3, 96, 128)
    visible = model.draw(2, (3, 4))
    wanted = step(model, images, visible)
    found = step(deepcopy(model).to(device), images.to(device), visible)
    torch.testing.assert_close(found[0].cpu(), wanted[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(found[1], wanted[1]):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)


@models
def test_bfloat16_for_a_hundred_steps(make, device, swins):
    model = make().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images = torch.randn(4, 3, 64, 64, device=device)
    losses = []
    for _ in range(100):
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(images, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    losses = torch.stack(losses)
    assert losses.isfinite().all() and losses[-10:].mean() < losses[:10].mean()


def test_attention_does_not_wait(device, no_sync):
    coords = torch.cartesian_prod(torch.arange(12), torch.arange(12))[::3]
    qkv = torch.randn(2, len(coords), 3, 2, 8, device=device, requires_grad=True)
    table = torch.randn(49, 2, device=device, requires_grad=True)
    groups = group_windows(coords, 4, 2, device)
    with no_sync():
        attend_in_groups(qkv, table, groups).square().sum().backward()
    assert qkv.grad.isfinite().all() and table.grad.isfinite().all()


@models
def test_a_step_does_not_wait(make, device, swins, no_sync):
    model, images = make().to(device), torch.randn(2, 3, 96, 96, device=device)
    model(images, mode='loss')['loss'].backward()
    with no_sync():
        model(images, mode='loss')['loss'].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
