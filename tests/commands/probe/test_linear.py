"""Linear classifiers and their figures."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fpt_plugin.commands.probe.features import draw_pixels
from fpt_plugin.commands.probe.linear import (
    accuracy,
    confusion,
    fit_linear,
    mean_iou,
)


def drawn(count, seed=0):
    """Features of several scales, and a concept that is linear in them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=generator)
    direction = torch.randn(12, 3, generator=torch.Generator().manual_seed(9))
    labels = (x @ direction).argmax(1)
    return x * torch.logspace(-3, 3, 12) + 7, labels


def share(classify, x, labels):
    return (classify(x).argmax(1) == labels).float().mean().item()


def test_finds_what_is_linear_and_nothing_else():
    (x, labels), (other, wanted) = drawn(2000), drawn(1000, 1)
    assert share(fit_linear(x, labels, 3, 1e-5), other, wanted) > 0.97
    noise = torch.randn(2000, 12, generator=torch.Generator().manual_seed(5))
    found = share(fit_linear(noise, labels, 3), noise.flip(0)[:1000], wanted)
    most = wanted.bincount().max().item() / 1000
    assert found < most + 0.06


def test_is_the_minimum():
    """The gradient of the mean loss and the penalty is zero, in float64."""
    x, labels = drawn(300)
    x = x.double()
    classify = fit_linear(x, labels, 3, weight_decay=0.1, iterations=1000)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    scores = classify(x)
    centre = classify(x.mean(0, keepdim=True))
    weight = torch.linalg.lstsq(z, scores - centre).solution
    slope = scores.softmax(1) - F.one_hot(labels, 3)
    gradient = z.T @ slope / len(x) + 0.1 * weight
    assert gradient.abs().max() < 1e-3
    assert (slope.mean(0)).abs().max() < 1e-3


def test_a_feature_that_never_changes():
    x, labels = drawn(200)
    x[:, 3] = 5.
    classify = fit_linear(x, labels, 3)
    other = x.clone()
    other[:, 3] = 1e6
    assert torch.equal(classify(x), classify(other))


def test_figures_by_hand():
    counts = confusion(torch.tensor([0, 1, 1, 0, 2]), torch.tensor([0, 1, 0, 0, 2]), 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0] * 4]
    assert accuracy(counts) == pytest.approx(4 / 5)
    assert mean_iou(counts) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_drawn_pixels_have_labels():
    labels = torch.tensor([[-1, 3, -1, 0, 1, 2], [-1, -1, -1, -1, 4, -1]])
    chosen = draw_pixels(labels, 3, seed=0)
    assert chosen.sum(1).tolist() == [3, 1] and (labels[chosen] >= 0).all()
    assert torch.equal(chosen, draw_pixels(labels, 3, seed=0))
    assert any(not torch.equal(chosen, draw_pixels(labels, 3, seed=s))
               for s in range(1, 9))
    assert torch.equal(draw_pixels(labels, 6, 0), labels >= 0)
