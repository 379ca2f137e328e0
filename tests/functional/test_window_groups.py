"""Grouped window attention against masked attention over all tokens."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpt_plugin.functional import reference
from fpt_plugin.functional.window_groups import (
    attend_in_groups,
    first_fit_decreasing,
    group_windows,
    grouped_window_attention,
    pack_windows,
)


def grid(rows: int, columns: int) -> torch.Tensor:
    return torch.tensor(list(product(range(rows), range(columns))))


def some_of(coords: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return coords[torch.randperm(len(coords), generator=generator)[:count]]


def case(coords, window, heads=2, depth=3, batch=2):
    generator = torch.Generator().manual_seed(1)
    qkv, table = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((batch, len(coords), 3, heads, depth),
                      ((2 * window - 1)**2, heads)))
    return qkv.requires_grad_(), table.requires_grad_()


def check(coords, window, shift):
    qkv, table = case(coords, window)
    groups = group_windows(coords, window, shift)
    out = attend_in_groups(qkv, table, groups)
    wanted = reference.window_attention(
        qkv, table, coords, window=window, shift=shift)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    weights = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad((out * weights).sum(), (qkv, table)),
        torch.autograd.grad((wanted * weights).sum(), (qkv, table)),
        rtol=0, atol=1e-11)
    return groups


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 5), st.data())
def test_equals_masked_attention_over_all_tokens(rows, columns, window, data):
    shift = data.draw(st.integers(0, window - 1))
    coords = grid(rows, columns)
    count = data.draw(st.integers(1, len(coords)))
    check(some_of(coords, count, data.draw(st.integers(0, 9))), window, shift)


@pytest.mark.parametrize('coords, window, shift, groups', [
    (grid(12, 12), 3, 0, 16),  # all visible: each window is a group
    (grid(12, 12), 3, 1, 16),  # cut windows at the border share groups
    (grid(5, 5), 5, 0, 1),  # one window
    (grid(5, 5)[[7]], 3, 1, 1),  # one token
    (grid(12, 12)[torch.arange(144) % 12 < 6], 3, 0, 8),  # empty windows
])
def test_groups(coords, window, shift, groups):
    assert len(check(coords, window, shift).token_of_slot) == groups


def test_second_derivatives_ignore_empty_slots():
    coords = some_of(grid(8, 8), 41)
    window = 3
    qkv, table = case(coords, window, heads=1, depth=2, batch=1)
    groups = group_windows(coords, window, 1)
    assert groups.token_of_slot.numel() > len(coords)  # some slots are empty
    found = []
    for out in (attend_in_groups(qkv, table, groups),
                reference.window_attention(
                    qkv, table, coords, window=window, shift=1)):
        grads = torch.autograd.grad(
            out.square().sum(), (qkv, table), create_graph=True)
        found.append(torch.autograd.grad(
            sum(g.pow(3).sum() for g in grads), (qkv, table)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@given(st.lists(st.integers(1, 49), min_size=1, max_size=80))
def test_packing_fits_and_is_first_fit(counts):
    size = max(counts)
    groups = first_fit_decreasing(counts, size)
    room: list[int] = []
    wanted = [0] * len(counts)
    for item in sorted(range(len(counts)), key=lambda i: -counts[i]):
        group = next((g for g, left in enumerate(room) if left >= counts[item]),
                     len(room))
        room += [size] * (group == len(room))
        room[group] -= counts[item]
        wanted[item] = group
    assert groups == wanted
    assert min(room) >= 0


@pytest.mark.parametrize('counts, size, groups', [
    ([3, 0, 2, 1, 2], None, [[0], [2, 3], [4]]),
    ([3, 0, 2, 1, 2], 5, [[0, 2], [3, 4]]), ([0, 0], None, []), ([], None, []),
    ([4], None, [[0]]), ([1, 1, 1], 1, [[0], [1], [2]])])
def test_windows_in_groups(counts, size, groups):
    assert pack_windows(counts, size) == groups
    assert pack_windows(torch.tensor(counts, dtype=torch.long), size) == groups


@pytest.mark.parametrize('counts, size', [([3, -1], None), ([3, 1], 2)])
def test_bad_counts(counts, size):
    with pytest.raises(ValueError, match='counts must be from 0 to size'):
        pack_windows(counts, size)


@pytest.mark.parametrize('shift', [0, 1])
@pytest.mark.parametrize('transposed', [False, True])
def test_separate_queries_keys_and_values(shift, transposed):
    coords = some_of(grid(7, 8), 20)
    qkv, table = case(coords, 3)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, h, N, d)
    out = grouped_window_attention(
        query, key, value, group_windows(coords, 3, shift),
        table.t() if transposed else table)
    wanted = reference.window_attention(qkv, table, coords, window=3, shift=shift)
    torch.testing.assert_close(out.transpose(1, 2).flatten(2), wanted)
    with pytest.raises(ValueError, match='query, key and value must have one shape'):
        grouped_window_attention(
            query, key[:, :, 1:], value, group_windows(coords, 3), table)


def test_low_precision_softmax_in_float32():
    coords = some_of(grid(9, 9), 40)
    qkv, table = case(coords, 3)
    groups = group_windows(coords, 3)
    exact = attend_in_groups(qkv, table, groups)
    half = attend_in_groups(qkv.bfloat16(), table.float(), groups)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, rtol=0.05, atol=0.05)
    with torch.autocast('cpu', torch.bfloat16):
        out = attend_in_groups(qkv.float(), table.float(), groups)
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)


def test_dropout_is_reproducible():
    coords = grid(6, 6)
    qkv, table = case(coords, 3)
    groups = group_windows(coords, 3)
    torch.manual_seed(0)
    first = attend_in_groups(qkv, table, groups, dropout=0.5)
    torch.manual_seed(0)
    again = attend_in_groups(qkv, table, groups, dropout=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, attend_in_groups(qkv, table, groups))


@pytest.mark.parametrize('coords, window, shift, text', [
    (grid(2, 2)[:0], 2, 0, 'coords must be'),
    (grid(2, 2).flatten(), 2, 0, 'coords must be'),
    (grid(2, 2), 2, 2, 'shift=2'),
    (grid(2, 2), 0, 0, 'window=0'),
    (grid(2, 2), 2, -1, 'shift=-1'),
])
def test_bad_plans(coords, window, shift, text):
    with pytest.raises(ValueError, match=text):
        group_windows(coords, window, shift)


@pytest.mark.parametrize('qkv, table', [
    ((1, 5, 3, 2, 4), (9, 2)),  # another number of tokens
    ((1, 4, 2, 2, 4), (9, 2)), ((4, 3, 2, 4), (9, 2)),
    ((1, 4, 3, 2, 4), (9, 3)),  # other heads
    ((1, 4, 3, 2, 4), (25, 2)),  # another window
])
def test_bad_tensors(qkv, table):
    groups = group_windows(grid(2, 2), 2)
    with pytest.raises(ValueError, match='qkv'):
        attend_in_groups(torch.rand(qkv), torch.rand(table), groups)
