"""The functions against their formulas, on anything that a caller may pass.

tests/functional has their properties; here are the dtypes, memory layouts,
sizes and patterns of what learns.
"""

import pytest
import torch
from helpers.fuzz_cases import (
    CASES,
    assert_agrees,
    batches,
    draw_tensors,
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

from fpt_plugin.functional import (
    budget,
    content_lambda,
    lambda_strips,
    local_mixture_attention,
    mixture_attention,
    position_lambda,
    reference,
    windows,
)
from fpt_plugin.functional.lambda_orders import ORDERS

narrow = st.integers(1, 5)
similarities = st.sampled_from(['dot', 'neg_euclid'])
scales = st.sampled_from([None, None, 1.0, 0.3, 2])
spreads = st.sampled_from([0.01, 0.3, 1.0, 1.0, 2.0])
upstreams = st.tuples(seeds, layouts)
# Scores that may exist at once: one chunk, or many.
budgets = st.sampled_from([None, None, 1, 300, 4000])


@pytest.fixture
def limit():
    """Sets the budget of scores for one case."""
    whole = dict(budget.SCORE_BUDGET)

    def set_budget(scores):
        budget.SCORE_BUDGET.update(whole if scores is None else
                                      dict(cpu=scores))

    yield set_budget
    budget.SCORE_BUDGET.update(whole)


def test_as_many_cases_as_promised():
    normal, long = map(sum, zip(*CASES.values()))
    assert normal >= 200 and long >= 2000


@lengths('mixture_attention')
def test_mixture_attention(cases, limit):

    def check(batch, parts, lq, lk, depth, channels, traits, similarity, scale,
              spread, path, budget, seed, upstream):
        limit(budget)
        tensors = draw_tensors(
            seed, (batch, parts, lq, depth), (batch, parts, lk, depth),
            (batch, lk, channels), (batch, parts), spread=spread)
        tensors[3] = tensors[3].softmax(dim=1)
        leaves = dict(
            zip(('query', 'key', 'value', 'weights'),
                map(leaf, tensors, traits)))
        dtypes = [t[0] for t in traits]
        tolerance = precision(dtypes)
        if path == 'fused':
            # It computes in the dtype of value, of which it says so, from
            # distances in that of query and key.
            if dtypes[2] in (torch.bfloat16, torch.float16):
                path = None
            elif set(dtypes) != {torch.float64}:
                tolerance = precision([torch.float32])
        options = dict(similarity=similarity, scale=scale)
        assert_agrees(
            lambda *x: mixture_attention(*x, path=path, **options),
            lambda *x: reference.mixture_attention(*x, **options),
            leaves,
            upstream=upstream,
            out_dtype=dtypes[2],
            tolerance=tolerance)

    lengths = st.one_of(st.integers(1, 12), st.integers(1, 130))
    run_cases(
        check,
        cases,
        batch=batches,
        parts=st.integers(1, 4),
        lq=lengths,
        lk=lengths,
        depth=narrow,
        channels=narrow,
        traits=traits(4),
        similarity=similarities,
        scale=scales,
        spread=spreads,
        path=st.sampled_from([None, None, 'chunked', 'eager', 'fused']),
        budget=budgets,
        seed=seeds,
        upstream=upstreams)


@lengths('local_mixture_attention')
def test_local_mixture_attention(cases, limit, monkeypatch):

    def check(batch, parts, fine, coarse, depth, channels, traits, window,
              similarity, pad, scale, spread, path, budget, strip, seed,
              upstream):
        limit(budget)
        monkeypatch.setattr(windows, 'STRIP', strip)
        tensors = draw_tensors(
            seed, (batch, parts, depth, *fine), (batch, parts, depth, *coarse),
            (batch, channels, *coarse), (batch, parts), spread=spread)
        tensors[3] = tensors[3].softmax(dim=1)
        leaves = dict(
            zip(('query', 'key', 'value', 'weights'),
                map(leaf, tensors, traits)))
        dtypes = [t[0] for t in traits]
        options = dict(
            window=window, similarity=similarity, pad=pad, scale=scale)
        assert_agrees(
            lambda *x: local_mixture_attention(*x, path=path, **options),
            lambda *x: reference.local_mixture_attention(*x, **options),
            leaves,
            upstream=upstream,
            out_dtype=dtypes[2],
            tolerance=precision(dtypes))

    run_cases(
        check,
        cases,
        batch=batches,
        parts=st.integers(1, 4),
        fine=sizes(),
        coarse=sizes(),
        depth=st.integers(1, 3),
        channels=st.integers(1, 3),
        traits=traits(4),
        window=st.sampled_from([1, 3, 5, 7, 9]),
        similarity=similarities,
        pad=st.sampled_from(['zero', 'mask']),
        scale=scales,
        spread=spreads,
        path=st.sampled_from([None, None, 'chunked', 'eager']),
        budget=budgets,
        strip=st.sampled_from([1, 3, 12]),
        seed=seeds,
        upstream=upstreams)


@lengths('position_lambda')
def test_position_lambda(cases, limit, monkeypatch):

    def check(batch, heads, depth, intra, channels, size, window, traits,
              spread, path, budget, cell, seed, upstream):
        limit(budget)
        monkeypatch.setitem(lambda_strips.CELL, 'cpu', cell)
        tensors = draw_tensors(
            seed, (batch, heads, depth, *size), (batch, intra, channels, *size),
            (depth, intra, *window), spread=spread)
        leaves = dict(
            zip(('query', 'value', 'embedding'), map(leaf, tensors, traits)))
        dtypes = [t[0] for t in traits]
        assert_agrees(
            lambda *x: position_lambda(*x, path=path),
            reference.position_lambda,
            leaves,
            upstream=upstream,
            out_dtype=dtypes[1],
            tolerance=precision(dtypes))

    sides = st.sampled_from([1, 3, 5, 9, 15, 23])
    run_cases(
        check,
        cases,
        batch=batches,
        heads=st.integers(1, 4),
        depth=narrow,
        intra=st.integers(1, 3),
        channels=narrow,
        size=sizes(),
        window=st.tuples(sides, sides),
        traits=traits(3),
        spread=spreads,
        path=st.sampled_from([None, None, *ORDERS, 'eager']),
        budget=budgets,
        cell=st.tuples(st.integers(1, 4), st.integers(1, 9)),
        seed=seeds,
        upstream=upstreams)


@lengths('content_lambda')
def test_content_lambda(cases):

    def check(batch, depth, intra, channels, positions, traits, spread, seed,
              upstream):
        tensors = draw_tensors(
            seed, (batch, depth, intra, positions),
            (batch, intra, channels, positions), spread=spread)
        leaves = dict(zip(('key', 'value'), map(leaf, tensors, traits)))
        dtypes = [t[0] for t in traits]
        assert_agrees(
            content_lambda,
            reference.content_lambda,
            leaves,
            upstream=upstream,
            out_dtype=torch.float64
            if torch.float64 in dtypes else torch.float32,
            tolerance=precision(dtypes))

    run_cases(
        check,
        cases,
        batch=batches,
        depth=narrow,
        intra=st.integers(1, 3),
        channels=narrow,
        positions=st.integers(1, 130),
        traits=traits(2),
        spread=spreads,
        seed=seeds,
        upstream=upstreams)
