"""The orders in which position lambdas can be summed, and which is cheapest.

All compute sum_k q[h, k, n] sum_u sum_m E[k, u, m - n] V[u, v, m]:

- **attention**: weights A = q E of the pixels of each window first, then their
  sum of the values. Heads share the values, so this is cheap where there are
  few heads;
- **lambda**: E and V first, the queries last. Cheap where heads are many and
  values are narrow;
- **fft**: the same as lambda, whose correlation of E and V is a product in the
  frequency domain. Cheap where windows are large.

The first two work in strips of columns, see :mod:`.lambda_strips`.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor

from .lambda_fft import FourierOrder, fft_size
from .lambda_strips import AttentionOrder, LambdaOrder, cell_size

ORDERS = {
    'attention': AttentionOrder,
    'lambda': LambdaOrder,
    'fft': FourierOrder
}


def cropped(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of an embedding that windows of a small map reach, as a view.

    Args:
        embedding: (k, u, rows, columns).
        size: (H, W); offsets of H and more rows lead outside from anywhere.

    Returns:
        (k, u, at most 2 H - 1, at most 2 W - 1).
    """
    for dim, side in zip((2, 3), size):
        cut = max(0, (embedding.shape[dim] - (2 * int(side) - 1)) // 2)
        embedding = embedding.narrow(dim, cut, embedding.shape[dim] - 2 * cut)
    return embedding


class Costs(NamedTuple):
    """What moving numbers costs, in multiply-adds of a large product.

    Attributes:
        entry: An entry of the attention order's matrices, written and copied.
        pixel: A pixel of the lambda order, a small product of its own.
        query: A number of the lambda order's queries and outputs.
        frequency: A frequency, transformed there and back.
        transformed: A number of the Fourier order's queries and outputs.
        lambdas: A multiply-add of the lambda order's products.
    """

    entry: float
    pixel: float
    query: float
    frequency: tuple[float, float]
    transformed: float
    lambdas: float


# Measured, device type by device type. cpu: benchmarks/README.md. cuda: an H200
# with torch 2.11, windows of 23, 4 to 32 heads of 8 to 128 channels on 25x42 and
# 50x84 pixels; the cheapest by this estimate was the fastest at all eight. Four
# heads: the attention order wins by 1.2 to 3; 16 and more: the Fourier order, by
# 1.4 to 4. Other accelerators count as CUDA.
COSTS = {
    'cpu': Costs(70, 60_000, 200, (140, 150), 1200, 1),
    'cuda': Costs(70, 60_000, 1500, (140, 150), 1200, 1.5),
}


def estimate(query: tuple[int, ...],
             value: tuple[int, ...],
             embedding: tuple[int, ...],
             device_type: str = 'cpu') -> dict[str, float]:
    """What each order costs an image, in multiply-adds of a large product.

    Args:
        query: Shape (B, h, k, H, W).
        value: Shape (B, u, v, H, W).
        embedding: Shape (k, u, rows, columns).
        device_type: Of the tensors.
    """
    costs = COSTS.get(device_type, COSTS['cuda'])
    heads, depth, height, width = query[1:]
    intra, channels = value[1:3]
    rows, columns = embedding[2:]
    pixels = height * width
    # What cells see, that is what is computed for each of their pixels.
    down, right = cell_size(height, width, device_type)
    seen = intra * (down + rows - 1) * (right + columns - 1)
    frequencies = prod(fft_size(height, width, rows, columns))
    queries = pixels * heads * (depth + channels)
    each, once = costs.frequency
    return {
        'attention': pixels * heads * seen * (depth + channels + costs.entry),
        'lambda': pixels * (costs.lambdas * depth * channels * seen +
                            costs.pixel) + costs.query * queries,
        'fft': frequencies * depth * channels * (each * intra + once) +
               costs.transformed * queries,
    }
