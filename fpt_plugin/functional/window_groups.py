"""Window attention over the visible tokens of a masked map.

Masked image modelling leaves out most tokens of a map, so the windows of a Swin
Transformer have different numbers of tokens. They are packed into groups of equal size,
and attention in a group is masked to tokens of the same window (GreenMIM,
https://arxiv.org/abs/2205.13515, Sec. 3.2). Windows are packed by first-fit decreasing:
it needs at most two percent more groups than the paper's knapsack algorithm, in a
hundredth of the time.

Shapes: B images, N visible tokens, G groups of S slots, h heads of d channels; a table
of T = (2w - 1)^2 relative position biases for windows of side w.
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
    """Assignment of the N tokens of a map to G groups of S slots.

    Attributes:
        token_of_slot: (G, S), the token in each slot; 0 where a slot is empty.
        slot_of_token: (N,), the slot of each token, numbered through all groups.
        bias_rows: (G, S, S), the row of the bias table for each query and key. Row T is
            for keys of another window (-inf), row T + 1 for two empty slots (0).
        window: Side of a window.
    """

    token_of_slot: Tensor
    slot_of_token: Tensor
    bias_rows: Tensor
    window: int


def group_windows(coords: Tensor,
                  window: int,
                  shift: int = 0,
                  device: torch.device | None = None) -> WindowGroups:
    """Pack the windows of some tokens of a map into groups.

    Windows are those of a Swin Transformer; shifted ones are not joined across the
    border of the map.

    Args:
        coords: (N, 2), row and column of each token; at least one. They should be on
            the CPU, where packing runs.
        window: Side of a window.
        shift: Number of pixels that windows are moved up and left, less than
            ``window``.
        device: Device of the tokens; None: that of ``coords``.

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
    # Few tokens form one group: one small product is faster than several.
    size = count if count <= window**2 else int(counts.max())
    group_of_token = torch.tensor(
        first_fit_decreasing(counts.tolist(), size), device=coords.device)[windows]
    order = group_of_token.argsort(stable=True)  # tokens sorted by group, (N,)
    groups = group_of_token[order]  # (N,)
    members = groups.bincount()  # (G,)
    first = members.cumsum(0) - members  # first token of each group in order, (G,)
    # Slot of each token in order, (N,).
    slots = groups * size + torch.arange(count, device=coords.device) - first[groups]
    token_of_slot = coords.new_zeros(len(members) * size)
    token_of_slot[slots] = order
    slot_of_token = torch.empty_like(order)
    slot_of_token[order] = slots
    window_of_slot = torch.full_like(token_of_slot, -1)  # -1: empty
    window_of_slot[slots] = windows[order]
    token_of_slot, window_of_slot, slot_of_token, coords = (
        tensor.to(device or coords.device, non_blocking=True)
        for tensor in (token_of_slot.view(-1, size), window_of_slot.view(-1, size),
                       slot_of_token, coords))
    bias_rows = _bias_rows(coords[token_of_slot], window_of_slot, window)
    return WindowGroups(token_of_slot, slot_of_token, bias_rows, window)


def count_tokens(coords: Tensor, window: int,
                 shift: int = 0) -> tuple[Tensor, Tensor]:
    """Find the windows of some tokens of a map, and count their tokens.

    Args:
        coords: (N, 2), row and column of each token.
        window: Side of a window.
        shift: Number of pixels that windows are moved up and left.

    Returns:
        The window of each token, (N,), and the number of tokens of each window.
        Windows without tokens are not numbered.
    """
    rows, columns = ((coords + window - shift) // window).unbind(1)
    return torch.unique(
        rows * (columns.max() + 1) + columns,
        return_inverse=True,
        return_counts=True)[1:]


def _bias_rows(coords: Tensor, window_of_slot: Tensor, window: int) -> Tensor:
    """Compute the row of the bias table for each query and key of a group.

    Args:
        coords: (G, S, 2), row and column of the token in each slot.
        window_of_slot: (G, S), -1 for empty slots.
        window: Side of a window.

    Returns:
        (G, S, S).
    """
    side = 2 * window - 1
    # In a window the difference of two ids identifies the offset in rows and columns.
    ids = coords[..., 0] * side + coords[..., 1]  # (G, S)
    rows = ids[:, :, None] - ids[:, None] + side**2 // 2  # (G, S, S)
    same_window = window_of_slot[:, :, None] == window_of_slot[:, None]  # (G, S, S)
    rows = rows.where(same_window, side**2)
    empty = window_of_slot < 0  # (G, S)
    return rows.masked_fill_(empty[:, :, None] & empty[:, None], side**2 + 1)


def first_fit_decreasing(counts: Sequence[int], size: int) -> list[int]:
    """Pack items into groups: largest first, each into the first group with room.

    Args:
        counts: Size of each item, at most ``size``.
        size: Capacity of a group.

    Returns:
        The group of each item.
    """
    groups, room = [0] * len(counts), []
    group, last = 0, None
    for item in sorted(range(len(counts)), key=counts.__getitem__, reverse=True):
        count = counts[item]
        if count != last:  # a smaller item may fit into an earlier group
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
        counts: Number of tokens of each window.
        size: Most tokens of a group; None is the largest count.

    Returns:
        The indices of the windows in each group; a window without tokens is in no
        group.

    Raises:
        ValueError: A count is negative or larger than ``size``.
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
    """Compute the attention of each token to the tokens of its window.

    Args:
        query: (B, h, N, d).
        key: (B, h, N, d).
        value: (B, h, N, d).
        plan: Result of :func:`group_windows` for the N tokens.
        bias: The table of relative position biases of a Swin Transformer's window of
            side w, row by row: ((2w - 1)^2, h) or (h, (2w - 1)^2); the former if
            both are equal.
        scale: Factor of the dot products; None is 1 / sqrt(d).
        dropout: Probability that a weight is set to zero.

    Returns:
        (B, h, N, d).

    Raises:
        TypeError: A tensor is not floating point.
        ValueError: Shapes do not match.
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
    """Compute :func:`grouped_window_attention` in a Swin Transformer's layout.

    Args:
        qkv: (B, N, 3, h, d), queries, keys and values of h heads.
        table: ((2w - 1)^2, h), the relative position biases of a Swin Transformer's
            window of side w, row by row.
        groups: Result of :func:`group_windows` for the N tokens.
        scale: Factor of the dot products; None is 1 / sqrt(d).
        dropout: Probability that a weight is set to zero.

    Returns:
        (B, N, h * d).

    Raises:
        TypeError: A tensor is not floating point.
        ValueError: Shapes do not match.
    """
    check_floating(dict(qkv=qkv, table=table))
    tokens, rows = len(groups.slot_of_token), (2 * groups.window - 1)**2
    if qkv.dim() != 5 or qkv.shape[1:3] != (tokens, 3) \
            or table.shape != (rows, qkv.shape[3]):
        raise ValueError(
            f'qkv must be (B, {tokens}, 3, h, d) and table ({rows}, h), got '
            f'{shapes_of(dict(qkv=qkv, table=table))}')
    batch, _, _, heads, depth = qkv.shape
    count, size = groups.token_of_slot.shape
    scale = depth**-0.5 if scale is None else scale
    if count > 1:  # (B, G * S, 3 * h * d)
        qkv = _SelectRows.apply(
            qkv.flatten(2), groups.token_of_slot.flatten(), groups.slot_of_token)
    query, key, value = qkv.reshape(batch, count, size, 3, heads, depth).permute(
        3, 0, 1, 4, 2, 5)  # (B, G, h, S, d) each
    scores = (query * scale) @ key.transpose(-2, -1)  # (B, G, h, S, S)
    dtype = accumulation_dtype(scores, table)
    scores = scores.to(dtype) + _biases(table.to(dtype), groups.bias_rows)
    weights = F.dropout(scores.softmax(-1), dropout).to(value.dtype)
    out = (weights @ value).transpose(2, 3)  # (B, G, S, h, d)
    out = out.reshape(batch, count * size, heads * depth)
    if count > 1:
        out = _SelectRows.apply(
            out, groups.slot_of_token, groups.token_of_slot.flatten())
    return out  # (B, N, h * d)


def _biases(table: Tensor, bias_rows: Tensor) -> Tensor:
    """Look up the biases of the scores: (T, h) and (G, S, S) to (G, h, S, S)."""
    count, size, _ = bias_rows.shape
    # (h, T + 2): row T of the table is -inf, row T + 1 is 0.
    columns = F.pad(F.pad(table.t(), (0, 1), value=-torch.inf), (0, 1))
    biases = columns.index_select(1, bias_rows.flatten())  # (h, G * S * S)
    return biases.view(-1, count, size, size).transpose(0, 1)


class _SelectRows(torch.autograd.Function):
    """Copy tokens into slots, or slots to tokens; the gradient is copied back.

    The gradient of ``index_select`` would add rows one by one, because torch does not
    know that each token has one slot. Empty slots hold copies of token 0, or of its
    gradient. These never reach a token or the table: no token attends to an empty slot,
    and empty slots attend only to each other, with a constant bias.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        """Select rows: (B, n, D) and (m,) to (B, m, D)."""
        ctx.save_for_backward(index, inverse)
        return rows.index_select(1, index)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Select the gradient's rows: (B, m, D) and (n,) to (B, n, D)."""
        index, inverse = ctx.saved_tensors
        return _SelectRows.apply(grad, inverse, index), None, None
