"""Attention maps of single pixels: values weighted by them give the output."""

from __future__ import annotations

import pytest
import torch
from helpers.oracles import maps_of, pool, project, randomise, relative_error

from fpt_plugin.functional import budget
from fpt_plugin.layers import (
    GroundingTransformer,
    LocalGroundingTransformer,
    RenderingTransformer,
    SelfTransformer,
)

CHANNELS = 12
SIZES = [((6, 7), (6, 7)), ((8, 6), (4, 3)), ((7, 9), (3, 4)), ((5, 1), (1, 3)),
         ((3, 2), (7, 5)), ((1, 1), (1, 1))]


def double(layer):
    return randomise(layer).double()


def everywhere(x):
    height, width = x.shape[2:]
    return torch.cartesian_prod(torch.arange(height), torch.arange(width))


def from_maps(layer, rows, x, source, stride=1):
    """Compute sum_j A_ij v_j at every pixel of ``x``: (B, E, H, W)."""
    value = project(layer.value, pool(source, stride))
    assert rows.shape == (x.shape[0], x.shape[2] * x.shape[3], *value.shape[2:])
    assert rows.dtype == torch.float64 and (rows >= 0).all()
    out = torch.einsum('bphw,behw->bep', rows, value)
    return out.unflatten(2, x.shape[2:])


def assert_same(got, want):
    assert relative_error(got, want) <= 1e-12


@pytest.mark.parametrize('fine, coarse', SIZES)
@pytest.mark.parametrize('cls, options', [
    (SelfTransformer, dict(key_stride=3)),
    (SelfTransformer, dict(num_mixtures=1, scale=1.0)),
    (SelfTransformer, dict(embed_channels=8, num_mixtures=4)),
    (GroundingTransformer, dict()),
    (GroundingTransformer, dict(num_mixtures=3, scale=0.1)),
])
@pytest.mark.parametrize('stride', [None, 1, 2, 4])
def test_all_pooled_keys(cls, options, fine, coarse, stride):
    layer = double(cls(CHANNELS, **options))
    maps = [m.double() for m in maps_of(fine, coarse)][:1 + (
        cls is GroundingTransformer)]
    rows = layer.attention_at(everywhere(maps[0]), *maps, key_stride=stride)
    assert torch.allclose(rows.sum((2, 3)), rows.new_ones(()))
    assert_same(
        from_maps(layer, rows, maps[0], maps[-1], stride or layer.key_stride),
        layer(*maps, key_stride=stride))


@pytest.mark.parametrize('fine, coarse', SIZES)
@pytest.mark.parametrize('pad', ['zero', 'mask'])
@pytest.mark.parametrize('options', [
    dict(),
    dict(window=1),
    dict(window=3, num_mixtures=1, scale=1.0),
    dict(window=9, embed_channels=8),
])
def test_windows(fine, coarse, pad, options):
    layer = double(LocalGroundingTransformer(CHANNELS, pad=pad, **options))
    fine, coarse = (m.double() for m in maps_of(fine, coarse))
    rows = layer.attention_at(everywhere(fine), fine, coarse)
    assert_same(from_maps(layer, rows, fine, coarse), layer(fine, coarse))
    total = rows.sum((2, 3))
    assert (total <= 1 + 1e-12).all() and (total > 0).all()
    if pad == 'mask':
        assert torch.allclose(total, total.new_ones(()))


def test_single_pixels_and_float32():
    layer = randomise(GroundingTransformer(CHANNELS))
    fine, coarse = maps_of((7, 9), (3, 4))
    pixels = torch.tensor([[6, 0], [2, 8], [6, 0]])
    rows = layer.attention_at(pixels, fine, coarse)
    assert rows.shape == (2, 3, 3, 4)
    assert torch.equal(rows[:, 0], rows[:, 2])
    out = torch.einsum('bphw,behw->bep', rows,
                       project(layer.value, coarse).double())
    want = layer(fine, coarse)[:, :, pixels[:, 0], pixels[:, 1]]
    assert relative_error(out, want) <= 1e-5


def test_queries_are_computed_in_chunks(monkeypatch):
    layer = double(SelfTransformer(CHANNELS))
    x = maps_of((6, 7))[0].double()
    whole = layer.attention_at(everywhere(x), x)
    # 2 images, 2 parts, 42 keys: room for five queries.
    monkeypatch.setitem(budget.SCORE_BUDGET, 'cpu', 5 * 2 * 2 * 42)
    assert_same(layer.attention_at(everywhere(x), x), whole)


@pytest.mark.parametrize('pixels, words', [
    (torch.tensor([[7, 0]]), 'inside the map of .7, 9. pixels'),
    (torch.tensor([[0, -1]]), 'inside the map'),
    (torch.tensor([0, 1]), 'a row and a column each'),
    (torch.tensor([[0., 1.]]), 'whole numbers|of torch.float32'),
])
@pytest.mark.parametrize('cls',
                         [GroundingTransformer, LocalGroundingTransformer])
def test_bad_pixels(cls, pixels, words):
    fine, coarse = maps_of((7, 9), (3, 4))
    with pytest.raises(ValueError, match=words):
        cls(CHANNELS).attention_at(pixels, fine, coarse)


def test_channel_weights_are_the_mean_key():
    layer = double(RenderingTransformer(CHANNELS, 8))
    fine, coarse = (m.double() for m in maps_of((7, 9), (3, 4)))
    weights = layer.channel_weights(fine)
    want = project(layer.key, fine).mean(dim=(2, 3), keepdim=True)
    assert_same(weights, want)
