"""Window attention over the visible tokens of a masked map.

Masked image modelling leaves most tokens of a map out, so the windows of a Swin
Transformer hold different numbers of tokens. They are packed into groups of equal
size; attention in a group is masked to tokens of one window (GreenMIM,
https://arxiv.org/abs/2205.13515, Sec. 3.2). Packing is first-fit decreasing: it
needs as few groups as the paper's knapsack within two percent, in a hundredth of
the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import accumulation_dtype, check_floating, check_ranks, shapes_of


@dataclass(frozen=True)
class WindowGroups:
    """Where the N tokens of a map go: G groups of S slots.

    Attributes:
        slots: (G, S), the token in each slot; 0 where a slot is empty.
        places: (N,), the slot of each token, counted through all groups.
        pairs: (G, S, S), for each query and key the row of the table of relative
            position biases. Behind its last row come two more: the first is for
            keys of another window, the second for empty slots among themselves.
        window: Side of a window.
    """

    slots: Tensor
    places: Tensor
    pairs: Tensor
    window: int


def group_windows(coords: Tensor,
                  window: int,
                  shift: int = 0,
                  device: torch.device | None = None) -> WindowGroups:
    """Pack the windows of some tokens of a map into groups.

    Windows are those of a Swin Transformer: shifted ones are not joined across
    the border of the map.

    Args:
        coords: (N, 2), row and column of each token. N is at least 1. Packing
            runs on the CPU, so they are best there.
        window: Side of a window.
        shift: By how much windows are moved up and left, less than ``window``.
        device: Where the tokens are; None: where ``coords`` is.

    Raises:
        ValueError: An argument is out of its range.
    """
    if coords.dim() != 2 or coords.shape[1] != 2 or not len(coords):
        raise ValueError('coords must be (N, 2) with at least one token, got '
                         f'{tuple(coords.shape)}')
    if not 0 <= shift < window:
        raise ValueError('window and shift must satisfy 0 <= shift < window, got '
                         f'window={window}, shift={shift}')
    count = len(coords)
    windows, counts = count_tokens(coords, window, shift)
    # Few tokens are one group: one small product costs less than many.
    size = count if count <= window**2 else int(counts.max())
    group_of = torch.tensor(
        first_fit_decreasing(counts.tolist(), size), device=coords.device)[windows]
    order = group_of.argsort(stable=True)  # tokens, group by group
    group_of = group_of[order]
    members = group_of.bincount()
    starts = members.cumsum(0) - members
    filled = group_of * size + torch.arange(
        count, device=coords.device) - starts[group_of]  # slot of each of order
    slots = coords.new_zeros(len(members) * size)
    slots[filled] = order
    places = torch.empty_like(order)
    places[order] = filled
    inside = torch.full_like(slots, -1)  # the window of each slot, if any
    inside[filled] = windows[order]
    slots, inside, places, coords = (
        tensor.to(device or coords.device, non_blocking=True)
        for tensor in (slots.view(-1, size), inside.view(-1, size), places, coords))
    return WindowGroups(slots, places, _pairs(coords[slots], inside, window),
                        window)


def count_tokens(coords: Tensor, window: int,
                 shift: int = 0) -> tuple[Tensor, Tensor]:
    """Find the windows of some tokens of a map.

    Args:
        coords: (N, 2), row and column of each token.
        window: Side of a window.
        shift: By how much windows are moved up and left.

    Returns:
        The window of each token (N,), and how many tokens each window has.
    """
    rows, columns = ((coords + window - shift) // window).unbind(1)
    return torch.unique(
        rows * (columns.max() + 1) + columns,
        return_inverse=True,
        return_counts=True)[1:]


def _pairs(coords: Tensor, inside: Tensor, window: int) -> Tensor:
    """Rows of the table: (G, S, 2) and (G, S) to (G, S, S)."""
    side = 2 * window - 1
    ids = coords[..., 0] * side + coords[..., 1]  # differences tell both apart
    rows = ids[:, :, None] - ids[:, None] + side**2 // 2
    rows = rows.where(inside[:, :, None] == inside[:, None], side**2)
    empty = inside < 0
    return rows.masked_fill_(empty[:, :, None] & empty[:, None], side**2 + 1)


def first_fit_decreasing(counts: Sequence[int], size: int) -> list[int]:
    """Pack items into groups: the largest first, each where it fits first.

    Args:
        counts: What each item takes, at most ``size``.
        size: What a group holds.

    Returns:
        The group of each item.
    """
    groups, room = [0] * len(counts), []
    group, last = 0, None
    for item in sorted(range(len(counts)), key=counts.__getitem__, reverse=True):
        count = counts[item]
        if count != last:  # a smaller one may fit where the last did not
            group, last = 0, count
        while group < len(room) and room[group] < count:
            group += 1
        if group == len(room):
            room.append(size)
        room[group] -= count
        groups[item] = group
    return groups


def pack_windows(counts: Sequence[int], size: int | None = None) -> list[list[int]]:
    """Pack windows into groups, first-fit decreasing.

    Args:
        counts: Tokens of each window.
        size: Most tokens of a group; None is the largest count.

    Returns:
        The numbers of the windows in each group; a window without tokens is in
        none.

    Raises:
        ValueError: A count is negative, or more than ``size``.
    """
    counts = [int(count) for count in counts]
    most = max(counts, default=0)
    size = most if size is None else size
    if min(counts, default=0) < 0 or most > size:
        raise ValueError('counts must be from 0 to size='
                         f'{size}, got {min(counts)} to {most}')
    filled = [window for window, count in enumerate(counts) if count]
    packed = first_fit_decreasing([counts[window] for window in filled], size)
    groups: list[list[int]] = [[] for _ in range(max(packed, default=-1) + 1)]
    for window, group in zip(filled, packed):
        groups[group].append(window)
    return groups


def grouped_window_attention(query: Tensor,
                             key: Tensor,
                             value: Tensor,
                             plan: WindowGroups,
                             bias: Tensor,
                             *,
                             scale: float | None = None,
                             dropout: float = 0.) -> Tensor:
    """Attention of each token to the tokens of its window.

    Args:
        query: (B, h, N, d), of N tokens.
        key: Likewise.
        value: Likewise.
        plan: Of :func:`group_windows` for the tokens.
        bias: The table of a Swin Transformer's window of side w, by the relative
            position of query and key, row by row: ((2w - 1)^2, h) or
            (h, (2w - 1)^2).
        scale: Factor of the products; None is 1 / sqrt(d).
        dropout: Probability that a weight is zeroed.

    Returns:
        (B, h, N, d).

    Raises:
        TypeError: A tensor is not floating point.
        ValueError: Shapes do not fit.
    """
    operands = dict(query=query, key=key, value=value)
    check_floating(dict(operands, bias=bias))
    check_ranks(operands, (4, 4, 4))
    if not query.shape == key.shape == value.shape:
        raise ValueError('query, key and value must have one shape, got '
                         f'{shapes_of(operands)}')
    rows = (2 * plan.window - 1)**2
    if bias.shape == (query.shape[1], rows) and bias.shape[0] != rows:
        bias = bias.t()
    # (B, h, N, d) to (B, N, 3, h, d)
    qkv = torch.stack([x.transpose(1, 2) for x in (query, key, value)], dim=2)
    out = attend_in_groups(qkv, bias, plan, scale=scale, dropout=dropout)
    return out.unflatten(2, (query.shape[1], -1)).transpose(1, 2)


def attend_in_groups(qkv: Tensor,
                     table: Tensor,
                     groups: WindowGroups,
                     *,
                     scale: float | None = None,
                     dropout: float = 0.) -> Tensor:
    """:func:`grouped_window_attention` in the layout of a Swin Transformer.

    Args:
        qkv: (B, N, 3, h, d), queries, keys and values of h heads.
        table: ((2w - 1)^2, h), the biases of a Swin Transformer's window of side
            w by the relative position of query and key, row by row.
        groups: The plan for the N tokens.
        scale: Factor of the products; None is 1 / sqrt(d).
        dropout: Probability that a weight is zeroed.

    Returns:
        (B, N, h * d).

    Raises:
        TypeError: A tensor is not floating point.
        ValueError: Shapes do not fit.
    """
    check_floating(dict(qkv=qkv, table=table))
    tokens, rows = len(groups.places), (2 * groups.window - 1)**2
    if qkv.dim() != 5 or qkv.shape[1:3] != (tokens, 3) \
            or table.shape != (rows, qkv.shape[3]):
        raise ValueError(
            f'qkv must be (B, {tokens}, 3, h, d) and table ({rows}, h), got '
            f'{shapes_of(dict(qkv=qkv, table=table))}')
    batch, _, _, heads, depth = qkv.shape
    count, size = groups.slots.shape
    scale = depth**-0.5 if scale is None else scale
    if count > 1:
        qkv = _Move.apply(qkv.flatten(2), groups.slots.flatten(), groups.places)
    query, key, value = qkv.reshape(batch, count, size, 3, heads, depth).permute(
        3, 0, 1, 4, 2, 5)  # three of (B, G, h, S, d)
    scores = (query * scale) @ key.transpose(-2, -1)  # (B, G, h, S, S)
    dtype = accumulation_dtype(scores, table)
    scores = scores.to(dtype) + _biases(table.to(dtype), groups.pairs)
    weights = F.dropout(scores.softmax(-1), dropout).to(value.dtype)
    out = (weights @ value).transpose(2, 3)  # (B, G, S, h, d)
    out = out.reshape(batch, count * size, heads * depth)
    if count > 1:
        out = _Move.apply(out, groups.places, groups.slots.flatten())
    return out  # (B, N, h * d)


def _biases(table: Tensor, pairs: Tensor) -> Tensor:
    """What is added to the scores: (T, h) by (G, S, S) to (G, h, S, S)."""
    count, size, _ = pairs.shape
    columns = F.pad(F.pad(table.t(), (0, 1), value=-torch.inf), (0, 1))
    biases = columns.index_select(1, pairs.flatten())
    return biases.view(-1, count, size, size).transpose(0, 1)


class _Move(torch.autograd.Function):
    """Tokens into slots, or back; the gradient goes the other way.

    Both are copies of whole rows. The gradient of ``index_select`` adds rows one
    by one, as it cannot know that a token has one slot. What this drops or leaves
    in empty slots never reaches a token or the table: no token attends to an
    empty slot, and empty slots attend only to each other, by a constant bias.
    """

    @staticmethod
    def forward(ctx, tokens: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(there, back)
        return tokens.index_select(1, there)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        return _Move.apply(gradient, back, there), None, None
