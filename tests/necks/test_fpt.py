"""FPT around any pyramid: identity at the start, and routing of arguments."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.base import BaseNeckTester, BaseWrapperTester, Unpacked, backbone_maps
from helpers.oracles import randomise, relative_error
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope

from fpt_plugin import FPT

CHANNELS = [8, 16, 24, 32]
DROP_BLOCK = dict(type='mmdet.DropBlock', drop_prob=0.5, block_size=5, warmup_iters=0)


def make(**kwargs) -> FPT:
    return FPT(**{**dict(in_channels=CHANNELS, out_channels=16, num_outs=4), **kwargs})


def maps(channels=CHANNELS, size=(25, 42), batch=2):
    return backbone_maps(channels, *size, batch=batch)


def assert_same(outs, expected):
    assert len(outs) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(outs, expected))


class TestDefault(BaseWrapperTester):
    cfg = dict(type='FPT', in_channels=CHANNELS, out_channels=16, num_outs=5)
    num_outs = 5


class TestLight(TestDefault):
    cfg = dict(TestDefault.cfg, preset='light')


class TestFull(TestDefault):
    cfg = dict(TestDefault.cfg, preset='full')


class TestPaper(BaseNeckTester):
    cfg = dict(TestDefault.cfg, preset='paper', num_outs=4)


class TestStartLevelAndExtraConvs(TestDefault):
    cfg = dict(TestDefault.cfg, start_level=1, add_extra_convs='on_output')


class TestCheckpointed(TestDefault):
    cfg = dict(TestDefault.cfg, checkpoint_branches=True)


class TestNormed(TestDefault):
    cfg = dict(
        TestDefault.cfg,
        fusion_norm_cfg=dict(type='GN', num_groups=2),
        norm_cfg=dict(type='GN', num_groups=2))

    # Normalising a group of one pixel gives a constant.
    @pytest.mark.parametrize('size', [(25, 42), (33, 17)])
    def test_any_size_trains(self, size):
        super().test_any_size_trains(size, 1)


class TestSelfTransformerNeck(TestDefault):
    cfg = dict(TestDefault.cfg, type='SelfTransformerNeck')


class TestGroundingTransformerNeck(TestDefault):
    cfg = dict(TestDefault.cfg, type='GroundingTransformerNeck')


class TestRenderingTransformerNeck(TestDefault):
    cfg = dict(TestDefault.cfg, type='RenderingTransformerNeck')


# ---------------------------------------------------------------- identity

ARGS = dict(in_channels=CHANNELS, out_channels=16)
PYRAMIDS = {
    'FPN': dict(ARGS, type='mmdet.FPN', num_outs=5),
    'FPN of mmseg': dict(ARGS, type='mmseg.FPN', num_outs=4),
    'FPN with norm': dict(
        ARGS, type='mmdet.FPN', num_outs=5, norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'), add_extra_convs='on_input',
        relu_before_extra_convs=True),
    'PAFPN': dict(ARGS, type='mmdet.PAFPN', num_outs=5),
    'NASFPN': dict(ARGS, type='mmdet.NASFPN', num_outs=5, stack_times=1,
                   norm_cfg=dict(type='BN')),
    'HRFPN': dict(ARGS, type='mmdet.HRFPN', num_outs=5),
    'ChannelMapper': dict(ARGS, type='mmdet.ChannelMapper', num_outs=5),
    # It has neither in_channels nor out_channels.
    'Feature2Pyramid': dict(type='mmseg.Feature2Pyramid', embed_dim=16,
                            norm_cfg=dict(type='BN')),
    'list': [dict(ARGS, type='mmdet.FPN', num_outs=5),
             dict(type='mmdet.BFP', in_channels=16, num_levels=5)],
}


@pytest.mark.parametrize('name', PYRAMIDS)
def test_step_zero_equals_the_wrapped_pyramid(name):
    """After loading the plain pyramid's checkpoint."""
    cfg, inputs = PYRAMIDS[name], maps(size=(48, 64))
    if name == 'Feature2Pyramid':
        inputs = [torch.randn(2, 16, 8, 12)] * 4
    plain = MODELS.build(cfg) if isinstance(cfg, dict) else \
        torch.nn.Sequential(*map(MODELS.build, cfg))
    randomise(plain).eval()
    neck = make(in_channels=[x.shape[1] for x in inputs], pyramid=cfg, num_outs=None,
                num_levels=4).eval()
    result = neck.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert not [k for k in result.missing_keys if k.startswith('pyramid.')]
    assert_same(neck(inputs), plain(inputs))


def test_identity_after_the_initialisation_by_a_parent():
    """A detector's init_cfg overwrites the initialisation of constructors."""

    class Detector(BaseModule):

        def __init__(self):
            super().__init__(
                init_cfg=dict(type='Constant', val=0.3, layer='Conv2d'))
            self.neck = make(pyramid=dict(type='mmdet.FPN'))

    detector = Detector()
    detector.init_weights()
    neck, inputs = detector.neck.eval(), maps()
    assert_same(neck(inputs), neck.pyramid(inputs))
    assert neck.self_transformers['0_0'].query.weight.std() > 0  # not the constant


def test_init_cfg_is_for_the_pyramid():
    neck = make(init_cfg=dict(type='Constant', val=0.5, layer='Conv2d'))
    neck.init_weights()
    assert (neck.pyramid.lateral_convs[0].conv.weight == 0.5).all()
    assert neck.self_transformers['0_0'].query.weight.std() > 0


# -------------------------------------------------------- routing of arguments


def test_inner_arguments_override_outer_ones():
    neck = make(
        num_outs=5,
        pyramid=dict(type='FPN', norm_cfg=dict(type='GN', num_groups=4),
                     out_channels=32),
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
        add_extra_convs='on_lateral')
    lateral = neck.pyramid.lateral_convs[0]
    assert isinstance(lateral.norm, torch.nn.GroupNorm)
    assert isinstance(lateral.activate, torch.nn.ReLU)
    assert neck.pyramid.add_extra_convs == 'on_lateral'
    assert neck.embed_channels == 32  # the preset's minimum
    assert [x.shape[1] for x in neck(maps())] == [neck.out_channels] * 5 == [32] * 5


def test_pyramid_none():
    neck = make(in_channels=16, pyramid=None, num_levels=3, num_outs=None)
    inputs = maps([16] * 4)
    outs = neck(inputs)
    assert_same(outs, inputs)
    assert outs[3] is inputs[3]


@pytest.mark.parametrize('scope', [None, 'mmengine', 'mmdet', 'mmseg'])
def test_scopes(scope):
    """The plain name works in every scope, and the dotted one everywhere."""
    with DefaultScope.overwrite_default_scope(scope):
        for neck_type in ('FPT', 'fpt_plugin.FPT'):
            neck = MODELS.build(dict(TestDefault.cfg, type=neck_type))
            library = 'mmseg' if scope == 'mmseg' else 'mmdet'
            assert type(neck.pyramid).__module__.startswith(library)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_registries_of_libraries_find_it(library):
    registry = __import__(f'{library}.registry', fromlist=['MODELS']).MODELS
    assert isinstance(registry.build(TestDefault.cfg), FPT)


def test_pyramid_as_a_class_and_channels_as_a_tuple():
    from mmdet.models.necks import PAFPN
    neck = make(pyramid=dict(type=PAFPN), in_channels=tuple(CHANNELS))
    assert type(neck.pyramid) is PAFPN
    assert len(neck(maps())) == 4


# -------------------------------------------------------------- training extras


def test_checkpointed_branches_give_the_same_gradients_and_save_less():
    plain, saving = randomise(make()), make(checkpoint_branches=True)
    saving.load_state_dict(plain.state_dict())
    inputs = maps(size=(40, 40))
    grads, saved = [], []

    def pack(x):
        saved[-1] += x.numel()
        return x

    for neck in (plain, saving):
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outs = neck.train()(inputs)
        sum(x.square().mean() for x in outs).backward()
        grads.append([p.grad for p in neck.parameters()])
    torch.testing.assert_close(*grads)
    assert saved[1] < saved[0] / 1.3


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
    assert_same([*neck.pyramid.state_dict().values()], [*before.values()])


def test_drop_block_in_training_on_maps_of_its_size():
    neck = make(drop_block=DROP_BLOCK).train()
    inputs = maps(size=(33, 33))  # the coarsest map is 5x5
    assert_same(neck(inputs), neck.pyramid(inputs))  # the fusions are zero
    randomise(neck).eval()
    expected = neck(inputs)
    assert_same(neck(inputs), expected)
    assert not torch.equal(neck.train()(inputs)[0], expected[0])
    for out in neck(maps(size=(20, 12))):
        assert out.isfinite().all()


def test_drop_block_counts_each_step_once():
    neck = make(
        drop_block=dict(type='mmdet.DropBlock', drop_prob=0.1, block_size=3),
        checkpoint_branches=True).train()
    for _ in range(3):
        sum(x.mean() for x in neck(maps())).backward()
    assert {drop.iter_cnt for drop in neck.drop_blocks} == {3}


def test_copies_are_independent():
    """EMA copies the model; a copy loads its own state."""
    neck = make()
    twin = copy.deepcopy(neck)
    with torch.no_grad():
        neck.fusions[0].out_conv.weight.add_(1)
    assert not twin.fusions[0].out_conv.weight.any()
    twin.load_state_dict(neck.state_dict())
    assert torch.equal(twin.fusions[0].out_conv.weight,
                       neck.fusions[0].out_conv.weight)


@pytest.mark.parametrize('capture', [
    torch.jit.trace,
    lambda model, inputs: torch.export.export(model, inputs).module(),
    lambda model, inputs: torch.compile(
        model, fullgraph=True, backend='aot_eager'),
], ids=['trace', 'export', 'compile'])
def test_captured_neck_gives_the_same(capture):
    model = Unpacked(randomise(make(num_outs=5))).eval()
    inputs = tuple(maps())
    captured = capture(model, inputs)
    for a, b in zip(captured(*inputs), model(*inputs)):
        # Captured graphs convolve in another memory format and round differently.
        assert relative_error(a, b) <= 1e-5


@pytest.mark.parametrize('fusion', ['residual', 'concat'])
@pytest.mark.parametrize('memory_format', [
    torch.contiguous_format, torch.channels_last])
def test_outputs_keep_the_memory_format_of_the_maps(fusion, memory_format):
    """The heads may round differently in another one."""
    neck = randomise(FPT(12, 12, pyramid=None, num_levels=3, fusion=fusion))
    inputs = [
        torch.randn(2, 12, *size).contiguous(memory_format=memory_format)
        for size in ((16, 20), (8, 10), (4, 5))
    ]
    outs = neck(inputs)
    assert all(out.is_contiguous(memory_format=memory_format) for out in outs)
    expected = neck([x.contiguous() for x in inputs])
    torch.testing.assert_close(outs, expected, rtol=1e-5, atol=1e-5)
