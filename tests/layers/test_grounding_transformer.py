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

from fpt_plugin.layers import GroundingTransformer

CHANNELS = 12
FINE, COARSE = (13, 21), (7, 11)


def formula(layer, fine, coarse, similarity='neg_euclid', **options):
    options.setdefault('num_mixtures', 4)
    return mixture_transformer(layer, fine, coarse, similarity, **options)


def build(**options):
    return randomise(GroundingTransformer(CHANNELS, **options))


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize(
    'fine, coarse',
    [
        ((25, 42), COARSE),  # gaps of two levels and of one
        (FINE, COARSE),
        (COARSE, COARSE),
        (FINE, (1, 1)),
        ((1, 1), (1, 1)),
        ((1, 1), COARSE),
        ((1, 9), (3, 1))
    ])
def test_agrees_with_the_formula(fine, coarse, batch):
    assert_layer_agrees(build(), maps_of(fine, coarse, batch=batch), formula)


@pytest.mark.parametrize('num_mixtures', [1, 2, 4])
@pytest.mark.parametrize('embed_channels', [None, 4, 16])
@pytest.mark.parametrize('scale', [None, 1.0, 2])
def test_options_agree_with_the_formula(num_mixtures, embed_channels, scale):
    layer = build(
        embed_channels=embed_channels, num_mixtures=num_mixtures, scale=scale)
    maps = maps_of((5, 7), (3, 4))
    assert layer(*maps).shape == (2, embed_channels or CHANNELS, 5, 7)
    assert_layer_agrees(
        layer, maps, partial(formula, num_mixtures=num_mixtures, scale=scale))


@pytest.mark.parametrize('coarse', [(7, 11), (6, 6), (1, 1), (2, 5)])
@pytest.mark.parametrize('key_stride', [1, 2, 3])
def test_keys_and_values_are_pooled(coarse, key_stride):
    """Also strides that leave a remainder, or are longer than the map."""
    maps = maps_of((9, 8), coarse)
    pooled = partial(formula, key_stride=key_stride)
    assert_layer_agrees(build(key_stride=key_stride), maps, pooled)
    assert_layer_agrees(
        build(key_stride=2), maps, pooled, key_stride=key_stride)


def test_forward_does_not_keep_its_key_stride():
    layer, maps = build(key_stride=2), maps_of(FINE, COARSE)
    before = layer(*maps)
    assert relative_error(layer(*maps, key_stride=3), before) > 1e-2
    assert torch.equal(layer(*maps), before)


def assert_right_and_wrong(layer, maps, right, wrong):
    out = layer(*maps)
    exact, maps = layer.double(), [m.double() for m in maps]
    assert relative_error(out, formula(exact, *maps, **right)) <= 1e-5
    assert relative_error(out, formula(exact, *maps, **wrong)) > 1e-3


def test_similarity_is_the_negative_squared_distance():
    """Not the dot product, which the official code has here."""
    assert_right_and_wrong(build(), maps_of(FINE, COARSE), {},
                           dict(similarity='dot'))


def test_a_query_prefers_the_nearest_key_not_the_longest():
    """Two keys in one direction: dot products would take the longer one."""
    layer = GroundingTransformer(2, num_mixtures=1, scale=20.0)
    for conv in (layer.query, layer.key, layer.value):
        torch.nn.init.dirac_(conv.weight)
    fine = torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    coarse = torch.tensor([[1.1, 5.0], [1.1, 5.0]]).view(1, 2, 1, 2)
    assert torch.allclose(layer(fine, coarse), coarse[..., :1])


@pytest.mark.parametrize('wrong', ['query', 'unpooled', 'equal'])
def test_shares_come_from_the_mean_of_the_pooled_keys(wrong):
    """The mean of the queries, as the official code has it, is far away."""
    # Windows of one pixel are left over, so that means of means differ.
    right = dict(key_stride=3)
    assert_right_and_wrong(build(key_stride=3), maps_of(FINE, (7, 10)), right,
                           dict(right, shares_from=wrong))


def test_parts_start_equal():
    layer = GroundingTransformer(CHANNELS)
    assert not layer.mixture_weight.any()
    maps = maps_of(FINE, COARSE)
    out = layer(*maps)
    want = formula(layer.double(), *(m.double() for m in maps),
                   shares_from='equal')
    assert relative_error(out, want) <= 1e-5


def test_default_scale_is_one_over_the_root_of_a_parts_width():
    maps = maps_of(FINE, COARSE)
    default = build(num_mixtures=3)(*maps)
    assert torch.equal(build(num_mixtures=3, scale=0.5)(*maps), default)
    assert relative_error(build(num_mixtures=3, scale=1.0)(*maps),
                          default) > 1e-2


def test_defaults_and_names_of_parameters():
    layer = GroundingTransformer(CHANNELS)
    assert layer.num_mixtures == 4 and layer.key_stride == 1
    shapes = {k: tuple(v.shape) for k, v in layer.state_dict().items()}
    assert shapes == {
        'query.weight': (12, 12, 1, 1),
        'key.weight': (12, 12, 1, 1),
        'value.weight': (12, 12, 1, 1),
        'mixture_weight': (4, 12),
    }
