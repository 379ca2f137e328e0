"""The two sums of a lambda layer: over all positions, and over a window.

LambdaNetworks, Sec. 3: https://arxiv.org/abs/2102.08602

Position lambdas are k * v numbers for each pixel, several times more than the largest
map of the network. All paths except ``'eager'`` hold only those of a tile, and save
only the three operands for the backward pass.

Shapes: B images, h heads, k channels of a query, u intra depth, v channels of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .checks import (
    accumulation_dtype,
    check_floating,
    check_ranks,
    is_captured,
    is_compiled,
    no_autocast,
    shapes_of,
)
from .lambda_orders import ORDERS, crop_embedding, estimate_costs
from .operators import Operator
from .paths import requested_path

PATHS = (*ORDERS, 'eager')


def content_lambda(key: Tensor, value: Tensor) -> Tensor:
    r"""Compute one lambda for each image: normalised keys times values.

    .. math::
        \lambda^c_{kv} = \sum_u \sum_m \mathrm{softmax}_m(K_{kum}) V_{uvm}

    (LambdaNetworks, Eq. 1).

    Args:
        key: (B, k, u, n), before the softmax over the n positions.
        value: (B, u, v, n).

    Returns:
        (B, k, v) in float32, or float64 for float64 inputs. Softmax and sum are
        computed in this dtype, also under autocast.

    Raises:
        TypeError: An argument is not a floating point tensor.
        ValueError: Shapes do not match, or k, u, v or n is 0.
    """
    tensors = dict(key=key, value=value)
    check_floating(tensors)
    check_ranks(tensors, (4, 4))
    if (value.shape[0], value.shape[1], value.shape[3]) != (
            key.shape[0], key.shape[2], key.shape[3]):
        raise ValueError('key (B, k, u, n) and value (B, u, v, n) must agree in '
                         f'B, u and n, got {shapes_of(tensors)}')
    if 0 in (*key.shape[1:], value.shape[2]):
        raise ValueError(f'k, u, v and n must not be 0, got {shapes_of(tensors)}')
    dtype = accumulation_dtype(key, value)
    with no_autocast(value.device):
        weights = torch.softmax(key.to(dtype), dim=-1)  # (B, k, u, n)
        # One product sums over u and n: (B, k, u * n) @ (B, u * n, v).
        return torch.matmul(
            weights.flatten(2),
            value.to(dtype).transpose(2, 3).flatten(1, 2))


def position_lambda(query: Tensor,
                    value: Tensor,
                    embedding: Tensor,
                    *,
                    path: str | None = None) -> Tensor:
    r"""Apply the lambda of each position to its queries, exactly.

    .. math::
        o_{hvn} = \sum_k q_{hkn} \lambda^p_{kvn}, \quad
        \lambda^p_{kvn} = \sum_u \sum_{m \in \mathcal N(n)} E_{ku,m-n} V_{uvm}

    (LambdaNetworks, Eq. 1 and 2, in the local form of Sec. 3.2). The
    neighbourhood of n is a window of the embedding's size. As in conv2d, values
    outside the map are zero and the embedding is not flipped.

    Args:
        query: (B, h, k, H, W).
        value: (B, u, v, H, W).
        embedding: (k, u, rows, columns), the window's rows and columns odd.
        path: The order of summation: ``'attention'`` (queries and embedding
            first) or ``'lambda'`` (embedding and values first); ``'eager'``:
            plain operators, all lambdas at once. None: the environment
            variable ``FPT_LAMBDA``, else ``'eager'`` while a graph is traced
            or exported, else the cheapest order, see
            :func:`fpt_plugin.functional.lambda_orders.estimate_costs`.

    Returns:
        (B, h, v, H, W) in the dtype of ``value``. Sums are computed in float32
        (float64 for float64 inputs), also under autocast.

    Raises:
        TypeError: An argument is not a floating point tensor.
        ValueError: Shapes do not match, the embedding has an even side, or
            ``path`` is unknown.
    """
    _check(query, value, embedding)
    path = choose_order(path, query, value, embedding)
    if path == 'eager':
        return _eager(query, value, embedding)
    return _ordered(query, value, embedding, path)


def _check(query: Tensor, value: Tensor, embedding: Tensor) -> None:
    tensors = dict(query=query, value=value, embedding=embedding)
    check_floating(tensors)
    check_ranks(tensors, (5, 5, 4))
    if (query.shape[0], *query.shape[3:]) != (value.shape[0],
                                              *value.shape[3:]):
        raise ValueError('query (B, h, k, H, W) and value (B, u, v, H, W) must '
                         f'agree in B, H and W, got {shapes_of(tensors)}')
    if embedding.shape[:2] != (query.shape[2], value.shape[1]):
        raise ValueError('embedding must be (k, u, rows, columns) with the k of '
                         f'query and the u of value, got {shapes_of(tensors)}')
    if 0 in (*query.shape[1:], *value.shape[1:]):
        raise ValueError(f'h, k, u, v, H and W must not be 0, got {shapes_of(tensors)}')
    if any(side % 2 == 0 for side in embedding.shape[2:]):
        raise ValueError('embedding must have odd sides, because its window has a '
                         f'centre pixel, got {shapes_of(tensors)}')


def choose_order(path: str | None, query: Tensor, value: Tensor,
                 embedding: Tensor) -> str | None:
    """Choose how a call is computed.

    Returns:
        The path, or None in a compiled graph, which chooses the cheapest order for
        each size when it runs.

    Raises:
        ValueError: The path is unknown.
    """
    path = requested_path(path, 'FPT_LAMBDA', PATHS)
    if path:
        return path
    # The number of tiles would be fixed at the captured size.
    if is_captured():
        return 'eager'
    return None if is_compiled() else _cheapest(query, value, embedding)


def _cheapest(query: Tensor, value: Tensor, embedding: Tensor) -> str:
    embedding = crop_embedding(embedding, query.shape[3:])
    costs = estimate_costs(query.shape, value.shape, embedding.shape,
                           query.device.type)
    return min(costs, key=costs.get)


def _eager(query: Tensor,
           value: Tensor,
           embedding: Tensor,
           order: str | None = None) -> Tensor:
    """Compute the same with plain operators and all lambdas at once."""
    dtype = accumulation_dtype(query, value, embedding)
    with no_autocast(value.device):
        out = reference.position_lambda(
            query.to(dtype), value.to(dtype), embedding.to(dtype))
    return out.to(value.dtype)


def _order(query: Tensor, value: Tensor, embedding: Tensor, order: str | None):
    """Return the class of an order; None is the cheapest."""
    order = order or _cheapest(query, value, embedding)
    return ORDERS[order]


def _forward(query, value, embedding, order):
    """Compute the output in one of the orders: (B, h, v, H, W)."""
    dtype = accumulation_dtype(query, value, embedding)
    with no_autocast(value.device):
        out = _order(query, value, embedding, order).forward(
            query.to(dtype), value.to(dtype),
            crop_embedding(embedding.to(dtype), query.shape[3:]))
    # The result of an order is a view; autograd forbids in-place changes of it.
    return _empty(query, value, embedding, order).copy_(out)


def _empty(query, value, embedding, order):
    """Return an uninitialised output (B, h, v, H, W), with channels last in memory."""
    batch, heads, _, height, width = query.shape
    return torch.empty_permuted(
        (batch, heads, value.shape[2], height, width), (0, 3, 4, 1, 2),
        dtype=value.dtype,
        device=value.device)


def _backward(grad, query, value, embedding, order):
    """Compute the gradients of query, value and embedding."""
    dtype = accumulation_dtype(query, value, embedding)
    with no_autocast(value.device):
        whole = embedding.new_zeros(embedding.shape, dtype=dtype)
        grad_q, grad_v, part = _order(
            query, value, embedding, order).backward(
                query.to(dtype), value.to(dtype),
                crop_embedding(embedding.to(dtype), query.shape[3:]), grad.to(dtype))
        # Offsets that lead outside the map from every pixel have the gradient 0.
        crop_embedding(whole, query.shape[3:]).copy_(part)
    return (grad_q.to(query.dtype), grad_v.to(value.dtype),
            whole.to(embedding.dtype))


_ordered = Operator('position_lambda', dict(query=5, value=5, embedding=4),
                    'str? order', _forward, _backward, _eager, _empty)
