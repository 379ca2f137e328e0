"""Self- and Grounding-Transformer against their formula, and their options."""

from functools import partial

import pytest
import torch
from helpers.oracles import (
    assert_layer_agrees,
    maps_of,
    mixture_transformer,
    randomise,
    relative_error,
)

from fpt_plugin.layers import GroundingTransformer, SelfTransformer

CHANNELS = 12
FINE, COARSE = (13, 21), (7, 11)
# Similarity and number of mixture parts by default.
LAYERS = {SelfTransformer: ('dot', 2), GroundingTransformer: ('neg_euclid', 4)}
each_layer = pytest.mark.parametrize('cls', LAYERS)


def formula(layer, *maps, similarity=None, **options):
    default, parts = LAYERS[type(layer)]
    return mixture_transformer(layer, maps[0], maps[-1], similarity or default,
                               **{'num_mixtures': parts, **options})


def build(cls, **options):
    return randomise(cls(CHANNELS, **options))


def maps_for(cls, fine=FINE, coarse=COARSE, **options):
    """One map for the Self-Transformer, which is the source of the keys as well."""
    sizes = (coarse, ) if cls is SelfTransformer else (fine, coarse)
    return maps_of(*sizes, **options)


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('cls, sizes', [
    *((SelfTransformer, [size])
      for size in ((7, 11), (1, 1), (1, 9), (25, 13), (2, 1))),
    *((GroundingTransformer, sizes) for sizes in (
        [(25, 42), COARSE],  # two levels apart
        [FINE, COARSE], [COARSE, COARSE], [FINE, (1, 1)], [(1, 1), (1, 1)],
        [(1, 1), COARSE], [(1, 9), (3, 1)]))])
def test_agrees_with_the_formula(cls, sizes, batch):
    assert_layer_agrees(build(cls), maps_of(*sizes, batch=batch), formula)


@each_layer
@pytest.mark.parametrize('num_mixtures, embed_channels', [
    (1, None), (1, 4), (2, None), (2, 18), (3, 6), (4, 16)])
@pytest.mark.parametrize('scale', [None, 1.0, 2])
def test_options_agree_with_the_formula(cls, num_mixtures, embed_channels, scale):
    options = dict(num_mixtures=num_mixtures, scale=scale)
    layer = build(cls, embed_channels=embed_channels, **options)
    maps = maps_for(cls, (5, 7), (3, 4))
    assert layer(*maps).shape == (2, embed_channels or CHANNELS, *maps[0].shape[2:])
    assert_layer_agrees(layer, maps, partial(formula, **options))


@each_layer
@pytest.mark.parametrize('coarse', [(7, 11), (6, 6), (1, 1), (2, 5)])
@pytest.mark.parametrize('key_stride', [1, 2, 3])
def test_keys_and_values_are_pooled(cls, coarse, key_stride):
    """Also with strides that leave a remainder, or are longer than the map."""
    maps = maps_for(cls, (9, 8), coarse)
    pooled = partial(formula, key_stride=key_stride)
    assert_layer_agrees(build(cls, key_stride=key_stride), maps, pooled)
    assert_layer_agrees(
        build(cls, key_stride=2), maps, pooled, key_stride=key_stride)


@each_layer
def test_key_stride_of_a_call_is_not_kept(cls):
    layer, maps = build(cls, key_stride=2), maps_for(cls)
    before = layer(*maps)
    assert relative_error(layer(*maps, key_stride=3), before) > 1e-2
    assert torch.equal(layer(*maps), before)


@pytest.mark.parametrize('cls, wrong', [
    *((cls, dict(shares_from=source)) for cls in LAYERS
      for source in ('query', 'unpooled', 'equal')),
    (GroundingTransformer, dict(similarity='dot'))])
def test_wrong_formulas_differ(cls, wrong):
    """The official code takes the mean of the queries, and dot products everywhere."""
    # Border windows have one pixel, so that the mean of means differs.
    layer, maps = build(cls, key_stride=3), maps_for(cls, coarse=(7, 10))
    out = layer(*maps)
    exact, maps = layer.double(), [m.double() for m in maps]
    assert relative_error(out, formula(exact, *maps, key_stride=3)) <= 1e-5
    assert relative_error(out, formula(exact, *maps, key_stride=3, **wrong)) > 1e-3


def test_a_query_prefers_the_nearest_key_not_the_longest():
    """Two keys in one direction: by the dot product the longer one would win."""
    layer = GroundingTransformer(2, num_mixtures=1, scale=20.0)
    for conv in (layer.query, layer.key, layer.value):
        torch.nn.init.dirac_(conv.weight)
    fine = torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    coarse = torch.tensor([[1.1, 5.0], [1.1, 5.0]]).view(1, 2, 1, 2)
    assert torch.allclose(layer(fine, coarse), coarse[..., :1])


@each_layer
def test_defaults_and_names_of_parameters(cls):
    layer, (_, parts) = cls(CHANNELS), LAYERS[cls]
    assert layer.num_mixtures == parts and layer.key_stride == 1
    shapes = {k: tuple(v.shape) for k, v in layer.state_dict().items()}
    assert shapes == {
        'query.weight': (12, 12, 1, 1),
        'key.weight': (12, 12, 1, 1),
        'value.weight': (12, 12, 1, 1),
        'mixture_weight': (parts, 12),
    }


def test_order_of_pixels_does_not_matter():
    """Attention does not depend on positions: moved pixels give moved results."""
    layer, (x, ) = build(SelfTransformer), maps_of(COARSE)
    order = torch.randperm(77, generator=torch.Generator().manual_seed(0))
    moved = x.flatten(2)[:, :, order].reshape(x.shape)
    assert relative_error(
        layer(moved).flatten(2),
        layer(x).flatten(2)[:, :, order]) <= 1e-6
