"""The functions on a GPU against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.functions import FUNCTIONS, draw
from helpers.oracles import all_agree, relative_error, run_with_gradients

from fpt_plugin.functional import (
    content_lambda,
    local_mixture_attention,
    mixture_attention,
    position_lambda,
    reference,
)
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


def randn(device, dtype, *shapes):
    """Draw tensors whose channels have different means."""
    return [(torch.randn(shape, device=device) +
             torch.randn(shape[:2] + (1, ) * (len(shape) - 2), device=device)
             ).to(dtype) for shape in shapes]


def mixture_weights(device, dtype, batch, parts):
    """Draw weights as the layers do: in float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    return torch.randn(batch, parts, device=device).softmax(1).to(wide)


def attention_operands(device, dtype, sizes=ATTENTION[0]):
    batch, parts, queries, keys, depth, channels = sizes
    return [
        *randn(device, dtype, (batch, parts, queries, depth),
               (batch, parts, keys, depth), (batch, keys, channels)),
        mixture_weights(device, dtype, batch, parts)
    ]


def local_operands(device, dtype, fine, coarse, batch=2):
    return [
        *randn(device, dtype, (batch, 2, 6, *fine), (batch, 2, 6, *coarse),
               (batch, 10, *coarse)),
        mixture_weights(device, dtype, batch, 2)
    ]


def lambda_operands(device, dtype, query, value, window):
    return randn(device, dtype, query, value,
                 (query[2], value[1], *window))


def agree(function, formula, operands, tolerance, **options):
    """Compare the output and all gradients with those of the formula."""
    want = run_with_gradients(formula, [x.double() for x in operands], **{
        key: value for key, value in options.items() if key != 'path'})
    got = run_with_gradients(function, operands, **options)
    assert got[0].dtype == operands[2 if len(operands) == 4 else 1].dtype
    assert all(g.dtype == x.dtype for g, x in zip(got[1:], operands))
    floor = 0.1 * max(x.norm().item() for x in want)
    for i, (g, w) in enumerate(zip(got, want)):
        # The gradient of a mixture weight is one sum of terms of both signs.
        allowed = 4 * tolerance if i == 4 else tolerance
        error = relative_error(g, w, floor)
        assert error <= allowed, f'gradient {i}' if i else 'output'


def overflows(path, similarity, dtype):
    """Squared norms, which the fused path needs, overflow in float16."""
    return path == 'fused' and similarity == 'neg_euclid' \
        and dtype == torch.float16


# ------------------------------------------------------------------- attention


@pytest.mark.parametrize('sizes', ATTENTION, ids=str)
@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('path', [None, *MIXTURE_PATHS])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_attention(device, dtype, path, similarity, sizes):
    operands = attention_operands(device, dtype, sizes)
    options = dict(similarity=similarity, path=path)
    if overflows(path, similarity, dtype):
        with pytest.raises(ValueError, match='float16'):
            mixture_attention(*operands, **options)
        return
    agree(mixture_attention, reference.mixture_attention, operands,
          TOLERANCES[dtype], **options)


@pytest.mark.parametrize('similarity', SIMILARITIES)
def test_attention_of_unusual_strides(device, similarity):
    """Maps in channels_last, split as in the layers."""
    maps = [x.contiguous(memory_format=torch.channels_last)
            for x in randn(device, torch.float32, (2, 12, 5, 7), (2, 12, 3, 4),
                           (2, 12, 3, 4))]
    query, key = (x.unflatten(1, (2, 6)).flatten(3).mT for x in maps[:2])
    operands = [query, key, maps[2].flatten(2).mT,
                mixture_weights(device, torch.float32, 2, 2)]
    agree(mixture_attention, reference.mixture_attention, operands, 1e-5,
          similarity=similarity)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_distances_far_from_zero(device, dtype):
    """Squared norms are 10,000 times larger than the distances."""
    query, key, *others = attention_operands(device, dtype, (1, 2, 40, 30, 8, 8))
    far = [(x.float() / 8 + 32).to(dtype) for x in (query, key)]
    agree(mixture_attention, reference.mixture_attention, [*far, *others],
          3 * TOLERANCES[dtype], similarity='neg_euclid')


# --------------------------------------------------------------------- windows


@pytest.mark.parametrize('window, fine, coarse, pad', WINDOWS)
@pytest.mark.parametrize('similarity', SIMILARITIES)
@pytest.mark.parametrize('path', [None, *LOCAL_PATHS])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_local_attention(device, dtype, path, similarity, window, fine, coarse,
                         pad):
    agree(local_mixture_attention, reference.local_mixture_attention,
          local_operands(device, dtype, fine, coarse), TOLERANCES[dtype],
          window=window, similarity=similarity, pad=pad, path=path)


# --------------------------------------------------------------------- lambdas


@pytest.mark.parametrize('query, value, window', LAMBDAS)
@pytest.mark.parametrize('path', [None, *ORDERS])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_position_lambda(device, dtype, path, query, value, window):
    agree(position_lambda, reference.position_lambda,
          lambda_operands(device, dtype, query, value, window),
          TOLERANCES[dtype], path=path)


@pytest.mark.parametrize('key, value', [
    ((2, 3, 1, 20), (2, 1, 4, 20)), ((1, 3, 2, 1), (1, 2, 4, 1)),
    ((2, 16, 4, 1050), (2, 4, 64, 1050))])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_content_lambda(device, dtype, key, value):
    operands = randn(device, dtype, key, value)
    want = run_with_gradients(
        reference.content_lambda, [x.double() for x in operands])
    got = run_with_gradients(content_lambda, operands)
    assert got[0].dtype == torch.promote_types(dtype, torch.float32)
    all_agree(got, want, TOLERANCES[dtype])


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
