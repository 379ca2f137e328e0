"""Grouped window attention against attention over all tokens, masked."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpt_plugin.functional import reference
from fpt_plugin.functional.window_groups import (
    first_fit_decreasing,
    group_windows,
    grouped_window_attention,
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
    out = grouped_window_attention(qkv, table, groups)
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
    assert len(check(coords, window, shift).slots) == groups


def test_second_derivatives_ignore_empty_slots():
    coords = some_of(grid(8, 8), 41)
    window = 3
    qkv, table = case(coords, window, heads=1, depth=2, batch=1)
    groups = group_windows(coords, window, 1)
    assert groups.slots.numel() > len(coords)  # some are empty
    found = []
    for out in (grouped_window_attention(qkv, table, groups),
                reference.window_attention(
                    qkv, table, coords, window=window, shift=1)):
        grads = torch.autograd.grad(
            out.square().sum(), (qkv, table), create_graph=True)
        found.append(torch.autograd.grad(
            sum(g.pow(3).sum() for g in grads), (qkv, table)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_images_do_not_mix():
    coords = some_of(grid(9, 9), 40)
    qkv, table = case(coords, 3)
    groups = group_windows(coords, 3, 1)
    out = grouped_window_attention(qkv, table, groups)
    alone = grouped_window_attention(qkv[1:], table, groups)
    torch.testing.assert_close(out[1:], alone, rtol=0, atol=1e-14)
    gradient, = torch.autograd.grad(out[0].sum(), qkv)
    assert gradient[0].any() and not gradient[1].any()


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


def test_low_precision_softmax_in_float32():
    coords = some_of(grid(9, 9), 40)
    qkv, table = case(coords, 3)
    groups = group_windows(coords, 3)
    exact = grouped_window_attention(qkv, table, groups)
    half = grouped_window_attention(qkv.bfloat16(), table.float(), groups)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, rtol=0.05, atol=0.05)
    with torch.autocast('cpu', torch.bfloat16):
        out = grouped_window_attention(qkv.float(), table.float(), groups)
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)


def test_dropout_needs_no_other_numbers():
    coords = grid(6, 6)
    qkv, table = case(coords, 3)
    groups = group_windows(coords, 3)
    torch.manual_seed(0)
    first = grouped_window_attention(qkv, table, groups, dropout=0.5)
    torch.manual_seed(0)
    again = grouped_window_attention(qkv, table, groups, dropout=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, grouped_window_attention(qkv, table, groups))


@pytest.mark.parametrize('coords, window, shift, text', [
    (grid(2, 2)[:0], 2, 0, 'coords must be'),
    (grid(2, 2).flatten(), 2, 0, 'coords must be'),
    (grid(2, 2), 2, 2, 'shift=2'),
    (grid(2, 2), 0, 0, 'window=0'),
    (grid(2, 2), 2, -1, 'shift=-1'),
])
def test_refused_plans(coords, window, shift, text):
    with pytest.raises(ValueError, match=text):
        group_windows(coords, window, shift)


@pytest.mark.parametrize('qkv, table, error', [
    ((1, 5, 3, 2, 4), (9, 2), ValueError),  # another number of tokens
    ((1, 4, 2, 2, 4), (9, 2), ValueError),
    ((4, 3, 2, 4), (9, 2), ValueError),
    ((1, 4, 3, 2, 4), (9, 3), ValueError),  # other heads
    ((1, 4, 3, 2, 4), (25, 2), ValueError),  # another window
])
def test_refused_tensors(qkv, table, error):
    groups = group_windows(grid(2, 2), 2)
    with pytest.raises(error, match='qkv'):
        grouped_window_attention(torch.rand(qkv), torch.rand(table), groups)
