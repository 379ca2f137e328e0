from functools import partial

import pytest
import torch
from helpers.oracles import (
    assert_layer_agrees,
    local_grounding_transformer,
    maps_of,
    randomise,
    relative_error,
)

from fpt_plugin.layers import GroundingTransformer, LocalGroundingTransformer

CHANNELS = 12


def build(**options):
    return randomise(LocalGroundingTransformer(CHANNELS, **options))


@pytest.mark.parametrize('pad', ['zero', 'mask'])
@pytest.mark.parametrize(
    'fine, coarse',
    [
        ((6, 7), (6, 7)),  # a pyramid of equal sizes
        ((8, 6), (4, 3)),
        ((7, 9), (3, 4)),  # groups of unequal size
        ((3, 2), (7, 5)),  # the fine map is the smaller one
        ((5, 1), (1, 3)),
        ((1, 1), (1, 1)),
    ])
def test_agrees_with_the_formula(fine, coarse, pad):
    assert_layer_agrees(
        build(window=5, pad=pad), maps_of(fine, coarse),
        partial(local_grounding_transformer, window=5, pad=pad))


@pytest.mark.parametrize('num_mixtures', [1, 2, 4])
@pytest.mark.parametrize('window', [1, 3])
@pytest.mark.parametrize('scale', [None, 1.0])
def test_options_agree_with_the_formula(num_mixtures, window, scale):
    options = dict(num_mixtures=num_mixtures, window=window, scale=scale)
    layer = build(embed_channels=8, **options)
    maps = maps_of((4, 6), (3, 3))
    assert layer(*maps).shape == (2, 8, 4, 6)
    assert_layer_agrees(layer, maps,
                        partial(local_grounding_transformer, **options))


@pytest.mark.parametrize('fine, coarse', [((9, 12), (9, 12)), ((13, 9), (5, 4))])
def test_a_window_over_everything_is_the_grounding_transformer(fine, coarse):
    local = build(window=27, pad='mask')
    whole = GroundingTransformer(CHANNELS)
    whole.load_state_dict(local.state_dict())
    maps = maps_of(fine, coarse)
    assert relative_error(local(*maps), whole(*maps)) <= 1e-5


def test_the_window_is_around_the_centre_of_the_query():
    """In a map twice as fine, each query attends to the pixel that contains it."""
    layer = LocalGroundingTransformer(CHANNELS, window=1)
    torch.nn.init.dirac_(layer.value.weight)
    fine, coarse = maps_of((6, 10), (3, 5))
    want = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(layer(fine, coarse), want, atol=1e-6)


def test_keys_outside_the_map_are_zeros_by_default():
    """A corner of ones with a window of 3: five of nine keys are outside."""
    layer = LocalGroundingTransformer(4, num_mixtures=1, window=3)
    for parameter in (layer.query.weight, layer.key.weight):
        torch.nn.init.zeros_(parameter)
    torch.nn.init.dirac_(layer.value.weight)
    ones = torch.ones(1, 4, 5, 5)
    out = layer(ones, ones)
    assert torch.allclose(out[..., 0, 0], torch.tensor(4 / 9))
    assert torch.allclose(out[..., 0, 2], torch.tensor(6 / 9))
    assert torch.allclose(out[..., 2, 2], torch.tensor(1.0))
    layer.pad = 'mask'
    assert torch.allclose(layer(ones, ones), ones)


def test_defaults_and_names_of_parameters():
    layer = LocalGroundingTransformer(CHANNELS)
    assert (layer.window, layer.pad, layer.num_mixtures) == (5, 'zero', 4)
    assert 'window=5' in repr(layer) and "pad='zero'" in repr(layer)
    whole = GroundingTransformer(CHANNELS)
    assert whole.state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize('window, error, words', [
    (4, ValueError, 'odd and positive, because .* centre pixel, got 4'),
    (0, ValueError, 'got 0'),
    (-3, ValueError, 'got -3'),
    (5.0, TypeError, 'window must be an int, got 5.0'),
    (True, TypeError, 'got True'),
])
def test_bad_window(window, error, words):
    with pytest.raises(error, match=words):
        LocalGroundingTransformer(CHANNELS, window=window)


def test_bad_pad():
    with pytest.raises(ValueError, match="pad must be one of .* 'reflect'"):
        LocalGroundingTransformer(CHANNELS, pad='reflect')
