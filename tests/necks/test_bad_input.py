"""FPT names wrong arguments and inputs, with the values given."""

from __future__ import annotations

import pytest
import torch
from helpers.base import backbone_maps

from fpt_plugin import FPT

CHANNELS = [8, 16, 24, 32]


def make(**kwargs) -> FPT:
    return FPT(**{**dict(in_channels=CHANNELS, out_channels=16, num_outs=4), **kwargs})


@pytest.mark.parametrize('kwargs, error, words', [
    (dict(fusion='sum'), ValueError, ['fusion', 'residual', "'sum'"]),
    (dict(key_strides=[8, 4, 2]), ValueError, ['key_strides', '4', '(8, 4, 2)']),
    (dict(key_strides=0), ValueError, ['key_strides', '0']),
    (dict(key_strides=1.5), TypeError, ['key_strides', '1.5']),
    (dict(num_levels=5), ValueError, ['num_levels=5', 'num_outs=4']),
    (dict(freeze_pyramid='False'), TypeError, ['freeze_pyramid', "'False'"]),
    (dict(freeze_pyramid=True, pyramid=None, in_channels=16, num_levels=2,
          num_outs=None), ValueError, ['freeze_pyramid', 'pyramid=None']),
    (dict(num_levels=0), ValueError, ['num_levels', '0']),
    (dict(num_outs=10**6), ValueError, ['num_outs', 'at most 64']),
    (dict(pyramid=dict(type='FPN', num_outs=10**6)), ValueError,
     ['num_outs', 'at most 64']),
    (dict(pyramid=None, in_channels=16, num_levels=10**6, num_outs=None),
     ValueError, ['num_levels', 'at most 64']),
    (dict(key_strides=2**40), ValueError, ['key_strides', 'at most 2147483647']),
    (dict(fusion_norm_cfg=dict(type='Nope')), ValueError,
     ['fusion_norm_cfg', 'Nope']),
    (dict(drop_block=dict(type='Nope')), ValueError, ['drop_block', 'Nope']),
    (dict(norm_cfg=dict(type='Nope')), ValueError, ['pyramid FPN', 'Nope']),
    (dict(embed_channels=6), ValueError,
     ['embed_channels=6', 'num_mixtures=4']),
    (dict(self_transformer=dict(type='SelfTransformer', num_mixtures=3),
          embed_channels=16), ValueError, ['num_mixtures=3']),
    (dict(self_transformer='SelfTransformer'), TypeError,
     ['self_transformer', "'SelfTransformer'"]),
    (dict(grounding_transformer=dict(type='GT')), ValueError,
     ['grounding_transformer', "'GT'"]),
    (dict(out_channels='16'), TypeError, ['out_channels', "'16'"]),
    (dict(pyramid=None), ValueError, ['in_channels']),
    (dict(pyramid=None, in_channels=8), ValueError,
     ['in_channels=8', 'out_channels=16']),
    (dict(pyramid=None, in_channels=16), ValueError, ['num_levels']),
    (dict(pyramid=None, in_channels=16, num_levels=2,
          norm_cfg=dict(type='BN')), TypeError, ['norm_cfg', '_delete_']),
    (dict(pyramid=[dict(type='FPN')], start_level=1), TypeError,
     ['start_level']),
    (dict(pyramid='PAFPN', norm_cfg=None), TypeError, ['pyramid', "'PAFPN'"]),
    (dict(pyramid=dict(type='SSDNeck', out_channels=[8, 16, 24, 32, 40],
                       level_strides=[2], level_paddings=[1]),
          num_outs=None, num_levels=4), TypeError, ['out_channels', '[8, 16']),
    (dict(pyramid=dict(type='HRFPN')), ValueError, ['num_levels', 'HRFPN']),
    (dict(pyramid=dict(in_channels=[1])), TypeError, ['pyramid', 'type']),
    (dict(pyramid=dict(type='Pyramid')), ValueError,
     ["'Pyramid'", 'init_default_scope', 'mmdet.Pyramid']),
    (dict(pyramid=dict(type='mmdet.Pyramid')), ValueError, ['mmdet.Pyramid']),
    (dict(num_csp_blocks=1, num_outs=None), TypeError,
     ['num_csp_blocks', 'FPN', 'YOLOXPAFPN']),
    (dict(num_mixture=2), TypeError, ['num_mixture', 'misspelt']),
    (dict(num_outs=None), TypeError, ['FPN', 'num_outs']),
    (dict(num_outs=3), ValueError, ['FPN', 'num_outs']),
    (dict(preset='small'), ValueError, ['preset must be one of', "'small'"]),
    (dict(preset=['full']), ValueError, ['preset must be one of', "['full']"]),
    (dict(first_level=4), ValueError,
     ['first_level must be less than the 4 transformed levels', 'got 4']),
    (dict(first_level=-1), ValueError, ['first_level', '-1']),
    (dict(first_level=1.0), TypeError, ['first_level must be an int, got 1.0']),
    (dict(first_level=True), TypeError, ['first_level must be an int, got True']),
    (dict(first_level=dict(st=1)), ValueError, ['dict of branches', "'st'"]),
    (dict(self_transformer='default'), TypeError, ['self_transformer', "'default'"]),
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error) as caught:
        make(**kwargs)
    for word in words:
        assert word in str(caught.value)


def replace(index, value):
    inputs = backbone_maps(CHANNELS)
    inputs[index] = value
    return inputs


@pytest.mark.parametrize('inputs, error, words', [
    (lambda: backbone_maps([8, 16, 24, 33]), ValueError,
     ['in_channels', '[8, 16, 24, 32]', '[8, 16, 24, 33]']),
    (lambda: backbone_maps([8, 16, 24]), ValueError, ['in_channels', '[8, 16, 24]']),
    (lambda: backbone_maps(CHANNELS)[0], TypeError, ['inputs', 'Tensor']),
    (lambda: replace(1, torch.ones(2, 16, 13, 21, dtype=torch.int64)), TypeError,
     ['inputs[1]', 'int64']),
    (lambda: [x.double() for x in backbone_maps(CHANNELS)], TypeError,
     ['inputs[0]', 'float32', 'float64']),
    (lambda: replace(2, torch.randn(24, 7, 11)), ValueError,
     ['inputs[2]', '(24, 7, 11)']),
])
def test_bad_inputs(inputs, error, words):
    with pytest.raises(error) as caught:
        make()(inputs())
    for word in words:
        assert word in str(caught.value)


def test_bad_pyramid_maps():
    neck = make(in_channels=16, pyramid=None, num_levels=3, num_outs=None)
    with pytest.raises(ValueError, match=r'num_levels=3 and 2 maps'):
        neck(backbone_maps([16, 16]))
    with pytest.raises(ValueError, match=r'inputs 1 must have out_channels=16'):
        neck(backbone_maps([16, 8, 16]))
    with pytest.raises(ValueError, match='fine to coarse'):
        neck(backbone_maps([16] * 3)[::-1])
    with pytest.raises(TypeError, match='floating'):
        neck([x.long() for x in backbone_maps([16] * 3)])
    with pytest.raises(ValueError, match=r'\(B, C, H, W\)'):
        neck([x[0] for x in backbone_maps([16] * 3)])
