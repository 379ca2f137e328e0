"""The orders in which position lambdas can be summed, and which is cheapest.

All compute sum_k q[h, k, n] sum_u sum_m E[k, u, m - n] V[u, v, m]:

- **attention**: weights A = q E of the pixels of each window first, then their
  sum of the values. Heads share the values, so this is cheap where there are
  few heads;
- **lambda**: E and V first, the queries last. Cheap where heads are many and
  values are narrow.

Both work in strips of columns, see :mod:`.lambda_strips`. Where each wins with
four heads and 16 query channels (Intel Xeon, one thread, float32, processor time
of lambda over attention):

=====================================  =======  =============
windows of 23 pixels                   forward  with backward
=====================================  =======  =============
C2 of 800x1344, v = 16                 0.85     1.05
C2 of 224x224, v = 16                  0.9      0.9
C3 of 800x1344, v = 32                 1.2      1.4
C4 of 800x1344, v = 64                 1.7      1.9
C5 of 800x1344, v = 128                2.0      2.3
C4, C5 of 512x1024                     1.6-1.8  2.0-2.2
C4, C5 of an output stride of 8        1.5-1.9  1.9
C4, C5 of 224x224                      1.3-1.4  1.7-1.8
C4, C5 of timm's nets, windows of 9    1.0-1.4  1.1-1.5
32 heads, v = 8, 50x84 (AMD)           0.2
=====================================  =======  =============

On an H200 (benchmarks/gpu-nvidia-h200.json) the attention order wins with four
heads on 64x128; on 25x42 and 50x84 all are as far apart as two measurements of
one. An order in the frequency domain won at no size in use.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .lambda_strips import AttentionOrder, LambdaOrder, cell_size

ORDERS = {'attention': AttentionOrder, 'lambda': LambdaOrder}


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
        lambdas: A multiply-add of the lambda order's products.
    """

    entry: float
    pixel: float
    query: float
    lambdas: float


# Measured, device type by device type. cpu: benchmarks/README.md. cuda: an H200
# with torch 2.11, windows of 23, 4 to 32 heads of 8 to 128 channels on 25x42 and
# 50x84 pixels. Four heads: the attention order wins by 1.2 to 3. Other
# accelerators count as CUDA.
COSTS = {
    'cpu': Costs(70, 60_000, 200, 1),
    'cuda': Costs(70, 60_000, 1500, 1.5),
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
    queries = pixels * heads * (depth + channels)
    return {
        'attention': pixels * heads * seen * (depth + channels + costs.entry),
        'lambda': pixels * (costs.lambdas * depth * channels * seen +
                            costs.pixel) + costs.query * queries,
    }
