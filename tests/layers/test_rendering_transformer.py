from functools import partial

import pytest
import torch
from helpers.oracles import (
    assert_layer_agrees,
    maps_of,
    project,
    randomise,
)

from fpt_plugin.layers import RenderingTransformer

CHANNELS = 12


def conv3x3(conv, x, stride=1):
    """Compute a 3x3 convolution with padding 1, one output pixel at a time."""
    height, width = x.shape[2:]
    padded = x.new_zeros(*x.shape[:2], height + 2, width + 2)
    padded[:, :, 1:-1, 1:-1] = x
    rows = [
        torch.stack([
            torch.einsum('ocij,bcij->bo', conv.weight,
                         padded[:, :, top:top + 3, left:left + 3]) + conv.bias
            for left in range(0, width, stride)
        ], dim=-1) for top in range(0, height, stride)
    ]
    return torch.stack(rows, dim=-2)


def nearest(x, size):
    """Take row floor(i * rows / new rows) for row i; columns likewise."""
    rows, columns = ([i * old // new for i in range(new)]
                     for old, new in zip(x.shape[2:], size))
    return x[:, :, rows][:, :, :, columns]


def formula(layer, coarse, fine, *, stride):
    """The stride is an argument, so that a wrong one of the layer is found."""
    query = project(layer.query, coarse)
    key, value = project(layer.key, fine), project(layer.value, fine)
    weight = key.mean(dim=(2, 3))
    attended = conv3x3(layer.query_conv, query * weight[:, :, None, None])
    value = conv3x3(layer.value_conv, value, stride)
    return conv3x3(layer.out_conv,
                   attended + nearest(value, coarse.shape[2:]))


def build(**options):
    return randomise(RenderingTransformer(CHANNELS, **options))


@pytest.mark.parametrize(
    'coarse, fine, stride',
    [
        # Gaps of one, two and three levels of a pyramid, odd sizes.
        ((7, 11), (13, 21), 2),
        ((7, 11), (25, 42), 4),
        ((4, 6), (25, 42), 6),  # 25 / 4 is nearer to 6 than to 8
        ((4, 6), (32, 48), 8),
        # The strided map has not the size of Q and is resized.
        ((3, 4), (8, 11), 3),
        ((5, 7), (18, 30), 4),
        ((4, 5), (9, 14), 2),
        ((3, 5), (4, 9), 1),
        # Equal sizes, as in dilated backbones.
        ((5, 7), (5, 7), 1),
        # A pixel.
        ((1, 1), (1, 1), 1),
        ((1, 1), (2, 2), 2),
        ((1, 1), (7, 11), 7),
        ((1, 3), (1, 6), 1)
    ])
@pytest.mark.parametrize('batch', [1, 2])
def test_agrees_with_the_formula(coarse, fine, stride, batch):
    assert_layer_agrees(build(), maps_of(coarse, fine, batch=batch),
                        partial(formula, stride=stride))


@pytest.mark.parametrize('embed_channels', [None, 1, 5, 16])
def test_embed_channels_agree_with_the_formula(embed_channels):
    layer = build(embed_channels=embed_channels)
    maps = maps_of((5, 7), (9, 13))
    assert layer(*maps).shape == (2, embed_channels or CHANNELS, 5, 7)
    assert_layer_agrees(layer, maps, partial(formula, stride=2))


def test_defaults_and_names_of_parameters():
    layer = RenderingTransformer(CHANNELS, embed_channels=6)
    shapes = {k: tuple(v.shape) for k, v in layer.state_dict().items()}
    wanted = {f'{n}.weight': (6, 12, 1, 1) for n in ('query', 'key', 'value')}
    for name in ('query_conv', 'value_conv', 'out_conv'):
        wanted[f'{name}.weight'] = (6, 6, 3, 3)
        wanted[f'{name}.bias'] = (6, )
    assert shapes == wanted
    assert not any(p.any() for n, p in layer.named_parameters()
                   if n.endswith('bias'))
