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

from fpt_plugin.layers import SelfTransformer

CHANNELS = 12


def formula(layer, x, **options):
    options.setdefault('num_mixtures', 2)
    return mixture_transformer(layer, x, x, 'dot', **options)


def build(**options):
    return randomise(SelfTransformer(CHANNELS, **options))


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('size', [(7, 11), (1, 1), (1, 9), (25, 13), (2, 1)])
def test_agrees_with_the_formula(size, batch):
    assert_layer_agrees(build(), maps_of(size, batch=batch), formula)


@pytest.mark.parametrize('num_mixtures', [1, 2, 3])
@pytest.mark.parametrize('embed_channels', [None, 6, 18])
@pytest.mark.parametrize('scale', [None, 1.0, 2])
def test_options_agree_with_the_formula(num_mixtures, embed_channels, scale):
    layer = build(
        embed_channels=embed_channels, num_mixtures=num_mixtures, scale=scale)
    maps = maps_of((5, 7))
    assert layer(*maps).shape == (2, embed_channels or CHANNELS, 5, 7)
    assert_layer_agrees(
        layer, maps, partial(formula, num_mixtures=num_mixtures, scale=scale))


@pytest.mark.parametrize('size', [(7, 11), (6, 6), (1, 1), (2, 5)])
@pytest.mark.parametrize('key_stride', [1, 2, 3])
def test_keys_and_values_are_pooled(size, key_stride):
    """Also strides that leave a remainder, or are longer than the map."""
    maps = maps_of(size)
    pooled = partial(formula, key_stride=key_stride)
    assert_layer_agrees(build(key_stride=key_stride), maps, pooled)
    assert_layer_agrees(
        build(key_stride=2), maps, pooled, key_stride=key_stride)


def test_forward_does_not_keep_its_key_stride():
    layer, maps = build(key_stride=2), maps_of((7, 11))
    before = layer(*maps)
    assert relative_error(layer(*maps, key_stride=3), before) > 1e-2
    assert torch.equal(layer(*maps), before)


@pytest.mark.parametrize('wrong', ['query', 'unpooled', 'equal'])
def test_shares_come_from_the_mean_of_the_pooled_keys(wrong):
    """The mean of the queries, as the official code has it, is far away."""
    # Windows of one pixel are left over, so that means of means differ.
    layer, (x, ) = build(key_stride=3), maps_of((7, 10))
    out = layer(x)
    exact, x = layer.double(), x.double()
    assert relative_error(out, formula(exact, x, key_stride=3)) <= 1e-5
    assert relative_error(
        out, formula(exact, x, key_stride=3, shares_from=wrong)) > 1e-3


def test_parts_start_equal():
    layer, (x, ) = SelfTransformer(CHANNELS), maps_of((7, 11))
    assert not layer.mixture_weight.any()
    out = layer(x)
    assert relative_error(
        out, formula(layer.double(), x.double(), shares_from='equal')) <= 1e-5


def test_default_scale_is_one_over_the_root_of_a_parts_width():
    maps = maps_of((7, 11))
    default = build(num_mixtures=3)(*maps)
    assert torch.equal(build(num_mixtures=3, scale=0.5)(*maps), default)
    assert relative_error(build(num_mixtures=3, scale=1.0)(*maps),
                          default) > 1e-2


def test_defaults_and_names_of_parameters():
    layer = SelfTransformer(CHANNELS)
    assert layer.num_mixtures == 2 and layer.key_stride == 1
    shapes = {k: tuple(v.shape) for k, v in layer.state_dict().items()}
    assert shapes == {
        'query.weight': (12, 12, 1, 1),
        'key.weight': (12, 12, 1, 1),
        'value.weight': (12, 12, 1, 1),
        'mixture_weight': (2, 12),
    }


def test_order_of_pixels_does_not_matter():
    """Attention knows no positions: moved pixels give moved results."""
    layer, (x, ) = build(), maps_of((7, 11))
    order = torch.randperm(77, generator=torch.Generator().manual_seed(0))
    moved = x.flatten(2)[:, :, order].reshape(x.shape)
    assert relative_error(
        layer(moved).flatten(2),
        layer(x).flatten(2)[:, :, order]) <= 1e-6
