import pytest
import torch
from helpers.functions import draw_shapes
from helpers.oracles import all_agree
from helpers.oracles import run_with_gradients as run

from fpt_plugin.functional import (
    budget,
    local_attention,
    local_mixture_attention,
    reference,
    tiles,
    windows,
)


def operands(fine=(7, 9), coarse=(4, 5), batch=2, parts=2, depth=3, channels=4,
             dtype=torch.float64, seed=0):
    """query, key, value and mixture weights."""
    *operands, weights = draw_shapes(
        ((batch, parts, depth, *fine), (batch, parts, depth, *coarse),
         (batch, channels, *coarse), (batch, parts)), seed=seed)
    return [x.to(dtype) for x in (*operands, weights.softmax(dim=1))]


options = pytest.mark.parametrize('similarity, pad', [
    (s, p) for s in ('dot', 'neg_euclid') for p in ('zero', 'mask')
])


@options
@pytest.mark.parametrize('scores', [1, 700, 2000])
def test_result_does_not_depend_on_tiles(similarity, pad, scores, monkeypatch):
    inputs = operands((20, 33), (20, 33), dtype=torch.float32)
    kwargs = dict(window=5, similarity=similarity, pad=pad)
    whole = run(local_mixture_attention, inputs, **kwargs)
    cut = []

    def counting(*args):
        cut[:] = tiles.tiles(*args)
        return iter(cut)

    monkeypatch.setitem(budget.SCORE_BUDGET, 'cpu', scores)
    monkeypatch.setattr(windows, 'tiles', counting)
    all_agree(
        run(local_mixture_attention, inputs, **kwargs), whole, 1e-5)
    assert len(cut) > 3
    # every row of every strip in one tile
    covered = torch.zeros(2, 3, 20)
    for tile in cut:
        covered[tile] += 1
    assert (covered == 1).all()


@options
@pytest.mark.parametrize('fine', [(20, 33), (40, 60)])
@pytest.mark.parametrize('strips, together', [
    (1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (7, (2, 3)), (99, (4, 3))])
def test_strips_of_a_tile_do_not_mix(
        similarity, pad, fine, strips, together, monkeypatch):
    """Large tiles as on a GPU: several strips of an image, then several images."""
    inputs = operands(fine, (20, 33), batch=4)
    kwargs = dict(window=5, similarity=similarity, pad=pad)
    want = run(reference.local_mixture_attention, inputs, **kwargs)
    queries = 1 if fine == (20, 33) else 4
    scores = 20 * 11 * queries * 5 * 15
    monkeypatch.setitem(budget.CACHED_SCORES, 'cpu', strips * scores)
    monkeypatch.setitem(tiles.MULTI_STRIP_BUDGET, 'cpu', strips * scores)
    shapes = set()

    def seeing(*args):
        for tile in tiles.tiles(*args):
            shapes.add(tile.shape[:2])
            yield tile

    monkeypatch.setattr(windows, 'tiles', seeing)
    all_agree(run(local_mixture_attention, inputs, **kwargs), want, 1e-11)
    assert max(shapes) == together


@pytest.mark.parametrize('path', ['eager', 'chunked'])
def test_paths(path, monkeypatch):
    inputs = operands()
    want = run(local_mixture_attention, inputs, window=3)
    calls = []
    eager = local_attention._eager
    monkeypatch.setattr(local_attention, '_eager',
                        lambda *args: calls.append(1) or eager(*args))
    all_agree(
        run(local_mixture_attention, inputs, window=3, path=path), want, 1e-11)
    assert bool(calls) == (path == 'eager')
    with pytest.raises(ValueError, match="path must be .* 'fused'"):
        local_mixture_attention(*inputs, window=3, path='fused')
    # The variable may name a path of another function.
    monkeypatch.setenv('FPT_ATTENTION', 'fused')
    local_mixture_attention(*inputs, window=3)


@options
@pytest.mark.parametrize('size, dtype', [(1e3, torch.float16),
                                         (1e3, torch.bfloat16),
                                         (1e4, torch.bfloat16)])
def test_large_activations(similarity, pad, size, dtype):
    query, key, value, weights = operands((9, 11), (9, 11), depth=16)
    inputs = [x.to(dtype) for x in (size * query, size * key, value, weights)]
    out, *grads = run(local_mixture_attention, inputs, window=5, pad=pad,
                      similarity=similarity)
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)
    low, high = inputs[2].amin().item(), inputs[2].amax().item()
    room = 4 * torch.finfo(dtype).eps * (high - low)
    assert out.min() >= min(low, 0) - room and out.max() <= max(high, 0) + room


@pytest.mark.parametrize('index, shape, words', [
    (0, (2, 2, 3, 7), 'query must have 5 dimensions'),
    (1, (2, 3, 3, 4, 5), 'must agree in B, N and d'),
    (1, (2, 2, 4, 4, 5), 'must agree in B, N and d'),
    (2, (2, 4, 4, 6), 'value must be .* with the B, h and w of key'),
    (2, (1, 4, 4, 5), 'value must be'),
    (3, (2, 3), 'mixture_weights must be'),
    (0, (2, 2, 3, 0, 9), 'must not be 0'),
])
def test_bad_shapes(index, shape, words):
    inputs = operands()
    inputs[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=words) as error:
        local_mixture_attention(*inputs, window=3)
    assert str(tuple(shape)) in str(error.value)


def test_bad_types():
    inputs = operands()
    with pytest.raises(TypeError, match='value must be a floating point'):
        local_mixture_attention(*inputs[:2], inputs[2].long(), inputs[3],
                                window=3)
    with pytest.raises(ValueError, match="similarity must be .* 'cosine'"):
        local_mixture_attention(*inputs, window=3, similarity='cosine')
    with pytest.raises(ValueError, match='window must be odd'):
        local_mixture_attention(*inputs, window=4)


@pytest.mark.parametrize('fine, coarse, want', [
    (4, 4, [0, 1, 2, 3]), (4, 2, [0, 0, 1, 1]), (5, 2, [0, 0, 1, 1, 1]),
    (2, 5, [1, 3]), (1, 4, [2]), (3, 1, [0, 0, 0]),
])
def test_centres(fine, coarse, want):
    assert windows.centres(fine, coarse) == want


@pytest.mark.parametrize('fine', [1, 2, 5, 13, 30])
@pytest.mark.parametrize('coarse', [1, 2, 5, 12, 31])
def test_query_groups_sort_pixels_by_their_owners(fine, coarse):
    groups_of = windows.QueryGroups((fine, 1), (coarse, 1))
    owners = windows.centres(fine, coarse)
    groups = [[i for i in range(fine) if owners[i] == o] for o in range(coarse)]
    size = groups_of.row_size
    assert size == max(map(len, groups))
    want = [
        i + 1 for group in groups for i in group + [-1] * (size - len(group))]
    numbers = torch.arange(1.0, fine + 1).view(1, fine, 1)
    got = groups_of.gather(numbers)
    assert got.flatten().tolist() == want
    assert torch.equal(groups_of.scatter(got), numbers)
