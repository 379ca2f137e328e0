"""The functions against their formulas, for any operands that a caller may pass.

tests/functional tests their properties. Here dtypes, memory layouts, sizes and the set
of operands with gradients are drawn.
"""

import pytest
import torch
from helpers.fuzz_cases import (
    CASES,
    assert_agree,
    batches,
    draw_tensors,
    exact_twin,
    layouts,
    leaf,
    lengths,
    precision,
    run_cases,
    seeds,
    sizes,
    traits,
)
from hypothesis import strategies as st

from fpt_plugin import functional
from fpt_plugin.functional import budget, lambda_strips, reference, tiles, windows
from fpt_plugin.functional.lambda_orders import ORDERS

narrow = st.integers(1, 5)
parts = st.integers(1, 4)
attention = dict(
    similarity=st.sampled_from(['dot', 'neg_euclid']),
    scale=st.sampled_from([None, None, 1.0, 0.3, 2]))
common = dict(
    batch=batches,
    spread=st.sampled_from([0.01, 0.3, 1.0, 1.0, 2.0]),
    seed=seeds,
    upstream=st.tuples(seeds, layouts))
# Scores that may exist at once: one chunk, or many.
budgets = st.sampled_from([None, None, 1, 300, 4000])


@pytest.fixture
def limit():
    """Set the budget of scores for one case."""
    whole = dict(budget.SCORE_BUDGET)

    def set_budget(scores):
        budget.SCORE_BUDGET.update(whole if scores is None else
                                      dict(cpu=scores))

    yield set_budget
    budget.SCORE_BUDGET.update(whole)


def check_function(name, shapes, traits, *, spread, seed, upstream, options={},
                   path=None, tolerance=None):
    """Compare a function with its formula.

    Args:
        name: Of the function and of its formula.
        shapes: Of the operands, by name.
        traits: Of the operands.
        spread: Of the operands' numbers.
        seed: Of the operands' numbers.
        upstream: Seed and layout of the output's gradient.
        options: Of the function and of its formula.
        path: Of the function.
        tolerance: None: that of the operands' dtypes.
    """
    tensors = draw_tensors(seed, *shapes.values(), spread=spread)
    if 'mixture_weights' in shapes:
        tensors[3] = tensors[3].softmax(dim=1)
    leaves = dict(zip(shapes, map(leaf, tensors, traits)))
    dtypes = [x.dtype for x in leaves.values()]
    out_dtype = leaves['value'].dtype
    if name == 'content_lambda':
        out_dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    function, formula = (getattr(x, name) for x in (functional, reference))
    paths = {} if path is None else dict(path=path)
    exact = {key: exact_twin(x) for key, x in leaves.items()}
    got = function(*leaves.values(), **options, **paths)
    assert got.dtype == out_dtype
    assert_agree([got], [formula(*exact.values(), **options)], leaves, exact,
                 precision(dtypes) if tolerance is None else tolerance, upstream)


def test_as_many_cases_as_promised():
    normal, long = map(sum, zip(*CASES.values()))
    assert normal >= 200 and long >= 2000


@lengths('mixture_attention')
def test_mixture_attention(cases, limit):

    def check(batch, parts, lq, lk, depth, channels, traits, similarity, scale,
              path, budget, **case):
        limit(budget)
        dtypes = [t[0] for t in traits]
        tolerance = None
        if path == 'fused':
            # It computes in the dtype of value, with distances in that of query and
            # key.
            if dtypes[2] in (torch.bfloat16, torch.float16):
                path = None
            elif set(dtypes) != {torch.float64}:
                tolerance = precision([torch.float32])
        check_function(
            'mixture_attention',
            dict(query=(batch, parts, lq, depth), key=(batch, parts, lk, depth),
                 value=(batch, lk, channels), mixture_weights=(batch, parts)),
            traits, path=path, tolerance=tolerance,
            options=dict(similarity=similarity, scale=scale), **case)

    lengths = st.one_of(st.integers(1, 12), st.integers(1, 130))
    run_cases(
        check, cases, **common, **attention, parts=parts, lq=lengths, lk=lengths,
        depth=narrow, channels=narrow, traits=traits(4), budget=budgets,
        path=st.sampled_from([None, None, 'chunked', 'eager', 'fused']))


@lengths('local_mixture_attention')
def test_local_mixture_attention(cases, limit, monkeypatch):

    def check(batch, parts, fine, coarse, depth, channels, traits, window,
              similarity, pad, scale, budget, strip, **case):
        limit(budget)
        monkeypatch.setattr(windows, 'STRIP', strip)
        check_function(
            'local_mixture_attention',
            dict(query=(batch, parts, depth, *fine),
                 key=(batch, parts, depth, *coarse),
                 value=(batch, channels, *coarse), mixture_weights=(batch, parts)),
            traits, options=dict(window=window, similarity=similarity, pad=pad,
                                 scale=scale), **case)

    run_cases(
        check, cases, **common, **attention, parts=parts, fine=sizes(),
        coarse=sizes(), depth=st.integers(1, 3), channels=st.integers(1, 3),
        traits=traits(4), window=st.sampled_from([1, 3, 5, 7, 9]),
        pad=st.sampled_from(['zero', 'mask']),
        path=st.sampled_from([None, None, 'chunked', 'eager']), budget=budgets,
        strip=st.sampled_from([1, 3, 12]))


@lengths('position_lambda')
def test_position_lambda(cases, limit, monkeypatch):

    def check(batch, heads, depth, intra, channels, size, window, traits, budget,
              cell, strips, **case):
        limit(budget)
        monkeypatch.setitem(lambda_strips.CELL, 'cpu', cell)
        monkeypatch.setitem(tiles.MULTI_STRIP_BUDGET, 'cpu', strips)
        check_function(
            'position_lambda',
            dict(query=(batch, heads, depth, *size),
                 value=(batch, intra, channels, *size),
                 embedding=(depth, intra, *window)), traits, **case)

    sides = st.sampled_from([1, 3, 5, 9, 15, 23])
    run_cases(
        check, cases, **common, heads=st.integers(1, 4), depth=narrow,
        intra=st.integers(1, 3), channels=narrow, size=sizes(),
        window=st.tuples(sides, sides), traits=traits(3),
        path=st.sampled_from([None, None, *ORDERS, 'eager']), budget=budgets,
        cell=st.tuples(st.integers(1, 4), st.integers(1, 9)),
        strips=st.sampled_from([0, 0, 1, 2000, 1 << 20]))


@lengths('content_lambda')
def test_content_lambda(cases):

    def check(batch, depth, intra, channels, positions, traits, **case):
        check_function(
            'content_lambda',
            dict(key=(batch, depth, intra, positions),
                 value=(batch, intra, channels, positions)), traits, **case)

    run_cases(check, cases, **common, depth=narrow, intra=st.integers(1, 3),
              channels=narrow, positions=st.integers(1, 130), traits=traits(2))
