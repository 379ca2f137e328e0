"""The orders of summation of position lambdas, and an estimate of their costs.

Both compute sum_k q[h, k, n] sum_u sum_m E[k, u, m - n] V[u, v, m]:

- **attention**: first the weights A = q E of each window, (h, r * r) numbers a pixel,
  then the weighted sum of the values. Heads share the values, so this is cheap with
  few heads;
- **lambda**: first E and V, which gives the lambdas, (k, v) numbers a pixel, then the
  queries. This is cheap with many heads and few value channels.

Both work in strips of columns, see :mod:`.lambda_strips`. Ratio of their processor
times, lambda over attention, with four heads and 16 query channels (Intel Xeon, one
thread, float32; above 1 attention is faster):

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

On an H200 (benchmarks/gpu-nvidia-h200.json) the attention order is faster with four
heads on 64x128 pixels; on 25x42 and 50x84 the orders differ no more than two
measurements of the same one. An order in the frequency domain was not the fastest at
any size in use.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .lambda_strips import AttentionOrder, LambdaOrder, cell_size

ORDERS = {'attention': AttentionOrder, 'lambda': LambdaOrder}


def crop_embedding(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop an embedding to the offsets that occur in a small map, as a view.

    Args:
        embedding: (k, u, rows, columns).
        size: (H, W) of the map. An offset of H or more rows, or W or more columns,
            leads outside the map from every pixel.

    Returns:
        (k, u, at most 2 H - 1, at most 2 W - 1).
    """
    for dim, side in zip((2, 3), size):
        cut = max(0, (embedding.shape[dim] - (2 * int(side) - 1)) // 2)
        embedding = embedding.narrow(dim, cut, embedding.shape[dim] - 2 * cut)
    return embedding


class Costs(NamedTuple):
    """Costs in multiply-adds of a large matrix product.

    Attributes:
        entry: Writing and copying one entry of the attention order's matrices.
        pixel: Starting the small product of one pixel in the lambda order.
        query: Reading or writing one number of queries and outputs in the lambda
            order.
        lambdas: One multiply-add of the products that make the lambdas.
    """

    entry: float
    pixel: float
    query: float
    lambdas: float


# Measured for each device type. cpu: benchmarks/README.md. cuda: an H200 with torch
# 2.11, windows of 23, 4 to 32 heads of 8 to 128 channels on 25x42 and 50x84 pixels;
# with four heads the attention order is 1.2 to 3 times faster. Other accelerators are
# treated as CUDA.
COSTS = {
    'cpu': Costs(70, 60_000, 200, 1),
    'cuda': Costs(70, 60_000, 1500, 1.5),
}


def estimate_costs(query: tuple[int, ...],
                   value: tuple[int, ...],
                   embedding: tuple[int, ...],
                   device_type: str = 'cpu') -> dict[str, float]:
    """Estimate the cost of each order for an image.

    Args:
        query: Shape (B, h, k, H, W).
        value: Shape (B, u, v, H, W).
        embedding: Shape (k, u, rows, columns).
        device_type: The tensors' device.

    Returns:
        Costs by order, in multiply-adds of a large matrix product.
    """
    costs = COSTS.get(device_type, COSTS['cuda'])
    heads, depth, height, width = query[1:]
    intra, channels = value[1:3]
    rows, columns = embedding[2:]
    pixels = height * width
    # Every pixel of a cell is multiplied by the cell's whole block of values.
    cell_rows, cell_columns = cell_size(height, width, device_type)
    block = intra * (cell_rows + rows - 1) * (cell_columns + columns - 1)
    queries = pixels * heads * (depth + channels)
    return {
        'attention': pixels * heads * block * (depth + channels + costs.entry),
        'lambda': pixels * (costs.lambdas * depth * channels * block +
                            costs.pixel) + costs.query * queries,
    }
