"""Transfer of textures against its formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fpt_plugin.functional import budget, reference
from fpt_plugin.functional.texture_transfer import texture_transfer


def inputs(size, key_size, scales, batch=2, dtype=torch.float64):
    """Draw query, key and values; random patches are never equally similar."""
    maps = [torch.randn(batch, 3, *size, dtype=dtype),
            torch.randn(batch, 3, *key_size, dtype=dtype)]
    maps += [torch.randn(batch, 2 + i, *(s * side for side in key_size), dtype=dtype)
             for i, s in enumerate(scales)]
    for x in maps:
        x.requires_grad_()
    return maps


CASES = {
    'larger reference': ((5, 6), (7, 9), (1, 2, 4), 3),
    'smaller reference': ((9, 8), (3, 4), (1, 2, 4), 3),
    'one pixel': ((1, 1), (3, 3), (2, ), 3),
    'reference of one pixel': ((4, 5), (1, 1), (2, ), 3),
    'patches of five': ((6, 4), (5, 5), (1, 3), 5),
    'patches of a pixel': ((7, 7), (6, 6), (2, ), 1),
    'a thin reference': ((9, 9), (2, 8), (4, ), 3),
    'no values': ((3, 3), (3, 3), (), 3),
}


@pytest.mark.parametrize('size, key_size, scales, patch', CASES.values(), ids=CASES)
@pytest.mark.parametrize('scores', [None, 60])
def test_is_the_formula(monkeypatch, size, key_size, scales, patch, scores):
    if scores is not None:  # in many small pieces
        monkeypatch.setitem(budget.SCORE_BUDGET, 'cpu', scores)
    query, key, *values = maps = inputs(size, key_size, scales)
    got, want = (f(query, key, values, patch)
                 for f in (texture_transfer, reference.texture_transfer))
    assert torch.equal(got[2], want[2])
    outs = [[*x[0], x[1]] for x in (got, want)]
    torch.testing.assert_close(*outs)
    factors = [torch.randn_like(x) for x in outs[0]]
    grads = [torch.autograd.grad(sum((x * f).sum() for x, f in zip(o, factors)), maps)
             for o in outs]
    torch.testing.assert_close(*grads)


def test_borders_are_not_darkened():
    ones = torch.ones(1, 2, 20, 24)
    (out, ), soft, index = texture_transfer(
        torch.randn(1, 3, 5, 6), torch.randn(1, 3, 5, 6), [ones])
    # Only patches at the border of the reference contain zeros.
    inside = (index // 6 % 4 > 0) & (index % 6 % 5 > 0)
    covered = F.max_pool2d((~inside).float(), 3, 1, 1) == 0
    covered = covered.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.allclose(out[0][:, covered[0]], torch.ones(1))
    # With itself as the reference each pixel matches itself.
    x = torch.randn(1, 3, 5, 6)
    (out, ), soft, index = texture_transfer(x, x, [ones])
    assert torch.equal(index.flatten(), torch.arange(30))
    torch.testing.assert_close(out, ones)
    torch.testing.assert_close(soft, torch.ones(1, 1, 5, 6))


def test_several_references_are_searched_together():
    query, first, *_ = inputs((6, 5), (4, 7), ())
    second = torch.randn(2, 3, 5, 3, dtype=torch.float64, requires_grad=True)
    values = [[torch.randn(2, 2, s * k.shape[2], s * k.shape[3], dtype=torch.float64,
                           requires_grad=True) for k in (first, second)]
              for s in (1, 2)]
    outs, soft, index = texture_transfer(query, [first, second], values)
    alone = [texture_transfer(query, k, [v[i] for v in values])
             for i, k in enumerate((first, second))]
    better = alone[1][1] > alone[0][1]
    assert better.any() and not better.all()
    torch.testing.assert_close(soft, torch.where(better, alone[1][1], alone[0][1]))
    assert torch.equal(
        index, torch.where(better[:, 0], alone[1][2] + 28, alone[0][2]))
    # If all neighbours of a pixel match the same reference, only this one counts.
    for i, (of, _, _) in enumerate(alone):
        chosen = (better if i else ~better).double()
        whole = F.avg_pool2d(F.pad(chosen, [1] * 4, value=1.), 3, 1) > 0.999
        for scale, (out, single) in enumerate(zip(outs, of), 1):
            mask = whole.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
            torch.testing.assert_close(out * mask, single * mask)
    sum(x.sum() for x in [*outs, soft]).backward()
    assert all(v.grad is not None for scale in values for v in scale)


def test_details_of_the_reference_are_transferred():
    """The query is blurred; only the values of the reference have stripes."""
    torch.manual_seed(0)
    coarse = torch.rand(1, 8, 12, 12)
    fine = torch.zeros(1, 1, 48, 48)
    fine[..., ::2] = 1.
    moved = coarse.roll((3, 4), dims=(2, 3))
    (out, ), _, index = texture_transfer(
        F.avg_pool2d(moved, 3, 1, 1) * 0.1 + moved, coarse, [fine])
    inside = out[..., 24:40, 24:40]
    assert (inside - fine[..., 24:40, 24:40]).abs().mean() < 0.05
    assert inside.std() > 0.45


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_is_compared_in_float32(dtype):
    query, key, value = inputs((6, 5), (7, 4), (2, ), dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16):
        (out, ), soft, index = texture_transfer(query, key, [value])
    want = texture_transfer(query.double(), key.double(), [value.double()])
    assert out.dtype == soft.dtype == dtype
    assert torch.equal(index, want[2])
    torch.testing.assert_close(out.double(), want[0][0], rtol=0.05, atol=0.05)
    (out.float().sum() + soft.float().sum()).backward()
    assert all(x.grad.isfinite().all() for x in (query, key, value))


def test_flat_maps_have_finite_gradients():
    query, key = torch.zeros(1, 3, 4, 4, requires_grad=True), torch.ones(1, 3, 4, 4)
    _, soft, index = texture_transfer(query, key, [])
    soft.sum().backward()
    assert not soft.any() and query.grad.isfinite().all()
    assert (index < 16).all()


@pytest.mark.parametrize('query, key, values, patch, error, text', [
    ((1, 3, 4, 4), (1, 3, 4, 4), [], 2, ValueError, 'patch must be odd .* got 2'),
    ((1, 3, 4, 4), (1, 3, 4, 4), [], 3., ValueError, 'patch must be odd .* got 3.0'),
    ((1, 3, 0, 4), (1, 3, 4, 4), [], 3, ValueError, 'query must be .* not empty'),
    ((3, 4, 4), (1, 3, 4, 4), [], 3, ValueError, 'query must be'),
    ((1, 3, 4, 4), (1, 2, 4, 4), [], 3, ValueError, r'key must be \(1, 3\)'),
    ((1, 3, 4, 4), (2, 3, 4, 4), [], 3, ValueError, r'key must be \(1, 3\)'),
    ((1, 3, 4, 4), (1, 3, 4, 4), [(1, 2, 8, 9)], 3, ValueError, r'values\[0\] must'),
    ((1, 3, 4, 4), (1, 3, 4, 4), [(1, 2, 3, 3)], 3, ValueError, r'values\[0\] must'),
    ((1, 3, 4, 4), (1, 3, 4, 4), [(2, 8, 8)], 3, ValueError, r'values\[0\] must'),
])
def test_bad_shapes(query, key, values, patch, error, text):
    with pytest.raises(error, match=text):
        texture_transfer(torch.rand(query), torch.rand(key),
                         [torch.rand(v) for v in values], patch)


def test_bad_types():
    x = torch.rand(1, 3, 4, 4)
    with pytest.raises(TypeError, match='query must be a floating point tensor'):
        texture_transfer(x.int(), x, [])
    with pytest.raises(ValueError, match='key must have at least one reference'):
        texture_transfer(x, [], [])
