"""FPT and its single-branch necks."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.base import BaseNeckTester, BaseWrapperTester, backbone_maps
from helpers.oracles import relative_error
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from fpt_plugin import FPT
from fpt_plugin.necks import branches

CHANNELS = [8, 16, 24, 32]


def make(**kwargs) -> FPT:
    args = dict(in_channels=CHANNELS, out_channels=16, num_outs=4)
    return FPT(**{**args, **kwargs})


def maps(channels=CHANNELS, size=(25, 42), batch=2):
    return backbone_maps(channels, *size, batch=batch)


def perturb(neck: torch.nn.Module) -> torch.nn.Module:
    """Leave the initialisation: zero weights hide what they multiply."""
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return neck


class TestDefault(BaseWrapperTester):
    cfg = dict(type='FPT', in_channels=CHANNELS, out_channels=16, num_outs=5)
    num_outs = 5


class TestPaperPreset(BaseNeckTester):
    cfg = dict(
        type='FPT',
        in_channels=CHANNELS,
        out_channels=16,
        preset='paper')


class TestStartLevelAndExtraConvs(BaseWrapperTester):
    cfg = dict(
        type='FPT',
        in_channels=CHANNELS,
        out_channels=16,
        num_outs=5,
        start_level=1,
        add_extra_convs='on_output')
    num_outs = 5


class TestLight(BaseWrapperTester):
    cfg = dict(TestDefault.cfg, preset='light')
    num_outs = 5


class TestFull(BaseWrapperTester):
    cfg = dict(TestDefault.cfg, preset='full')
    num_outs = 5


class TestCheckpointed(BaseWrapperTester):
    cfg = dict(TestDefault.cfg, checkpoint_branches=True)
    num_outs = 5


class TestNormed(BaseWrapperTester):
    cfg = dict(
        TestDefault.cfg,
        fusion_norm_cfg=dict(type='GN', num_groups=2),
        norm_cfg=dict(type='GN', num_groups=2))
    num_outs = 5

    # A group of one-pixel maps is normalised to a constant.
    @pytest.mark.parametrize('size', [(25, 42), (33, 17)])
    def test_any_size_trains(self, size):
        super().test_any_size_trains(size, 1)


class TestSelfTransformerNeck(BaseWrapperTester):
    cfg = dict(TestDefault.cfg, type='SelfTransformerNeck', num_outs=4)


class TestGroundingTransformerNeck(BaseWrapperTester):
    cfg = dict(TestDefault.cfg, type='GroundingTransformerNeck', num_outs=4)


class TestRenderingTransformerNeck(BaseWrapperTester):
    cfg = dict(TestDefault.cfg, type='RenderingTransformerNeck', num_outs=4)


# ---------------------------------------------------------------- identity

HOST_PYRAMIDS = {
    'FPN': dict(type='mmdet.FPN', num_outs=5),
    'FPN of mmseg': dict(type='mmseg.FPN', num_outs=4),
    'FPN with norm': dict(
        type='mmdet.FPN',
        num_outs=5,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
        add_extra_convs='on_input',
        relu_before_extra_convs=True),
    'PAFPN': dict(type='mmdet.PAFPN', num_outs=5),
    'NASFPN': dict(
        type='mmdet.NASFPN', num_outs=5, stack_times=1,
        norm_cfg=dict(type='BN')),
    'HRFPN': dict(type='mmdet.HRFPN', num_outs=5),
    'ChannelMapper': dict(type='mmdet.ChannelMapper', num_outs=5),
    'list': [
        dict(type='mmdet.FPN', in_channels=CHANNELS, out_channels=16,
             num_outs=5),
        dict(type='mmdet.BFP', in_channels=16, num_levels=5)
    ],
}


@pytest.mark.parametrize('name', HOST_PYRAMIDS)
def test_step_zero_equals_the_host_pyramid(name):
    """Identical outputs after loading the plain pyramid's checkpoint."""
    pyramid = HOST_PYRAMIDS[name]
    if isinstance(pyramid, dict):
        plain = MODELS.build(
            dict(pyramid, in_channels=CHANNELS, out_channels=16))
    else:
        plain = torch.nn.Sequential(*map(MODELS.build, pyramid))
    perturb(plain).eval()
    inputs = maps(size=(48, 64))
    neck = make(pyramid=pyramid, num_outs=None, num_levels=4).eval()
    result = neck.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert not [k for k in result.missing_keys if k.startswith('pyramid.')]
    expected = plain(inputs)
    for out, reference in zip(neck(inputs), expected):
        assert torch.equal(out, reference)
    assert len(neck(inputs)) == len(expected)


def test_identity_survives_the_initialisation_of_a_parent():
    """A detector's init_cfg overwrites what constructors did."""

    class Detector(BaseModule):

        def __init__(self):
            super().__init__(
                init_cfg=dict(type='Constant', val=0.3, layer='Conv2d'))
            self.neck = make(pyramid=dict(type='mmdet.FPN'))

    detector = Detector()
    detector.init_weights()
    neck, inputs = detector.neck.eval(), maps()
    for out, plain in zip(neck(inputs), neck.pyramid(inputs)):
        assert torch.equal(out, plain)
    weight = neck.self_transformers['0_0'].query.weight
    assert weight.std() > 0  # not the constant of the parent


def test_pyramid_init_cfg_is_the_pyramids():
    neck = make(init_cfg=dict(type='Constant', val=0.5, layer='Conv2d'))
    neck.init_weights()
    assert (neck.pyramid.lateral_convs[0].conv.weight == 0.5).all()
    assert neck.self_transformers['0_0'].query.weight.std() > 0


# -------------------------------------------------------- routing of arguments


def test_outer_arguments_reach_the_pyramid_and_inner_ones_win():
    neck = make(
        num_outs=5,
        pyramid=dict(type='FPN', norm_cfg=dict(type='GN', num_groups=4)),
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
        add_extra_convs='on_lateral')
    lateral = neck.pyramid.lateral_convs[0]
    assert isinstance(lateral.norm, torch.nn.GroupNorm)
    assert isinstance(lateral.activate, torch.nn.ReLU)
    assert neck.pyramid.add_extra_convs == 'on_lateral'
    assert len(neck(maps())) == 5


def test_inner_channels_win():
    neck = make(pyramid=dict(type='FPN', out_channels=32))
    assert neck.out_channels == 32
    assert neck.embed_channels == 32  # the preset's least
    assert neck(maps())[0].shape[1] == 32


def test_tuple_of_in_channels():
    assert len(make(in_channels=tuple(CHANNELS))(maps())) == 4


def test_pyramid_none():
    neck = make(in_channels=16, pyramid=None, num_levels=3, num_outs=None)
    inputs = maps([16] * 4)
    outs = neck(inputs)
    assert all(torch.equal(a, b) for a, b in zip(outs, inputs))
    assert outs[3] is inputs[3]


def test_list_form_in_a_detector_config():
    """neck=[FPN, FPT(pyramid=None)], as mmdet builds it."""
    init_default_scope('mmdet')
    neck = MODELS.build([
        dict(type='FPN', in_channels=CHANNELS, out_channels=16, num_outs=5),
        dict(type='FPT', pyramid=None, in_channels=16, out_channels=16,
             num_levels=4)
    ])
    assert len(neck(maps())) == 5


@pytest.mark.parametrize('scope', [None, 'mmengine', 'mmdet', 'mmseg'])
def test_scopes(scope):
    """The plain name works from every scope and dotted types everywhere."""
    with DefaultScope.overwrite_default_scope(scope):
        for neck_type in ('FPT', 'fpt_plugin.FPT'):
            neck = MODELS.build(
                dict(type=neck_type, in_channels=CHANNELS, out_channels=16,
                     num_outs=4))
            library = 'mmseg' if scope == 'mmseg' else 'mmdet'
            assert type(neck.pyramid).__module__.startswith(library)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_registries_of_libraries_find_it(library):
    registry = __import__(f'{library}.registry', fromlist=['MODELS']).MODELS
    neck = registry.build(
        dict(type='FPT', in_channels=CHANNELS, out_channels=16, num_outs=4))
    assert isinstance(neck, FPT)


def test_pyramid_as_a_class():
    from mmdet.models.necks import PAFPN
    assert type(make(pyramid=dict(type=PAFPN)).pyramid) is PAFPN


# ------------------------------------------------------------------ assembly


def names(branches: torch.nn.ModuleDict) -> set[str]:
    return set(branches)


def test_branches_of_each_level():
    neck = make(preset='full')
    assert names(neck.self_transformers) == {'0_0', '1_1', '2_2', '3_3'}
    assert names(neck.grounding_transformers) == {
        '0_1', '0_2', '0_3', '1_2', '1_3', '2_3'
    }
    assert names(neck.rendering_transformers) == {
        '1_0', '2_0', '2_1', '3_0', '3_1', '3_2'
    }


@pytest.mark.parametrize('fusion', ['residual', 'concat'])
def test_assembly_against_the_formula(fusion):
    """Order of concatenation, original pyramid, fusion and pooling."""
    neck = perturb(make(preset='full', fusion=fusion,
                        embed_channels=8)).double().eval()
    inputs = [x.double() for x in maps()]
    pyramid, outs = neck.pyramid(inputs), neck(inputs)
    strides = (8, 4, 2, 1)
    for i, x in enumerate(pyramid):
        branches = [neck.self_transformers[f'{i}_{i}'](x, strides[i])]
        for j in range(i + 1, 4):
            branches.append(neck.grounding_transformers[f'{i}_{j}'](
                x, pyramid[j], strides[j]))
        for j in range(i):
            branches.append(neck.rendering_transformers[f'{i}_{j}'](
                x, pyramid[j]))
        fused = neck.fusions[i]
        if fusion == 'residual':
            expected = x + F.conv2d(
                F.conv2d(
                    torch.cat(branches, 1), fused.reduce.weight,
                    fused.reduce.bias),
                fused.out_conv.weight,
                fused.out_conv.bias,
                padding=1)
        else:
            expected = F.conv2d(
                torch.cat([x] + branches, 1),
                fused.out_conv.weight,
                fused.out_conv.bias,
                padding=1)
        torch.testing.assert_close(outs[i], expected)


@pytest.mark.parametrize('size, expected', [
    ((200, 336), (8, 4, 2, 1)),
    ((25, 42), (8, 4, 2, 1)),
    ((99, 167), (8, 4, 2, 1)),
])
def test_default_key_strides(size, expected):
    neck = make()
    assert neck.pooling_strides(maps([1] * 4, size=size, batch=1)) == expected


def test_default_key_strides_of_other_pyramids():
    neck = make(in_channels=16, pyramid=None, num_levels=4)
    equal = [torch.randn(1, 16, 13, 9)] * 4
    assert neck.pooling_strides(equal) == (1, 1, 1, 1)
    # A dilated backbone: strides 4, 8, 8, 8.
    dilated = [torch.randn(1, 16, s, s) for s in (26, 13, 13, 13)]
    assert neck.pooling_strides(dilated) == (2, 1, 1, 1)
    gaps = [torch.randn(1, 16, s, s) for s in (64, 16, 8, 8)]
    assert neck.pooling_strides(gaps) == (8, 2, 1, 1)


def test_many_keys_are_warned_of_once(monkeypatch):
    """Where they come from FPT's own choice; results are the same."""
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


def test_explicit_key_strides_and_those_of_a_branch():
    neck = make(
        preset='full',
        key_strides=[4, 2, 1, 1],
        self_transformer=dict(type='SelfTransformer', key_stride=3))
    assert neck.grounding_transformers['0_1'].key_stride == 2
    assert neck.self_transformers['0_0'].key_stride == 3
    assert make(key_strides=2).self_transformers['3_3'].key_stride == 2
    # A branch's own stride holds although the neck's default is automatic.
    automatic = perturb(
        make(self_transformer=dict(type='SelfTransformer', key_stride=3),
             grounding_transformer=None, rendering_transformer=None)).eval()
    fixed = make(
        key_strides=3, grounding_transformer=None, rendering_transformer=None)
    fixed.load_state_dict(automatic.state_dict())
    inputs = maps()
    for a, b in zip(automatic(inputs), fixed.eval()(inputs)):
        assert torch.equal(a, b)


def test_branch_arguments_and_left_out_branches():
    neck = make(
        self_transformer=dict(
            type='SelfTransformer', num_mixtures=1, embed_channels=6),
        first_level=0,
        grounding_transformer=None,
        rendering_transformer=dict(type='RenderingTransformer'),
        embed_channels=4)
    assert neck.self_transformers['0_0'].num_mixtures == 1
    assert neck.fusions[2].reduce.weight.shape[:2] == (4, 6 + 4 + 4)
    assert len(neck.grounding_transformers) == 0
    assert len(neck(maps())) == 4


def test_level_without_a_branch():
    inputs = maps()
    residual = perturb(make(self_transformer=None, rendering_transformer=None))
    assert torch.equal(residual(inputs)[3], residual.pyramid(inputs)[3])
    concat = perturb(
        make(
            self_transformer=None,
            rendering_transformer=None,
            fusion='concat'))
    assert not torch.equal(concat(inputs)[3], concat.pyramid(inputs)[3])


def test_all_branches_left_out_is_the_pyramid():
    neck = make(
        self_transformer=None,
        grounding_transformer=None,
        rendering_transformer=None)
    inputs = maps()
    for a, b in zip(neck(inputs), neck.pyramid(inputs)):
        assert torch.equal(a, b)


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


@pytest.mark.parametrize('num_levels, levels', [
    (4, {'1_2', '1_3', '2_3'}), (3, {'0_1', '0_2', '1_2'}), (2, {'0_1'})
])
def test_the_default_preset_spares_the_finest_of_four_levels(
        num_levels, levels):
    neck = make(num_levels=num_levels)
    assert len(neck.self_transformers) == num_levels
    assert names(neck.grounding_transformers) == levels
    assert names(neck.rendering_transformers) == {x[::-1] for x in levels}


def test_the_light_preset_is_the_self_transformer():
    neck = make(preset='light')
    assert len(neck.self_transformers) == 4
    assert not neck.grounding_transformers and not neck.rendering_transformers


@pytest.mark.parametrize('preset', [None, 'light', 'full', 'paper'])
@pytest.mark.parametrize('branch', [
    'self_transformer', 'grounding_transformer', 'rendering_transformer'])
def test_presets_of_single_branches(preset, branch):
    """What the neck is named after is there in every preset."""
    kind = ''.join(word.title() for word in branch.split('_'))
    for given in ({}, {branch: 'preset'}):
        neck = MODELS.build(dict(
            type=f'{kind}Neck', in_channels=CHANNELS, out_channels=16,
            num_outs=4, preset=preset, **given))
        assert [name for name in neck.OWN_CHILDREN[1:4]
                if len(getattr(neck, name))] == [f'{branch}s']


def test_the_papers_preset_is_the_paper():
    neck = make(preset='paper')
    assert type(neck.pyramid).__name__ == 'BottomUpPyramid'
    assert neck.key_strides == (1, 1, 1, 1)
    assert type(neck.fusions[0]).__name__ == 'ConcatFusion'
    assert len(neck.grounding_transformers) == 6


def test_arguments_win_over_the_preset():
    neck = make(preset='paper', pyramid=dict(type='FPN'), fusion='residual',
                key_strides=2, embed_channels=8, self_transformer=None,
                first_level=dict(rendering_transformer=2))
    assert type(neck.pyramid).__name__ == 'FPN'
    assert type(neck.fusions[0]).__name__ == 'ResidualFusion'
    assert neck.key_strides == (2, 2, 2, 2) and neck.embed_channels == 8
    assert not neck.self_transformers
    assert len(neck.grounding_transformers) == 6
    assert names(neck.rendering_transformers) == {'3_2'}


def test_first_level_leaves_finer_levels_alone():
    neck = perturb(make(preset='full', first_level=2)).eval()
    assert names(neck.self_transformers) == {'2_2', '3_3'}
    inputs = maps()
    same = [torch.equal(a, b)
            for a, b in zip(neck(inputs), neck.pyramid(inputs))]
    assert same == [True, True, False, False]


@pytest.mark.parametrize('args, error, message', [
    (dict(preset='small'), ValueError, "preset must be one of .*'small'"),
    (dict(preset=['full']), ValueError, r"preset must be .*\['full'\]"),
    (dict(first_level=4), ValueError, 'less than the 4 transformed levels'),
    (dict(first_level=-1), ValueError, 'first_level must be at least 1|got -1'),
    (dict(first_level=1.0), TypeError, 'first_level must be an int, got 1.0'),
    (dict(first_level=True), TypeError, 'first_level must be an int, got True'),
    (dict(first_level=dict(st=1)), ValueError, "dict of branches .*'st'"),
    (dict(self_transformer='default'), TypeError, 'must be a dict with a type'),
])
def test_bad_presets_and_levels(args, error, message):
    with pytest.raises(error, match=message):
        make(**args)


def test_num_levels_default_leaves_extra_levels_untouched():
    neck = perturb(make(num_outs=6, add_extra_convs='on_input'))
    assert neck.num_levels == 4
    inputs = maps()
    outs, plain = neck(inputs), neck.pyramid(inputs)
    assert not torch.equal(outs[3], plain[3])
    assert torch.equal(outs[4], plain[4]) and torch.equal(outs[5], plain[5])
    assert make(num_outs=5, num_levels=5).num_levels == 5
    assert make(
        num_outs=2, start_level=1, end_level=2).num_levels == 2


def test_single_level():
    neck = perturb(make(num_levels=1))
    inputs = maps()
    assert not torch.equal(neck(inputs)[0], neck.pyramid(inputs)[0])


def test_fusion_norm_is_after_the_first_convolution():
    neck = make(fusion_norm_cfg=dict(type='BN'))
    assert isinstance(neck.fusions[0].norm, torch.nn.BatchNorm2d)
    assert neck.fusions[0].reduce.bias is None
    assert neck.fusions[0].out_conv.bias is not None
    concat = make(fusion='concat', fusion_norm_cfg=dict(type='BN'))
    assert concat.fusions[0].norm.num_features == 16


# -------------------------------------------------------------- training extras


def test_checkpointed_branches_give_the_same_gradients():
    plain, saving = perturb(make()), make(checkpoint_branches=True)
    saving.load_state_dict(plain.state_dict())
    inputs = maps()
    grads = []
    for neck in (plain, saving):
        sum(x.square().mean() for x in neck.train()(inputs)).backward()
        grads.append([p.grad for p in neck.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_checkpointed_branches_save_less():
    inputs = maps(size=(40, 40))

    def saved(neck):
        total = 0

        def pack(x):
            nonlocal total
            total += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            neck.train()(inputs)
        return total

    assert saved(make(checkpoint_branches=True)) < saved(make()) / 1.3


def test_freeze_pyramid():
    neck = make(freeze_pyramid=True, norm_cfg=dict(type='BN'))
    for _ in range(2):
        assert not neck.pyramid.training
        assert not any(p.requires_grad for p in neck.pyramid.parameters())
        neck.train()
        assert neck.training
    inputs = [x.requires_grad_() for x in maps()]
    before = copy.deepcopy(neck.pyramid.state_dict())
    sum(x.square().mean() for x in neck(inputs)).backward()
    assert all(x.grad is not None for x in inputs)
    after = neck.pyramid.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_drop_block_only_while_training_and_skips_small_maps():
    neck = perturb(
        make(
            drop_block=dict(
                type='mmdet.DropBlock',
                drop_prob=0.5,
                block_size=5,
                warmup_iters=0)))
    inputs = maps(size=(33, 33))  # the coarsest map is 5x5, then smaller
    assert all(torch.equal(a, b)
               for a, b in zip(neck.eval()(inputs), neck(inputs)))
    train = neck.train()(inputs)
    assert not torch.equal(train[0], neck(inputs)[0])
    for out in neck(maps(size=(20, 12))):
        assert out.isfinite().all()


def test_drop_block_leaves_step_zero_alone():
    neck = make(
        drop_block=dict(
            type='mmdet.DropBlock', drop_prob=0.5, block_size=3,
            warmup_iters=0)).train()
    inputs = maps()
    for a, b in zip(neck(inputs), neck.pyramid(inputs)):
        assert torch.equal(a, b)


def test_drop_block_warms_up_once_a_step():
    neck = make(
        drop_block=dict(
            type='mmdet.DropBlock', drop_prob=0.1, block_size=3),
        checkpoint_branches=True).train()
    for _ in range(3):
        sum(x.mean() for x in neck(maps())).backward()
    assert {drop.iter_cnt for drop in neck.drop_blocks} == {3}


def test_copies_are_independent():
    """EMA copies the model; a copy loads for itself."""
    neck = make()
    twin = copy.deepcopy(neck)
    with torch.no_grad():
        neck.fusions[0].out_conv.weight.add_(1)
    assert not twin.fusions[0].out_conv.weight.any()
    twin.load_state_dict(neck.state_dict())
    assert torch.equal(twin(maps())[0].isfinite().all(), torch.tensor(True))


class Unpacked(torch.nn.Module):
    """Tracers want tensors as arguments."""

    def __init__(self, neck):
        super().__init__()
        self.neck = neck

    def forward(self, *inputs):
        return self.neck(inputs)


@pytest.mark.parametrize('capture', [
    lambda model, inputs: torch.jit.trace(model, inputs),
    lambda model, inputs: torch.export.export(model, inputs).module(),
    lambda model, inputs: torch.compile(
        model, fullgraph=True, backend='aot_eager'),
], ids=['trace', 'export', 'compile'])
def test_captured_neck_gives_the_same(capture):
    model = Unpacked(perturb(make(num_outs=5))).eval()
    inputs = tuple(maps())
    captured = capture(model, inputs)
    for a, b in zip(captured(*inputs), model(*inputs)):
        # captured graphs convolve in another memory format and round so
        assert relative_error(a, b) <= 1e-5


@pytest.mark.slow
def test_compiled_neck_trains():
    model = Unpacked(perturb(make())).train()
    inputs = tuple(maps())
    grads = []
    for run in (model,
                torch.compile(model, fullgraph=True, backend='aot_eager')):
        model.zero_grad()
        sum(x.square().mean() for x in run(*inputs)).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('fusion', ['residual', 'concat'])
@pytest.mark.parametrize('format', [
    torch.contiguous_format, torch.channels_last])
def test_outputs_keep_the_memory_format_of_the_maps(fusion, format):
    """The heads may round differently in another one."""
    neck = perturb(FPT(12, 12, pyramid=None, num_levels=3, fusion=fusion))
    inputs = [
        torch.randn(2, 12, *size).contiguous(memory_format=format)
        for size in ((16, 20), (8, 10), (4, 5))
    ]
    outs = neck(inputs)
    assert all(out.is_contiguous(memory_format=format) for out in outs)
    want = neck([x.contiguous() for x in inputs])
    for a, b in zip(outs, want):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------- bad input


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
])
def test_bad_arguments(kwargs, error, words):
    with pytest.raises(error) as caught:
        make(**kwargs)
    for word in words:
        assert word in str(caught.value)


def test_a_pyramid_with_other_names_for_its_channels():
    """mmseg's Feature2Pyramid knows neither in_channels nor out_channels."""
    plain = perturb(
        MODELS.build(
            dict(type='mmseg.Feature2Pyramid', embed_dim=16,
                 norm_cfg=dict(type='BN')))).eval()
    inputs = [torch.randn(2, 16, 8, 12) for _ in range(4)]
    neck = make(
        in_channels=[16] * 4,
        num_outs=None,
        num_levels=4,
        pyramid=dict(
            type='mmseg.Feature2Pyramid', embed_dim=16,
            norm_cfg=dict(type='BN'))).eval()
    result = neck.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    for got, want in zip(neck(inputs), plain(inputs)):
        assert torch.equal(got, want)


@pytest.mark.parametrize('neck, branch', [
    ('SelfTransformerNeck', 'grounding_transformer'),
    ('GroundingTransformerNeck', 'rendering_transformer'),
    ('RenderingTransformerNeck', 'self_transformer'),
])
def test_single_branch_necks_refuse_another_branch(neck, branch):
    with pytest.raises(TypeError, match=branch):
        MODELS.build(
            dict(
                type=neck,
                in_channels=CHANNELS,
                out_channels=16,
                num_outs=4,
                **{branch: dict(type='SelfTransformer')}))


def swap(index, value):
    inputs = maps()
    inputs[index] = value
    return inputs


@pytest.mark.parametrize('inputs, error, words', [
    (lambda: maps([8, 16, 24, 33]), ValueError,
     ['in_channels', '[8, 16, 24, 32]', '[8, 16, 24, 33]']),
    (lambda: maps([8, 16, 24]), ValueError, ['in_channels', '[8, 16, 24]']),
    (lambda: maps()[0], TypeError, ['inputs', 'Tensor']),
    (lambda: swap(1, torch.ones(2, 16, 13, 21, dtype=torch.int64)), TypeError,
     ['inputs[1]', 'int64']),
    (lambda: [x.double() for x in maps()], TypeError,
     ['inputs[0]', 'float32', 'float64']),
    (lambda: swap(2, torch.randn(24, 7, 11)), ValueError,
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
        neck(maps([16, 16]))
    with pytest.raises(ValueError, match=r'inputs 1 must have out_channels=16'):
        neck(maps([16, 8, 16]))
    with pytest.raises(ValueError, match='fine to coarse'):
        neck(maps([16] * 3)[::-1])
    with pytest.raises(TypeError, match='floating'):
        neck([x.long() for x in maps([16] * 3)])
    with pytest.raises(ValueError, match=r'\(B, C, H, W\)'):
        neck([x[0] for x in maps([16] * 3)])


