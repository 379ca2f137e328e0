"""Branches, key strides and fusions of FPT's levels, and its presets."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers import layer_formulas
from helpers.base import backbone_maps
from helpers.oracles import randomise
from mmengine.registry import MODELS

from fpt_plugin import FPT
from fpt_plugin.necks import branches
from fpt_plugin.necks.presets import BRANCHES

CHANNELS = [8, 16, 24, 32]
WITHOUT_ST_AND_RT = dict(self_transformer=None, rendering_transformer=None)


def make(**kwargs) -> FPT:
    return FPT(**{**dict(in_channels=CHANNELS, out_channels=16, num_outs=4), **kwargs})


def changed_levels(neck, inputs):
    """Return for each map whether FPT changes the pyramid's."""
    return [not torch.equal(a, b) for a, b in zip(neck(inputs), neck.pyramid(inputs))]


@pytest.mark.parametrize('fusion', ['residual', 'concat'])
def test_assembly_equals_the_formula(fusion):
    """Order of concatenation, original pyramid, fusion and pooling."""
    neck = randomise(make(preset='full', fusion=fusion,
                          embed_channels=8)).double().eval()
    inputs = [x.double() for x in backbone_maps(CHANNELS)]
    for out, want in zip(neck(inputs), layer_formulas.fpt(neck, inputs), strict=True):
        torch.testing.assert_close(out, want)


ALL_PAIRS = {'0_1', '0_2', '0_3', '1_2', '1_3', '2_3'}


@pytest.mark.parametrize('args, st_levels, gt_pairs', [
    (dict(preset='full'), 4, ALL_PAIRS),
    (dict(preset='paper'), 4, ALL_PAIRS),
    (dict(preset='light'), 4, set()),
    # With four levels the finest has only the Self-Transformer.
    (dict(num_levels=4), 4, {'1_2', '1_3', '2_3'}),
    (dict(num_levels=3), 3, {'0_1', '0_2', '1_2'}),
    (dict(num_levels=2), 2, {'0_1'}),
])
def test_branches_of_the_presets(args, st_levels, gt_pairs):
    neck = make(**args)
    assert set(neck.self_transformers) == {f'{i}_{i}' for i in range(st_levels)}
    assert set(neck.grounding_transformers) == gt_pairs
    assert set(neck.rendering_transformers) == {x[::-1] for x in gt_pairs}


@pytest.mark.parametrize('out_channels, embeds', [
    (512, (64, 128, 256, 512)), (256, (32, 64, 128, 256)),
    (128, (32, 32, 64, 128)), (100, (32, 32, 48, 100)), (16, (16, 16, 8, 16)),
    (11, (8, 8, 4, 8)), (2, (4, 4, 4, 4))
])
def test_embed_channels_of_the_presets(out_channels, embeds):
    for preset, embed in zip(('light', 'default', 'full', 'paper'), embeds):
        neck = make(out_channels=out_channels, preset=preset,
                    grounding_transformer=dict(type='GroundingTransformer'))
        assert neck.embed_channels == embed, preset


@pytest.mark.parametrize('preset', [None, 'light', 'full', 'paper'])
@pytest.mark.parametrize('branch', BRANCHES)
def test_a_neck_of_one_branch_has_it_in_each_preset(preset, branch):
    kind = ''.join(word.title() for word in branch.split('_'))
    cfg = dict(type=f'{kind}Neck', in_channels=CHANNELS, out_channels=16,
               num_outs=4, preset=preset)
    for given in ({}, {branch: 'preset'}):
        neck = MODELS.build(dict(cfg, **given))
        assert [name for name in BRANCHES if len(getattr(neck, f'{name}s'))] == [branch]
    for other in set(BRANCHES) - {branch}:
        with pytest.raises(TypeError, match=f'{branch} takes no {other}'):
            MODELS.build(dict(cfg, **{other: dict(type='SelfTransformer')}))


def test_the_paper_preset_and_arguments_that_override_it():
    neck = make(preset='paper')
    assert type(neck.pyramid).__name__ == 'BottomUpPyramid'
    assert type(neck.fusions[0]).__name__ == 'ConcatFusion'
    assert neck.key_strides == (1, 1, 1, 1)
    neck = make(preset='paper', pyramid=dict(type='FPN'), fusion='residual',
                key_strides=2, embed_channels=8, self_transformer=None,
                first_level=dict(rendering_transformer=2))
    assert type(neck.pyramid).__name__ == 'FPN'
    assert type(neck.fusions[0]).__name__ == 'ResidualFusion'
    assert neck.key_strides == (2, 2, 2, 2) and neck.embed_channels == 8
    assert not neck.self_transformers
    assert len(neck.grounding_transformers) == 6
    assert set(neck.rendering_transformers) == {'3_2'}


@pytest.mark.parametrize('args, changed', [
    (dict(num_levels=1), [True, False, False, False]),
    (dict(preset='full', first_level=2), [False, False, True, True]),
    (dict(num_outs=6, add_extra_convs='on_input'), [True] * 4 + [False] * 2),
    (dict(num_outs=5, num_levels=5), [True] * 5),
    (dict(num_outs=2, start_level=1, end_level=2), [True] * 2),
    # A residual level without branches is the pyramid's.
    (dict(WITHOUT_ST_AND_RT), [False, True, True, False]),
    (dict(WITHOUT_ST_AND_RT, fusion='concat'), [True] * 4),
    (dict(WITHOUT_ST_AND_RT, grounding_transformer=None), [False] * 4),
])
def test_transformed_levels(args, changed):
    neck = randomise(make(**args)).eval()
    assert changed_levels(neck, backbone_maps(CHANNELS)) == changed


def test_arguments_of_branches():
    neck = make(
        self_transformer=dict(
            type='SelfTransformer', num_mixtures=1, embed_channels=6),
        first_level=0,
        grounding_transformer=None,
        rendering_transformer=dict(type='RenderingTransformer'),
        embed_channels=4)
    assert neck.self_transformers['0_0'].num_mixtures == 1
    assert neck.fusions[2].reduce.weight.shape[:2] == (4, 6 + 4 + 4)
    assert not neck.grounding_transformers
    assert len(neck(backbone_maps(CHANNELS))) == 4


def test_fusion_norms():
    fusion = make(fusion_norm_cfg=dict(type='BN')).fusions[0]
    assert isinstance(fusion.norm, torch.nn.BatchNorm2d)
    assert fusion.reduce.bias is None and fusion.out_conv.bias is not None
    concat = make(fusion='concat', fusion_norm_cfg=dict(type='BN'))
    assert concat.fusions[0].norm.num_features == 16


@pytest.mark.parametrize('sizes, strides', [
    ([(200, 336), (100, 168), (50, 84), (25, 42)], (8, 4, 2, 1)),
    ([(25, 42), (13, 21), (7, 11), (4, 6)], (8, 4, 2, 1)),
    ([(99, 167), (50, 84), (25, 42), (13, 21)], (8, 4, 2, 1)),
    ([(13, 9)] * 4, (1, 1, 1, 1)),
    # A dilated backbone: strides 4, 8, 8, 8.
    ([(26, 26), (13, 13), (13, 13), (13, 13)], (2, 1, 1, 1)),
    ([(64, 64), (16, 16), (8, 8), (8, 8)], (8, 2, 1, 1)),
])
def test_default_key_strides(sizes, strides):
    neck = make(in_channels=16, pyramid=None, num_levels=4)
    assert neck.pooling_strides([torch.ones(1, 1, *size) for size in sizes]) == strides


def test_many_keys_are_warned_of_once(monkeypatch):
    """If they come from FPT's own choice."""
    monkeypatch.setattr(branches, 'MAX_KEYS', 11)
    small, large = ([torch.rand(1, 8, 2 * s, 8), torch.rand(1, 8, s, 4)]
                    for s in (2, 3))
    args = dict(in_channels=8, out_channels=8, pyramid=None, num_levels=2)
    neck = FPT(**args)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        neck(small)
        FPT(**args, key_strides=2)(large)
        FPT(**args, self_transformer=None, grounding_transformer=None)(large)
    with pytest.warns(UserWarning, match='12 keys .* 3 x 4 pixels.*key_strides='):
        neck(large)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        neck(large)


def test_key_strides_of_the_neck_and_of_a_branch():
    own = dict(type='SelfTransformer', key_stride=3)
    neck = make(preset='full', key_strides=[4, 2, 1, 1], self_transformer=own)
    assert neck.grounding_transformers['0_1'].key_stride == 2
    assert neck.self_transformers['0_0'].key_stride == 3
    # A branch's own stride overrides the neck's automatic one.
    others = dict(grounding_transformer=None, rendering_transformer=None)
    automatic = randomise(make(self_transformer=own, **others)).eval()
    fixed = make(key_strides=3, **others).eval()
    fixed.load_state_dict(automatic.state_dict())
    inputs = backbone_maps(CHANNELS)
    for a, b in zip(automatic(inputs), fixed(inputs)):
        assert torch.equal(a, b)
