"""Linear classifiers of features, and their accuracy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_linear(features: Tensor, labels: Tensor, classes: int,
               weight_decay: float = 1e-3, iterations: int = 200
               ) -> Callable[[Tensor], Tensor]:
    """Fit a logistic regression by L-BFGS; it has one minimum.

    Features are standardised by the mean and deviation of these ones.

    Args:
        features: (n, C).
        labels: (n,), in 0..classes - 1.
        classes: Number of classes.
        weight_decay: Factor of half the squared weights.
        iterations: The most.

    Returns:
        A function from features (m, C) to scores (m, classes).
    """
    mean = features.mean(0)
    deviation = features.std(0, correction=0)
    # A constant feature gets no weight.
    scale = torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.)
    x = (features - mean) * scale
    weight = x.new_zeros(x.shape[1], classes, requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, history_size=10,
        tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn='strong_wolfe')

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.addmm(bias, x, weight), labels) \
            + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weight, bias = weight.detach(), bias.detach()
    return lambda features: torch.addmm(bias, (features - mean) * scale, weight)


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count true (rows) and predicted classes: (classes, classes)."""
    return torch.bincount(
        labels * classes + predicted, minlength=classes**2).view(classes, classes)


def accuracy(counts: Tensor) -> float:
    """Compute the share of correct predictions of :func:`confusion`'s counts."""
    return (counts.trace() / counts.sum()).item()


def mean_iou(counts: Tensor) -> float:
    """Compute the mean IoU of the classes that occur or are predicted."""
    hits = counts.diagonal()
    unions = counts.sum(0) + counts.sum(1) - hits
    return (hits[unions > 0] / unions[unions > 0]).mean().item()
