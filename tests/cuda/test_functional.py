"""The functions on a GPU against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.functions import FUNCTIONS, draw
from helpers.oracles import all_agree, relative_error, run_with_gradients

from fpt_plugin import functional
from fpt_plugin.functional import reference
from fpt_plugin.functional.checks import SIMILARITIES
from fpt_plugin.functional.lambdas import PATHS as ORDERS
from fpt_plugin.functional.paths import LOCAL_PATHS, MIXTURE_PATHS

pytestmark = pytest.mark.cuda

# Errors of the output and of each gradient, relative to their norm.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 4e-2,
    torch.float16: 5e-3,
}
DTYPES = list(TOLERANCES)
# B, N, Lq, Lk, d, C
ATTENTION = [(2, 2, 37, 19, 8, 24), (1, 4, 1, 1, 4, 8), (1, 1, 5, 130, 3, 7),
             (2, 4, 1050, 273, 32, 128)]
# window, fine, coarse, pad
WINDOWS = [(5, (9, 8), (9, 8), 'zero'), (5, (9, 8), (9, 8), 'mask'),
           (3, (13, 10), (7, 5), 'zero'), (5, (1, 1), (1, 1), 'mask'),
           (5, (4, 3), (8, 6), 'zero'), (5, (33, 17), (33, 17), 'zero')]
# query (B, h, k, H, W), value (B, u, v, H, W), sides of the window
LAMBDAS = [((2, 2, 3, 9, 8), (2, 1, 4, 9, 8), (5, 5)),
           ((1, 4, 16, 1, 1), (1, 1, 8, 1, 1), (23, 23)),
           ((1, 2, 3, 5, 7), (1, 2, 3, 5, 7), (3, 7)),
           ((2, 4, 16, 25, 42), (2, 1, 32, 25, 42), (23, 23))]
# key (B, k, u, n), value (B, u, v, n)
CONTENTS = [((2, 3, 1, 20), (2, 1, 4, 20)), ((1, 3, 2, 1), (1, 2, 4, 1)),
            ((2, 16, 4, 1050), (2, 4, 64, 1050))]


def cases():
    """Yield the name of a function, the shapes of its operands, and its options."""
    for similarity in SIMILARITIES:
        for path in (None, *MIXTURE_PATHS):
            for sizes in ATTENTION:
                yield ('mixture_attention', attention_shapes(*sizes),
                       dict(similarity=similarity, path=path))
        for path in (None, *LOCAL_PATHS):
            for window, fine, coarse, pad in WINDOWS:
                yield ('local_mixture_attention',
                       [(2, 2, 6, *fine), (2, 2, 6, *coarse), (2, 10, *coarse), (2, 2)],
                       dict(window=window, similarity=similarity, pad=pad, path=path))
    for path in (None, *ORDERS):
        for query, value, window in LAMBDAS:
            yield ('position_lambda', [query, value, (query[2], value[1], *window)],
                   dict(path=path))
    for shapes in CONTENTS:
        yield 'content_lambda', shapes, {}


def attention_shapes(batch, parts, queries, keys, depth, channels):
    return [(batch, parts, queries, depth), (batch, parts, keys, depth),
            (batch, keys, channels), (batch, parts)]


def randn(device, dtype, *shapes):
    """Draw tensors whose channels have different means."""
    return [(torch.randn(shape, device=device) +
             torch.randn(shape[:2] + (1, ) * (len(shape) - 2), device=device)
             ).to(dtype) for shape in shapes]


def draw_operands(device, dtype, shapes):
    """Draw operands; mixture weights, the fourth, in float32 or wider as in layers."""
    operands = randn(device, dtype, *shapes[:3])
    for shape in shapes[3:]:
        wide = torch.promote_types(dtype, torch.float32)
        operands.append(torch.randn(shape, device=device).softmax(1).to(wide))
    return operands


def agree(name, operands, tolerance, **options):
    """Compare the output and all gradients of a function with those of its formula."""
    want = run_with_gradients(
        getattr(reference, name), [x.double() for x in operands],
        **{key: value for key, value in options.items() if key != 'path'})
    got = run_with_gradients(getattr(functional, name), operands, **options)
    dtype = operands[2 if len(operands) == 4 else 1].dtype
    if name == 'content_lambda':
        dtype = torch.promote_types(dtype, torch.float32)
    assert got[0].dtype == dtype
    assert all(g.dtype == x.dtype for g, x in zip(got[1:], operands))
    floor = 0.1 * max(x.norm().item() for x in want)
    for i, (g, w) in enumerate(zip(got, want)):
        # The gradient of a mixture weight is one sum of terms of both signs.
        allowed = 4 * tolerance if i == 4 else tolerance
        error = relative_error(g, w, floor)
        assert error <= allowed, f'gradient {i}' if i else 'output'


@pytest.mark.parametrize('name, shapes, options', cases())
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_agrees_with_the_formula(device, dtype, name, shapes, options):
    operands = draw_operands(device, dtype, shapes)
    if (options.get('path'), options.get('similarity'), dtype) == (
            'fused', 'neg_euclid', torch.float16):
        # Squared norms, which the fused path needs, overflow.
        with pytest.raises(ValueError, match='float16'):
            functional.mixture_attention(*operands, **options)
    else:
        agree(name, operands, TOLERANCES[dtype], **options)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_attention_of_unusual_strides(device, similarity):
    """Maps in channels_last, split as in the layers."""
    *maps, weights = draw_operands(
        device, torch.float32, [(2, 12, 5, 7), (2, 12, 3, 4), (2, 12, 3, 4), (2, 2)])
    maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    query, key = (x.unflatten(1, (2, 6)).flatten(3).mT for x in maps[:2])
    agree('mixture_attention', [query, key, maps[2].flatten(2).mT, weights], 1e-5,
          similarity=similarity)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_distances_far_from_zero(device, dtype):
    """Squared norms are 10,000 times larger than the distances."""
    query, key, *others = draw_operands(
        device, dtype, attention_shapes(1, 2, 40, 30, 8, 8))
    far = [(x.float() / 8 + 32).to(dtype) for x in (query, key)]
    agree('mixture_attention', [*far, *others], 3 * TOLERANCES[dtype],
          similarity='neg_euclid')


# --------------------------------------------- all functions with small operands

every_function = pytest.mark.parametrize('name', FUNCTIONS)


def draw_on(device, name, dtype=torch.float32):
    return [x.to(device) for x in draw(name, dtype)]


@every_function
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_nothing_waits_for_the_device(device, no_sync, dtype, name):
    function, _ = FUNCTIONS[name]
    operands = draw_on(device, name, dtype)

    def train():
        leaves = [x.detach().requires_grad_() for x in operands]
        out = function(*leaves)
        out.backward(torch.ones_like(out))

    train()  # libraries start, caches fill
    with no_sync():
        train()


@every_function
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_change_float32(device, dtype, name):
    function, formula = FUNCTIONS[name]
    operands = draw_on(device, name)

    def forward(*leaves):
        with torch.autocast(device.type, dtype):
            return function(*leaves)

    want = run_with_gradients(formula, [x.double() for x in operands])
    all_agree(run_with_gradients(forward, operands), want, 1e-5)


@every_function
def test_compiled_in_one_graph(device, name):
    torch._dynamo.reset()
    function, _ = FUNCTIONS[name]
    operands = draw_on(device, name)
    compiled = torch.compile(lambda *x: function(*x), fullgraph=True,
                             backend='aot_eager')
    all_agree(run_with_gradients(compiled, operands),
              run_with_gradients(function, operands), 1e-5)
